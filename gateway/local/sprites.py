"""Draws the people in a scene, and holds the pen that draws everything else.

Everything is drawn in metres (x to the right of the object's centre, y up from the floor) on a canvas of twice
the wanted resolution and then halved, which is the cheapest way to smooth edges with Pillow.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

Color = tuple[int, int, int]
Point = tuple[float, float]

HELMETS: tuple[Color, ...] = (
    (250, 208, 30),
    (245, 245, 240),
    (226, 52, 40),
    (244, 128, 28),
    (40, 104, 214),
    (50, 168, 84),
)
HAIR: tuple[Color, ...] = ((28, 22, 20), (60, 38, 24), (104, 68, 38), (150, 112, 62), (98, 96, 94), (44, 30, 26))
CAPS: tuple[Color, ...] = ((30, 34, 48), (52, 52, 54), (58, 44, 36), (44, 60, 48))
SKIN: tuple[Color, ...] = ((240, 204, 176), (222, 176, 140), (186, 132, 96), (132, 88, 60), (90, 60, 44))
JACKETS: tuple[Color, ...] = (
    (46, 62, 98), (80, 84, 88), (98, 40, 38), (60, 86, 64),
    (34, 36, 40), (128, 110, 84), (176, 178, 176), (52, 96, 130),
)  # fmt: skip
TROUSERS: tuple[Color, ...] = ((42, 50, 74), (60, 60, 62), (92, 82, 66), (34, 34, 38), (70, 84, 96))
VESTS: tuple[Color, ...] = ((196, 236, 40), (255, 122, 24), (240, 226, 40))
CARTON: tuple[Color, ...] = ((196, 152, 104), (178, 134, 88), (214, 178, 132), (208, 204, 196))

STEEL: Color = (70, 74, 80)
DARK: Color = (32, 33, 36)
REFLECTIVE: Color = (226, 230, 226)
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Worker:
    """How one worker looks; `phase` (radians) is the position in the walking cycle."""

    helmet: Color | None
    hair: Color
    cap: Color | None
    bald: bool
    vest: Color | None
    jacket: Color
    trousers: Color
    skin: Color
    view: str  # front | back | left | right
    pose: str  # stand | walk | carry | reach | crouch
    height: float
    phase: float


@dataclass(frozen=True)
class Sprite:
    """A drawn object; `foot` is the pixel inside `image` that touches the floor below the object's centre."""

    image: Image.Image
    foot: tuple[int, int]


def shade(color: Color, factor: float) -> Color:
    """The same colour, darker (below 1) or brighter (above 1)."""
    r, g, b = (max(0, min(255, int(c * factor))) for c in color)
    return r, g, b


class Pen:
    """Draws in metres on a transparent canvas that spans x in [-left, right], y in [0, top]."""

    def __init__(self, left: float, right: float, top: float, scale: float) -> None:
        self.scale = scale * SUPERSAMPLING
        self.left, self.top = left, top
        size = (self._even((left + right) * self.scale), self._even((top + 0.06) * self.scale))
        self.image = Image.new("RGBA", size, (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    @staticmethod
    def _even(length: float) -> int:
        return max(SUPERSAMPLING, math.ceil(length / SUPERSAMPLING) * SUPERSAMPLING)

    def at(self, point: Point) -> Point:
        return (point[0] + self.left) * self.scale, (self.top - point[1]) * self.scale

    def poly(self, points: Sequence[Point], color: Color) -> None:
        self.draw.polygon([self.at(p) for p in points], fill=color)

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        (a, b), (c, d) = self.at((min(x0, x1), max(y0, y1))), self.at((max(x0, x1), min(y0, y1)))
        self.draw.rectangle((a, b, c, d), fill=color)

    def oval(self, x: float, y: float, rx: float, ry: float, color: Color, arc: Point | None = None) -> None:
        (a, b), (c, d) = self.at((x - rx, y + ry)), self.at((x + rx, y - ry))
        if arc is None:
            self.draw.ellipse((a, b, c, d), fill=color)
        else:
            self.draw.chord((a, b, c, d), arc[0], arc[1], fill=color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        self.draw.line([self.at(p) for p in points], fill=color, width=max(1, round(width * self.scale)))

    def limb(self, points: Sequence[Point], width: float, color: Color) -> None:
        """A rounded tube: dark edge, brighter core towards the light (upper left)."""
        for w, c, dx in ((width, shade(color, 0.78), 0.0), (width * 0.66, color, -width * 0.1)):
            moved = [(x + dx, y) for x, y in points]
            self.line(moved, w, c)
            for x, y in moved:
                self.oval(x, y, w / 2, w / 2, c)

    def sprite(self) -> Sprite:
        x, y = self.at((0.0, 0.0))
        foot = (round(x / SUPERSAMPLING), round(y / SUPERSAMPLING))
        # Premultiplied while it is halved; otherwise the transparent black would darken every edge.
        return Sprite(self.image.convert("RGBa").reduce(SUPERSAMPLING).convert("RGBA"), foot)


def mirrored(sprite: Sprite) -> Sprite:
    """The same object seen from the other side."""
    return Sprite(ImageOps.mirror(sprite.image), (sprite.image.width - sprite.foot[0], sprite.foot[1]))


# ------------------------------------------------------------------------------------------------ workers


def random_worker(rng: random.Random, helmet: bool) -> Worker:
    """A worker of random looks; only `helmet` is decided by the caller."""
    pose = rng.choices(("stand", "walk", "carry", "reach", "crouch"), (3, 4, 1.5, 1.5, 0.8))[0]
    return Worker(
        helmet=rng.choices(HELMETS, (5, 4, 2, 2, 2, 1))[0] if helmet else None,
        hair=rng.choice(HAIR),
        cap=rng.choice(CAPS) if rng.random() < 0.2 else None,
        bald=rng.random() < 0.08,
        vest=rng.choice(VESTS) if rng.random() < 0.5 else None,
        jacket=rng.choice(JACKETS),
        trousers=rng.choice(TROUSERS),
        skin=rng.choice(SKIN),
        view=rng.choice(("front", "back", "left", "right")),
        pose=pose,
        height=rng.uniform(1.6, 1.95),
        phase=rng.uniform(0.0, math.tau),
    )


def draw_worker(worker: Worker, scale: float) -> Sprite:
    """Draws a worker at `scale` pixels per metre."""
    unit = worker.height / 1.8
    pen = Pen(0.62 * unit, 0.62 * unit, 2.1 * unit, scale)
    pen.scale *= unit  # from here on the figure is 1.8 m tall
    pen.left, pen.top = 0.62, 2.1
    side = worker.view in ("left", "right")
    drop = 0.42 if worker.pose == "crouch" else 0.0
    swing = math.sin(worker.phase) if worker.pose in ("walk", "carry") else 0.12
    _legs(pen, worker, side, swing, drop)
    if side:
        _arm(pen, worker, side, -1, swing, drop)
    _torso(pen, worker, side, drop)
    _head(pen, worker, side, drop)
    if not side:
        _arm(pen, worker, side, -1, swing, drop)
    _arm(pen, worker, side, 1, swing, drop)
    if worker.pose == "carry" and worker.view != "back":
        x = 0.32 if side else 0.0
        pen.rect(x - 0.22, 0.92, x + 0.22, 1.24, shade(CARTON[0], 0.9))
        pen.rect(x - 0.22, 1.18, x + 0.22, 1.24, CARTON[2])
        pen.rect(x - 0.03, 0.92, x + 0.03, 1.24, CARTON[1])
    sprite = pen.sprite()
    return mirrored(sprite) if worker.view == "left" else sprite


def _legs(pen: Pen, worker: Worker, side: bool, swing: float, drop: float) -> None:
    hip_y = 0.92 - drop
    for sign in (-1, 1):
        cloth = worker.trousers if sign > 0 else shade(worker.trousers, 0.82)
        if side:
            foot_x, lift = 0.3 * swing * sign, max(0.0, -0.12 * swing * sign)
            hip = (0.03 * sign, hip_y)
        else:
            foot_x, lift = 0.12 * sign, max(0.0, 0.1 * swing * sign)
            hip = (0.09 * sign, hip_y)
        ankle = (foot_x, 0.1 + lift)
        forward = 0.3 * drop / 0.42 if side else 0.14 * sign * drop / 0.42
        knee = ((hip[0] + ankle[0]) / 2 + forward + (0.05 if side else 0.0), (hip_y + ankle[1]) / 2 + 0.02 + 0.2 * drop)
        pen.limb((hip, knee, ankle), 0.17, cloth)
        toe = 0.07 if side else 0.0
        pen.oval(ankle[0] + toe, ankle[1] - 0.045, 0.14 if side else 0.085, 0.06, DARK)


def _torso(pen: Pen, worker: Worker, side: bool, drop: float) -> None:
    top, low = 1.47 - drop, 0.86 - drop
    shoulder, waist = (0.15, 0.135) if side else (0.235, 0.18)
    shape = [(-shoulder + 0.05, top), (shoulder - 0.05, top), (shoulder, top - 0.08), (waist, low), (-waist, low),
             (-shoulder, top - 0.08)]  # fmt: skip
    pen.poly(shape, shade(worker.jacket, 0.84))
    pen.poly([(x * 0.8 - 0.02, y) for x, y in shape], worker.jacket)
    if worker.vest is None:
        return
    vest = [(x * 1.03, min(y, top + 0.01)) for x, y in shape]
    pen.poly(vest, shade(worker.vest, 0.84))
    pen.poly([(x * 0.82 - 0.02, y) for x, y in vest], worker.vest)
    for y in (low + 0.1, low + 0.27):
        width = waist + (shoulder - waist) * (y - low) / (top - low)
        pen.rect(-width, y, width, y + 0.05, REFLECTIVE)
    if not side:
        for x in (-0.12, 0.12):
            pen.rect(x - 0.025, low + 0.3, x + 0.025, top - 0.01, REFLECTIVE)
        if worker.view == "front":
            pen.line(((0.0, low), (0.0, top)), 0.015, shade(worker.vest, 0.6))


def _arm(pen: Pen, worker: Worker, side: bool, sign: int, swing: float, drop: float) -> None:
    shoulder = (0.02 * sign if side else 0.235 * sign, 1.4 - drop)
    if worker.pose == "carry":
        elbow = (shoulder[0] + (0.08 if side else 0.05 * sign), 1.14)
        hand = (0.26, 1.0) if side else (0.2 * sign, 1.0)
    elif worker.pose == "reach" and sign > 0:
        elbow = (shoulder[0] + 0.2, 1.5)
        hand = (elbow[0] + 0.12, 1.78) if not side else (elbow[0] + 0.22, 1.6)
    elif side:
        bend = -0.24 * swing * sign + (0.2 if drop else 0.0)
        elbow = (shoulder[0] + bend * 0.7, 1.14 - drop)
        hand = (shoulder[0] + bend * 1.6 + 0.05, 0.9 - drop)
    else:
        elbow = (shoulder[0] + 0.06 * sign, 1.14 - drop)
        hand = (shoulder[0] + 0.03 * sign, 0.9 - drop + 0.05 * swing * sign)
    pen.limb((shoulder, elbow, hand), 0.115, worker.jacket if sign > 0 or not side else shade(worker.jacket, 0.8))
    pen.oval(hand[0], hand[1] - 0.03, 0.05, 0.06, worker.skin)


def _head(pen: Pen, worker: Worker, side: bool, drop: float) -> None:
    x, y = (0.03 if side else 0.0), 1.635 - drop
    pen.rect(x - 0.06, 1.43 - drop, x + 0.06, y - 0.02, shade(worker.skin, 0.8))
    if worker.view == "back":
        pen.oval(x, y, 0.115, 0.14, worker.skin if worker.bald else shade(worker.hair, 0.9))
        pen.oval(x, y - 0.1, 0.08, 0.05, shade(worker.skin, 0.9))
    else:
        pen.oval(x, y, 0.115, 0.14, shade(worker.skin, 0.86))
        pen.oval(x - 0.012, y, 0.095, 0.13, worker.skin)
    if side:
        pen.oval(x + 0.11, y - 0.02, 0.025, 0.025, worker.skin)
        pen.oval(x + 0.07, y + 0.01, 0.014, 0.016, DARK)
    elif worker.view == "front":
        for sign in (-1, 1):
            pen.oval(x + 0.042 * sign, y + 0.005, 0.014, 0.016, DARK)
        pen.rect(x - 0.03, y - 0.075, x + 0.03, y - 0.065, shade(worker.skin, 0.6))
    if worker.helmet is not None:
        _helmet(pen, x, y + 0.035, worker.helmet, side, worker.view)
    elif worker.cap is not None:
        pen.oval(x, y + 0.03, 0.122, 0.125, worker.cap, (180, 360))
        if worker.view != "back":
            pen.rect(
                x - (0.0 if side else 0.1), y + 0.02, x + (0.2 if side else 0.1), y + 0.045, shade(worker.cap, 0.7)
            )
    elif not worker.bald:
        pen.oval(x, y + 0.03, 0.125, 0.125, worker.hair, (180, 360))
        if side:
            pen.oval(x - 0.05, y + 0.01, 0.08, 0.13, worker.hair)


def _helmet(pen: Pen, x: float, y: float, color: Color, side: bool, view: str) -> None:
    pen.oval(x, y, 0.155, 0.165, shade(color, 0.8), (180, 360))
    pen.oval(x - 0.015, y + 0.003, 0.128, 0.15, color, (180, 360))
    pen.oval(x - 0.05, y + 0.09, 0.04, 0.04, shade(color, 1.25))
    front, back = (0.235, 0.15) if side else (0.18, 0.18)
    if view == "back":
        front = back = 0.165
    pen.rect(x - back, y - 0.02, x + front, y + 0.015, shade(color, 0.86))
    if not side:
        pen.rect(x - 0.022, y + 0.02, x + 0.022, y + 0.165, shade(color, 0.9))
