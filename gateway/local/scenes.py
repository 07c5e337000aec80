"""Renders industrial scenes together with the truth about them.

The sample models are trained and tested on these pictures and the demo camera publishes them. A scene is a floor
seen by a camera some three metres up: everything has a place on the floor in metres, perspective follows from that.
The same seed always gives the same scene; the seed ranges below keep training, validation and test scenes apart.
"""

# ruff: noqa: S311  pictures need numbers that come again, not secret ones
import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from gateway.local import props, sprites
from gateway.local.backdrop import draw_backdrop, light_map, sensor_noise

TRAIN_SEEDS = range(100_000, 200_000)
VALIDATION_SEEDS = range(200_000, 210_000)
TEST_SEEDS = range(210_000, 220_000)

DETECTOR_CLASSES = ("person_with_helmet", "person_without_helmet", "forklift")
WALKWAY_CLASSES = ("walkway_clear", "walkway_blocked")

WalkwayState = Literal["walkway_clear", "walkway_blocked"]
Box = tuple[float, float, float, float]

# An object of which less than this is seen is no part of the truth: nobody could expect it to be found.
MIN_VISIBLE = 0.35
MIN_VISIBLE_HEAD = 0.55
# While a scene is planned, on bounding boxes, nothing that matters may be hidden more than this by any one thing.
MAX_HIDDEN = 0.45
BLOCKERS = ("pallets", "goods", "crate", "drum", "forklift")
NEAR, FAR = 5.0, 12.2
_MASK = 4  # occlusion is worked out on a grid of this many pixels
_OPAQUE = [0] * 96 + [255] * 160  # alpha -> whether a cell counts as covered


@dataclass(frozen=True)
class SceneObject:
    """One object that a detector should find; `bbox` is x1, y1, x2, y2 of the part in view, in pixels."""

    class_name: str
    bbox: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture and the truth about it."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    walkway: WalkwayState


@dataclass(frozen=True)
class View:
    """A pinhole camera: `focal` and `horizon` in pixels, `height` in metres above the floor."""

    width: int
    frame_height: int
    focal: float
    horizon: float
    height: float

    def project(self, x: float, z: float) -> tuple[float, float, float]:
        """Floor position in metres -> pixel position and pixels per metre there."""
        scale = self.focal / z
        return self.width / 2 + x * scale, self.horizon + self.height * scale, scale


@dataclass(frozen=True)
class Walkway:
    """A marked strip of floor, away from the camera (`along`) or across the picture."""

    along: bool
    offset: float
    width: float
    slope: float

    def distance(self, x: float, z: float) -> float:
        """Metres from the middle line of the strip."""
        return abs((x - self.offset - self.slope * (z - 8.0)) if self.along else (z - self.offset))

    def band(self, start: float, end: float, z_far: float) -> list[tuple[float, float]]:
        """The floor polygon between two distances (signed) from the middle line."""
        if self.along:
            far, near = self.slope * (z_far - 8.0), self.slope * (3.4 - 8.0)
            o = self.offset
            return [(o + start + near, 3.4), (o + end + near, 3.4), (o + end + far, z_far), (o + start + far, z_far)]
        return [
            (-14.0, self.offset + start),
            (14.0, self.offset + start),
            (14.0, self.offset + end),
            (-14.0, self.offset + end),
        ]


@dataclass(frozen=True)
class Item:
    """Something standing on the floor. `sway` is how far it moves to and fro in a sequence, in metres."""

    kind: str
    x: float
    z: float
    half_width: float
    tall: float
    seed: int
    worker: sprites.Worker | None = None
    facing: str = ""
    sway: tuple[float, float] = (0.0, 0.0)

    def blocks(self, walkway: Walkway) -> bool:
        """Whether it stands on the walkway; people walk there, they do not block it."""
        return self.worker is None and walkway.distance(self.x, self.z) < walkway.width / 2

    def box(self, view: View) -> Box:
        x, y, scale = view.project(self.x, self.z)
        return x - self.half_width * scale, y - self.tall * scale, x + self.half_width * scale, y

    def head(self, view: View) -> Box:
        x, y, scale = view.project(self.x, self.z)
        return x - 0.16 * scale, y - self.tall * scale, x + 0.16 * scale, y - (self.tall - 0.34) * scale


@dataclass(frozen=True)
class Plan:
    """What stands where, before anything is drawn."""

    seed: int
    view: View
    walkway: Walkway
    items: tuple[Item, ...]


def render_scene(seed: int, size: tuple[int, int] = (1920, 1080)) -> Scene:
    """The scene of this seed."""
    return render_sequence(seed, 0, size)


def render_sequence(seed: int, frame: int, size: tuple[int, int] = (1920, 1080)) -> Scene:
    """Frame `frame` of the scene of this seed: people walk and forklifts roll, slowly, to and fro."""
    plan = _plan(seed, size)
    items = sorted((_moved(item, frame) for item in plan.items), key=lambda item: -item.z)
    image = _backdrop(plan).copy()
    objects = _draw(plan, items, image)
    blocked = any(item.blocks(plan.walkway) for item in items)
    state: WalkwayState = "walkway_blocked" if blocked else "walkway_clear"
    return Scene(_exposed(image, seed, frame), objects, state)


# ---------------------------------------------------------------------------------------------- planning


def _coverage(front: Box, behind: Box) -> float:
    """The share of `behind` that `front` hides."""
    width = min(front[2], behind[2]) - max(front[0], behind[0])
    height = min(front[3], behind[3]) - max(front[1], behind[1])
    area = (behind[2] - behind[0]) * (behind[3] - behind[1])
    return max(0.0, width) * max(0.0, height) / area


def _fits(item: Item, others: list[Item], view: View, walkway: Walkway) -> bool:
    """Whether the item stands free of the others and hides, or has hidden, nothing that must be recognised."""
    for other in others:
        apart = abs(item.x - other.x) / (item.half_width + other.half_width)
        if apart < 0.9 and abs(item.z - other.z) < 0.7:
            return False
        front, behind = (item, other) if item.z < other.z else (other, item)
        if behind.worker is not None and _coverage(front.box(view), behind.head(view)) > 0.25:
            return False
        if _looks_worn(item, other, view) or _looks_worn(other, item, view):
            return False
        matters = behind.kind in ("worker", "forklift") or behind.blocks(walkway)
        if matters and _coverage(front.box(view), behind.box(view)) > MAX_HIDDEN:
            return False
    return True


def _looks_worn(ball: Item, worker: Item, view: View) -> bool:
    """Whether a ball sits so close to a head, before or behind it, that it could pass for a helmet."""
    if ball.kind != "ball" or worker.worker is None:
        return False
    x1, y1, x2, y2 = worker.head(view)
    return _coverage(ball.box(view), (x1, y1 - (y2 - y1) * 0.3, x2, y2)) > 0.0


def _place(rng: random.Random, view: View, far: float = FAR) -> tuple[float, float]:
    """A random spot in the picture; evenly over the picture's depth rather than over the floor's area."""
    z = 1.0 / rng.uniform(1.0 / far, 1.0 / NEAR)
    reach = view.width / 2 * z / view.focal
    return rng.uniform(-0.97, 0.97) * reach, z


def _new_item(rng: random.Random, kind: str, helmet: bool = False) -> Item:
    seed = rng.getrandbits(32)
    if kind == "worker":
        worker = sprites.random_worker(rng, helmet)
        tall = worker.height * (0.77 if worker.pose == "crouch" else 1.0)
        sway = (rng.uniform(0.3, 0.9) * rng.choice((-1, 1)), 0.0) if worker.pose in ("walk", "carry") else (0.0, 0.0)
        if sway[0] and worker.view in ("front", "back"):
            sway = (0.0, sway[0])
        return Item(kind, 0.0, 0.0, 0.3, tall, seed, worker, sway=sway)
    if kind == "forklift":
        facing = rng.choice(("left", "right", "left", "right", "front", "back"))
        lateral = facing in ("left", "right")
        step = rng.uniform(-0.35, 0.35)
        sway = (step, 0.0) if lateral else (0.0, step)
        return Item(kind, 0.0, 0.0, 1.6 if lateral else 0.65, 2.25, seed, None, facing, sway)
    half_width = {"drum": 0.3, "cone": 0.24, "ball": 0.2, "bollard": 0.12, "shelf": 0.95, "jack": 0.8}.get(kind, 0.6)
    return Item(kind, 0.0, 0.0, half_width, _height(kind, seed), seed)


def _height(kind: str, seed: int) -> float:
    """How tall a thing of random build is, read off a tiny drawing of it."""
    coarse = 20.0
    sprite = props.CLUTTER[kind](random.Random(seed), coarse)
    inner = sprite.image.getbbox()
    return (sprite.foot[1] - inner[1]) / coarse if inner else 0.0


@lru_cache(maxsize=16)
def _plan(seed: int, size: tuple[int, int]) -> Plan:
    rng = random.Random(seed)
    width, height = size
    focal = width * rng.uniform(0.62, 0.74)
    view = View(width, height, focal, height * rng.uniform(0.16, 0.27), rng.uniform(2.7, 3.3))
    along = rng.random() < 0.75
    walkway = Walkway(
        along,
        rng.uniform(-2.4, 2.4) if along else rng.uniform(6.3, 8.5),
        rng.uniform(1.35, 1.9),
        rng.uniform(-0.22, 0.22),
    )
    items: list[Item] = []
    if rng.random() < 0.5:
        _block(rng, view, walkway, items)
    wishes = ["forklift"] * rng.choices((0, 1, 2), (4, 5, 2))[0]
    wishes += ["worker"] * rng.choices((0, 1, 2, 3, 4, 5, 6), (1, 3, 5, 5, 4, 3, 2))[0]
    wishes += rng.choices(tuple(props.CLUTTER), k=rng.randint(3, 9))
    for kind in wishes:
        item = _new_item(rng, kind, rng.random() < 0.5)
        for _ in range(14):
            x, z = _place(rng, view, 13.5 if kind not in ("worker", "forklift") else FAR)
            item = replace(item, x=x, z=z)
            room = 0.15 + (item.half_width if along else 0.45) + abs(item.sway[0 if along else 1])
            free = walkway.distance(x, z) > walkway.width / 2 + room
            if (kind == "worker" or free) and _fits(item, items, view, walkway):
                items.append(item)
                break
    return Plan(seed, view, walkway, tuple(items))


def _block(rng: random.Random, view: View, walkway: Walkway, items: list[Item]) -> None:
    """Puts one to three things onto the walkway, where the camera sees them."""
    for kind in rng.choices(BLOCKERS, (3, 3, 3, 1.5, 2.5), k=rng.randint(1, 3)):
        item = replace(_new_item(rng, kind), sway=(0.0, 0.0))
        for _ in range(20):
            shift = rng.uniform(-0.25, 0.25) * walkway.width
            if walkway.along:
                z = rng.uniform(NEAR + 0.4, 10.5)
                x = walkway.offset + walkway.slope * (z - 8.0) + shift
            else:
                z = walkway.offset + shift
                x = rng.uniform(-0.8, 0.8) * view.width / 2 * z / view.focal
            item = replace(item, x=x, z=z)
            if abs(view.project(x, z)[0] - view.width / 2) < view.width * 0.46 and _fits(item, items, view, walkway):
                items.append(item)
                break


def _moved(item: Item, frame: int) -> Item:
    if frame == 0 or item.sway == (0.0, 0.0):
        return item
    start = (item.seed % 628) / 100.0
    angle = start + frame * 0.09
    shift = math.sin(angle) - math.sin(start)
    worker = item.worker
    if worker is not None:
        worker = replace(worker, phase=worker.phase + frame * 0.55)
        ahead = math.cos(angle) * (item.sway[0] or item.sway[1]) > 0
        view = ("right" if ahead else "left") if item.sway[0] else ("back" if ahead else "front")
        worker = replace(worker, view=view)
        shift *= 0.5
    return replace(item, x=item.x + item.sway[0] * shift, z=item.z + item.sway[1] * shift, worker=worker)


# ----------------------------------------------------------------------------------------------- drawing


def _sprite(item: Item, scale: float) -> sprites.Sprite:
    if item.worker is not None:
        return sprites.draw_worker(item.worker, scale)
    rng = random.Random(item.seed)
    if item.kind == "forklift":
        return props.draw_forklift(rng, item.facing, scale)
    return props.CLUTTER[item.kind](rng, scale)


def _draw(plan: Plan, items: list[Item], image: Image.Image) -> tuple[SceneObject, ...]:
    """Paints from far to near; a second, coarse picture records whose pixels are in view."""
    width, height = image.size
    owners = Image.new("L", (math.ceil(width / _MASK), math.ceil(height / _MASK)), 0)
    drawn: list[tuple[Item, Box, int]] = []
    for number, item in enumerate(items, start=1):
        x, y, scale = plan.view.project(item.x, item.z)
        _shadow(image, x, y, item.half_width * scale)
        sprite = _sprite(item, scale)
        left, top = round(x) - sprite.foot[0], round(y) - sprite.foot[1]
        image.paste(sprite.image, (left, top), sprite.image)
        alpha = sprite.image.getchannel("A")
        small = alpha.reduce(_MASK).point(_OPAQUE)
        owners.paste(number, (left // _MASK, top // _MASK), small)
        x1, y1, x2, y2 = alpha.getbbox() or (0, 0, 0, 0)
        clipped = (max(0, left + x1), max(0, top + y1), min(width, left + x2), min(height, top + y2))
        drawn.append((item, clipped, int(np.count_nonzero(np.asarray(small)))))
    return _truth(plan, drawn, np.asarray(owners))


def _truth(plan: Plan, drawn: list[tuple[Item, Box, int]], owners: NDArray[np.uint8]) -> tuple[SceneObject, ...]:
    """The objects that can be recognised; `drawn` has each item's box in the picture and its area in cells."""
    objects: list[SceneObject] = []
    for number, (item, full, area) in enumerate(drawn, start=1):
        if item.kind not in ("worker", "forklift") or area == 0:
            continue
        rows, columns = np.nonzero(owners == number)
        if len(rows) < MIN_VISIBLE * area:
            continue
        if item.worker is not None and _head_visible(item, plan.view, owners, number) < MIN_VISIBLE_HEAD:
            continue
        seen = (columns.min() * _MASK, rows.min() * _MASK, (columns.max() + 1) * _MASK, (rows.max() + 1) * _MASK)
        # The grid is coarse: it only counts where it says that a whole side is hidden.
        slack = 2 * _MASK
        x1, y1 = (s if s > f + slack else f for s, f in zip(seen[:2], full[:2], strict=True))
        x2, y2 = (s if s < f - slack else f for s, f in zip(seen[2:], full[2:], strict=True))
        name = "forklift" if item.worker is None else DETECTOR_CLASSES[0 if item.worker.helmet else 1]
        objects.append(SceneObject(name, (int(x1), int(y1), int(x2), int(y2))))
    return tuple(objects)


def _head_visible(item: Item, view: View, owners: NDArray[np.uint8], number: int) -> float:
    """The share of a head that is in view; about 0.85 of the box around a free one is head."""
    x1, y1, x2, y2 = (v / _MASK for v in item.head(view))
    inner = (x1 + (x2 - x1) * 0.2, x2 - (x2 - x1) * 0.2)
    if inner[0] < 0 or inner[1] > owners.shape[1] or y1 < 0:
        return 0.0
    patch = owners[int(y1) : math.ceil(y2), int(inner[0]) : math.ceil(inner[1])]
    return float(np.mean(patch == number)) / 0.85 if patch.size else 0.0


@lru_cache(maxsize=1)
def _soft_disc() -> Image.Image:
    y, x = np.mgrid[-1:1:32j, -1:1:96j]
    return Image.fromarray((np.clip(1.0 - (x * x + y * y), 0.0, 1.0) ** 0.8 * 150).astype(np.uint8))


def _shadow(image: Image.Image, x: float, y: float, half_width: float) -> None:
    width, height = max(4, round(half_width * 2.9)), max(3, round(half_width * 0.75))
    image.paste((16, 17, 20), (round(x - width / 2), round(y - height / 2)), _soft_disc().resize((width, height)))


@lru_cache(maxsize=3)
def _backdrop_of(seed: int, size: tuple[int, int]) -> Image.Image:
    plan = _plan(seed, size)
    return draw_backdrop(seed, plan.view, plan.walkway)


def _backdrop(plan: Plan) -> Image.Image:
    return _backdrop_of(plan.seed, (plan.view.width, plan.view.frame_height))


def _exposed(image: Image.Image, seed: int, frame: int) -> Image.Image:
    """Light and lens: colour temperature, gradients and gain, then slight blur, then sensor noise."""
    rng = random.Random(seed ^ 0x5EED)
    image = ImageChops.multiply(image, light_map(seed, image.size))
    contrast, lift = rng.uniform(0.85, 1.15), rng.uniform(-8.0, 14.0)
    curve = [max(0, min(255, round((v - 110) * contrast + 110 + lift))) for v in range(256)]
    image = image.point(curve * 3)
    blur = rng.choice((0.0, 0.0, 0.0, 0.5, 1.0, 1.4))
    if blur:
        image = image.filter(ImageFilter.BoxBlur(blur))
    return sensor_noise(image, rng.choice((1, 2, 3)), seed + frame * 7919)
