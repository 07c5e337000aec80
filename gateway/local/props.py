"""Draws the things in a scene: forklifts, and the clutter that a detector must not take for anything else."""

import random
from collections.abc import Callable

from gateway.local.sprites import CARTON, DARK, HELMETS, REFLECTIVE, STEEL, Color, Pen, Sprite, mirrored, shade

TRUCKS: tuple[Color, ...] = (
    (246, 186, 24),
    (238, 112, 26),
    (206, 44, 38),
    (52, 128, 84),
    (66, 104, 168),
    (214, 214, 208),
)
WOOD: tuple[Color, ...] = ((190, 148, 98), (168, 126, 80), (206, 168, 118))
DRUMS: tuple[Color, ...] = ((38, 88, 168), (184, 44, 40), (238, 196, 36), (46, 120, 76), (64, 66, 70))


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


CLUTTER: dict[str, Callable[[random.Random, float], Sprite]] = {
    "pallets": _pallets,
    "goods": _goods,
    "crate": _crate,
    "drum": _drum,
    "cone": _cone,
    "ball": _ball,
    "bollard": _bollard,
    "jack": _jack,
    "shelf": _shelf,
}
