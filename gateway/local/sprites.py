"""Draws the things that stand in a scene: workers, forklifts and clutter.

Everything is drawn in metres (x to the right of the object's centre, y up from the floor) on a canvas of twice
the wanted resolution and then halved, which is the cheapest way to smooth edges with Pillow.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

Color = tuple[int, int, int]
Point = tuple[float, float]

HELMETS: tuple[Color, ...] = ((250, 208, 30), (245, 245, 240), (226, 52, 40), (244, 128, 28), (40, 104, 214), (50, 168, 84))
HAIR: tuple[Color, ...] = ((28, 22, 20), (60, 38, 24), (104, 68, 38), (150, 112, 62), (98, 96, 94), (44, 30, 26))
CAPS: tuple[Color, ...] = ((30, 34, 48), (52, 52, 54), (58, 44, 36), (44, 60, 48))
SKIN: tuple[Color, ...] = ((240, 204, 176), (222, 176, 140), (186, 132, 96), (132, 88, 60), (90, 60, 44))
JACKETS: tuple[Color, ...] = (
    (46, 62, 98), (80, 84, 88), (98, 40, 38), (60, 86, 64), (34, 36, 40), (128, 110, 84), (176, 178, 176), (52, 96, 130),
)  # fmt: skip
TROUSERS: tuple[Color, ...] = ((42, 50, 74), (60, 60, 62), (92, 82, 66), (34, 34, 38), (70, 84, 96))
VESTS: tuple[Color, ...] = ((196, 236, 40), (255, 122, 24), (240, 226, 40))
TRUCKS: tuple[Color, ...] = ((246, 186, 24), (238, 112, 26), (206, 44, 38), (52, 128, 84), (66, 104, 168), (214, 214, 208))
WOOD: tuple[Color, ...] = ((190, 148, 98), (168, 126, 80), (206, 168, 118))
CARTON: tuple[Color, ...] = ((196, 152, 104), (178, 134, 88), (214, 178, 132), (208, 204, 196))
DRUMS: tuple[Color, ...] = ((38, 88, 168), (184, 44, 40), (238, 196, 36), (46, 120, 76), (64, 66, 70))

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
            pen.rect(x - (0.0 if side else 0.1), y + 0.02, x + (0.2 if side else 0.1), y + 0.045, shade(worker.cap, 0.7))
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


# --------------------------------------------------------------------------------------------- forklifts


def draw_forklift(rng: random.Random, view: str, scale: float) -> Sprite:
    """A forklift, `view` left, right, front or back."""
    color = rng.choice(TRUCKS)
    lift, load = rng.choice((0.0, 0.0, 0.25, 0.9)), rng.random() < 0.45
    if view in ("left", "right"):
        sprite = _forklift_side(rng, color, lift, load, scale)
        return mirrored(sprite) if view == "left" else sprite
    return _forklift_end(color, view == "front", lift, load, scale)


def _wheel(pen: Pen, x: float, radius: float) -> None:
    pen.oval(x, radius, radius, radius, DARK)
    pen.oval(x, radius, radius * 0.58, radius * 0.58, (150, 152, 154))
    pen.oval(x, radius, radius * 0.3, radius * 0.3, STEEL)


def _forklift_side(rng: random.Random, color: Color, lift: float, load: bool, scale: float) -> Sprite:
    pen = Pen(1.4, 2.45, 2.6, scale)
    pen.poly(((-1.15, 0.25), (-1.28, 0.55), (-1.22, 0.98), (-0.95, 1.1), (-0.35, 1.1), (-0.28, 0.62), (0.5, 0.62),
              (0.68, 1.02), (0.95, 1.02), (0.98, 0.25)), color)  # fmt: skip
    pen.poly(((-1.15, 0.25), (-1.28, 0.55), (-1.24, 0.86), (-0.72, 0.8), (-0.6, 0.25)), shade(color, 0.72))
    pen.rect(-0.3, 0.36, 0.55, 0.62, shade(color, 0.85))
    for i in range(4):
        pen.poly([(x + i * 0.14, y) for x, y in ((-1.2, 0.88), (-1.13, 0.88), (-1.06, 0.96), (-1.13, 0.96))], DARK)
    pen.limb(((-0.42, 1.16), (0.0, 1.16)), 0.13, DARK)
    pen.limb(((-0.42, 1.16), (-0.5, 1.55)), 0.12, DARK)
    pen.line(((0.62, 1.0), (0.42, 1.32)), 0.05, STEEL)
    pen.line(((0.32, 1.24), (0.52, 1.4)), 0.05, DARK)
    for pillar in (((-0.98, 1.08), (-0.78, 2.12)), ((0.82, 1.0), (0.42, 2.12))):
        pen.line(pillar, 0.08, shade(DARK, 1.4))
    pen.rect(-0.88, 2.08, 0.52, 2.17, DARK)
    pen.rect(-0.2, 2.17, -0.08, 2.3, (255, 150, 30))
    _wheel(pen, -0.78, 0.27)
    _wheel(pen, 0.62, 0.34)
    pen.rect(1.0, 0.1, 1.09, 2.3 if lift < 0.5 else 2.55, STEEL)
    pen.rect(1.11, 0.1, 1.18, 2.2 if lift < 0.5 else 2.5, shade(STEEL, 0.75))
    pen.rect(1.16, 0.12 + lift, 1.24, 0.75 + lift, DARK)
    pen.poly(((1.2, 0.1 + lift), (2.3, 0.1 + lift), (2.3, 0.14 + lift), (1.2, 0.19 + lift)), shade(STEEL, 0.8))
    if load:
        pen.rect(1.26, 0.17 + lift, 2.28, 0.3 + lift, shade(WOOD[0], 0.8))
        goods = rng.choice(CARTON)
        pen.rect(1.3, 0.3 + lift, 2.24, 0.98 + lift, goods)
        pen.rect(1.76, 0.3 + lift, 1.79, 0.98 + lift, shade(goods, 0.7))
    return pen.sprite()


def _forklift_end(color: Color, front: bool, lift: float, load: bool, scale: float) -> Sprite:
    pen = Pen(0.85, 0.85, 2.6, scale)
    for sign in (-1, 1):
        pen.rect(sign * 0.42, 0.0, sign * 0.68, 0.6, DARK)
        pen.line(((sign * 0.5, 1.0), (sign * 0.44, 2.12)), 0.09, shade(DARK, 1.4))
    pen.poly(((-0.56, 0.2), (-0.6, 0.95), (-0.5, 1.12), (0.5, 1.12), (0.6, 0.95), (0.56, 0.2)), color)
    pen.rect(-0.52, 2.06, 0.52, 2.17, DARK)
    pen.rect(0.1, 2.17, 0.22, 2.3, (255, 150, 30))
    pen.limb(((-0.18, 1.5), (0.18, 1.5)), 0.3, shade(DARK, 1.2))
    if not front:
        pen.poly(((-0.54, 0.25), (-0.6, 0.75), (0.6, 0.75), (0.54, 0.25)), shade(color, 0.74))
        for sign in (-1, 1):
            pen.rect(sign * 0.36, 0.86, sign * 0.52, 0.96, (220, 40, 34))
        pen.rect(-0.2, 0.84, 0.2, 1.0, shade(color, 0.5))
        return pen.sprite()
    top = 2.3 if lift < 0.5 else 2.55
    for sign in (-1, 1):
        pen.rect(sign * 0.26, 0.08, sign * 0.38, top, STEEL)
        pen.rect(sign * 0.42, 0.86, sign * 0.54, 0.98, (255, 250, 220))
    for y in (0.55, 1.5, top - 0.06):
        pen.rect(-0.38, y, 0.38, y + 0.09, shade(STEEL, 0.8))
    pen.rect(-0.5, 0.2 + lift, 0.5, 0.3 + lift, DARK)
    pen.rect(-0.5, 0.6 + lift, 0.5, 0.7 + lift, DARK)
    for sign in (-1, 1):
        pen.rect(sign * 0.2, 0.08 + lift, sign * 0.34, 0.72 + lift, shade(STEEL, 0.6))
    if load:
        pen.rect(-0.6, 0.12 + lift, 0.6, 0.26 + lift, shade(WOOD[0], 0.8))
        pen.rect(-0.56, 0.26 + lift, 0.56, 0.9 + lift, CARTON[0])
        pen.rect(-0.04, 0.26 + lift, 0.04, 0.9 + lift, CARTON[2])
    return pen.sprite()


# ----------------------------------------------------------------------------------------------- clutter


def _box(pen: Pen, x0: float, y0: float, x1: float, y1: float, color: Color, depth: float = 0.18) -> None:
    """A box seen slightly from above: front face and a top face that narrows to the back."""
    inset = depth * 0.5
    pen.poly(((x0, y1), (x0 + inset, y1 + depth), (x1 - inset, y1 + depth), (x1, y1)), shade(color, 1.16))
    pen.rect(x0, y0, x1, y1, color)
    pen.rect(x1 - (x1 - x0) * 0.12, y0, x1, y1, shade(color, 0.88))


def _pallets(rng: random.Random, scale: float) -> Sprite:
    count = rng.randint(1, 5)
    pen = Pen(0.65, 0.65, 0.15 * count + 0.25, scale)
    wood = rng.choice(WOOD)
    for i in range(count):
        y = i * 0.15
        pen.rect(-0.6, y, 0.6, y + 0.14, shade(wood, 0.42))
        for x in (-0.6, -0.1, 0.4):
            pen.rect(x, y, x + 0.2, y + 0.1, shade(wood, 0.8))
        _box(pen, -0.6, y + 0.1, 0.6, y + 0.14, wood, 0.2 if i == count - 1 else 0.02)
    for i in range(5):
        x = -0.5 + i * 0.22
        pen.line(((x, count * 0.15 - 0.01), (x * 0.84, count * 0.15 + 0.18)), 0.02, shade(wood, 0.6))
    return pen.sprite()


def _goods(rng: random.Random, scale: float) -> Sprite:
    rows, columns = rng.randint(1, 3), rng.randint(2, 3)
    pen = Pen(0.7, 0.7, 0.2 + rows * 0.42 + 0.25, scale)
    pen.rect(-0.62, 0.0, 0.62, 0.15, shade(WOOD[1], 0.6))
    pen.rect(-0.62, 0.1, 0.62, 0.15, WOOD[0])
    width = 1.16 / columns
    for row in range(rows):
        for column in range(columns - (1 if row == rows - 1 and rng.random() < 0.4 else 0)):
            color, x = rng.choice(CARTON), -0.58 + column * width
            _box(pen, x, 0.15 + row * 0.42, x + width - 0.02, 0.55 + row * 0.42, color, 0.14)
            middle = x + width / 2
            pen.rect(middle - 0.03, 0.15 + row * 0.42, middle + 0.03, 0.55 + row * 0.42, shade(color, 0.85))
    return pen.sprite()


def _crate(rng: random.Random, scale: float) -> Sprite:
    height, wood = rng.uniform(0.5, 1.0), rng.choice(WOOD)
    pen = Pen(0.6, 0.6, height + 0.3, scale)
    _box(pen, -0.5, 0.0, 0.5, height, wood, 0.24)
    for i in range(1, 5):
        y = height * i / 5
        pen.line(((-0.5, y), (0.5, y)), 0.015, shade(wood, 0.6))
    for x in (-0.5, 0.4):
        pen.rect(x, 0.0, x + 0.1, height, shade(wood, 0.86))
    pen.line(((-0.4, 0.05), (0.4, height - 0.05)), 0.08, shade(wood, 0.8))
    return pen.sprite()


def _drum(rng: random.Random, scale: float) -> Sprite:
    color = rng.choice(DRUMS)
    pen = Pen(0.35, 0.35, 1.05, scale)
    pen.oval(0.0, 0.07, 0.3, 0.07, shade(color, 0.7))
    pen.rect(-0.3, 0.07, 0.3, 0.88, shade(color, 0.8))
    pen.rect(-0.24, 0.07, 0.05, 0.88, color)
    pen.rect(-0.18, 0.07, -0.1, 0.88, shade(color, 1.2))
    for y in (0.33, 0.6):
        pen.rect(-0.31, y, 0.31, y + 0.03, shade(color, 0.65))
    pen.oval(0.0, 0.88, 0.3, 0.08, shade(color, 0.62))
    pen.oval(0.0, 0.885, 0.26, 0.06, shade(color, 0.9))
    return pen.sprite()


def _cone(rng: random.Random, scale: float) -> Sprite:
    color: Color = rng.choice(((255, 110, 30), (250, 90, 40), (236, 210, 40)))
    pen = Pen(0.3, 0.3, 0.8, scale)
    pen.poly(((-0.24, 0.0), (0.24, 0.0), (0.2, 0.07), (-0.2, 0.07)), shade(color, 0.7))
    pen.poly(((-0.16, 0.06), (0.16, 0.06), (0.03, 0.72), (-0.03, 0.72)), color)
    pen.poly(((-0.115, 0.25), (0.115, 0.25), (0.083, 0.42), (-0.083, 0.42)), REFLECTIVE)
    return pen.sprite()


def _ball(rng: random.Random, scale: float) -> Sprite:
    """A round yellow, white or red thing on a post: what a careless model takes for a helmet."""
    color, height, radius = rng.choice(HELMETS), rng.choice((0.0, 0.9, 1.3)), rng.uniform(0.1, 0.2)
    pen = Pen(0.25, 0.25, height + 0.5, scale)
    if height:
        pen.oval(0.0, 0.02, 0.16, 0.04, DARK)
        pen.rect(-0.035, 0.02, 0.035, height, STEEL)
    pen.oval(0.0, height + radius, radius, radius, shade(color, 0.8))
    pen.oval(-0.02, height + radius + 0.015, radius * 0.78, radius * 0.78, color)
    return pen.sprite()


def _bollard(rng: random.Random, scale: float) -> Sprite:
    pen = Pen(0.2, 0.2, 1.2, scale)
    pen.limb(((0.0, 0.08), (0.0, 1.0)), 0.2, (242, 196, 30))
    for y in (0.3, 0.62):
        pen.rect(-0.1, y, 0.1, y + 0.15, DARK)
    return pen.sprite()


def _jack(rng: random.Random, scale: float) -> Sprite:
    """A hand pallet truck: painted like a forklift and much smaller."""
    color = rng.choice(TRUCKS)
    pen = Pen(0.9, 0.9, 1.35, scale)
    pen.rect(-0.2, 0.1, 0.85, 0.2, color)
    pen.rect(-0.4, 0.1, -0.15, 0.5, shade(color, 0.85))
    pen.oval(-0.3, 0.1, 0.1, 0.1, DARK)
    pen.oval(0.7, 0.07, 0.07, 0.07, DARK)
    pen.line(((-0.32, 0.5), (-0.55, 1.2)), 0.05, STEEL)
    pen.line(((-0.68, 1.2), (-0.42, 1.25)), 0.06, DARK)
    sprite = pen.sprite()
    return mirrored(sprite) if rng.random() < 0.5 else sprite


def _shelf(rng: random.Random, scale: float) -> Sprite:
    """A free-standing rack filled with boxes."""
    pen = Pen(1.0, 1.0, 2.3, scale)
    for level in range(3):
        y, x = 0.12 + level * 0.7, -0.88
        while x < 0.7:
            width, color = rng.uniform(0.22, 0.5), rng.choice(CARTON + DRUMS)
            if rng.random() < 0.8:
                pen.rect(x, y + 0.05, min(x + width, 0.88), y + rng.uniform(0.25, 0.55), shade(color, 0.8))
            x += width + 0.03
        pen.rect(-0.95, y, 0.95, y + 0.06, (226, 120, 36))
    for x in (-0.95, 0.88):
        pen.rect(x, 0.0, x + 0.07, 2.25, (48, 78, 130))
    return pen.sprite()


BLOCKERS: dict[str, Callable[[random.Random, float], Sprite]] = {"pallets": _pallets, "goods": _goods, "crate": _crate, "drum": _drum}
CLUTTER: dict[str, Callable[[random.Random, float], Sprite]] = {
    **BLOCKERS, "cone": _cone, "ball": _ball, "bollard": _bollard, "jack": _jack, "shelf": _shelf,
}  # fmt: skip
