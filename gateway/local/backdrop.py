"""Draws the hall in which a scene plays (floor, markings, wall, ceiling), its light and the camera's noise."""

# ruff: noqa: S311  pictures need numbers that come again, not secret ones
import random
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from gateway.local.props import DRUMS
from gateway.local.sprites import CARTON, Color, shade

if TYPE_CHECKING:
    from gateway.local.scenes import View, Walkway

FLOORS: tuple[Color, ...] = (
    (150, 152, 150),
    (132, 136, 140),
    (164, 158, 146),
    (118, 128, 124),
    (142, 148, 158),
    (110, 110, 112),
)
WALLS: tuple[Color, ...] = (
    (196, 200, 202),
    (172, 180, 186),
    (206, 198, 180),
    (148, 162, 172),
    (184, 186, 178),
    (128, 140, 136),
)
MARKINGS: tuple[Color, ...] = ((250, 206, 40), (244, 240, 226), (250, 206, 40))
FILLS: tuple[Color | None, ...] = (None, None, (92, 148, 104), (116, 142, 168), (176, 168, 96))
WALL_AT = 17.0  # metres from the camera


def draw_backdrop(seed: int, view: "View", walkway: "Walkway") -> Image.Image:
    """The empty hall, in full light."""
    rng = random.Random(seed ^ 0xBACD)
    width, height = view.width, view.frame_height
    floor_line = round(view.project(0.0, WALL_AT)[1])
    image = _floor(rng, width, height, floor_line)
    draw = ImageDraw.Draw(image)
    _wall(rng, draw, view, floor_line)
    _joints(rng, draw, view)
    _marks(rng, draw, view, walkway)
    return image


def _floor(rng: random.Random, width: int, height: int, floor_line: int) -> Image.Image:
    base = np.array(rng.choice(FLOORS), dtype=np.float32)
    depth = np.linspace(0.88, 1.12, height - floor_line, dtype=np.float32)[:, None]
    rows = np.concatenate([np.zeros((floor_line, 3), np.float32), depth * base]).clip(0, 255).astype(np.uint8)
    return Image.fromarray(rows[:, None, :]).resize((width, height), Image.Resampling.NEAREST)


def _joints(rng: random.Random, draw: ImageDraw.ImageDraw, view: "View") -> None:
    """Joints between the slabs of the floor, which give the eye its perspective."""
    pitch, color = rng.uniform(2.2, 4.0), rng.choice(((96, 98, 100), (120, 122, 122), (84, 84, 84)))
    for i in range(-7, 8):
        near, far = view.project(i * pitch, 3.4), view.project(i * pitch, WALL_AT)
        draw.line((near[:2], far[:2]), fill=color, width=2)
    z = 4.0
    while z < WALL_AT:
        _, y, scale = view.project(0.0, z)
        draw.line(((0, y), (view.width, y)), fill=color, width=2 if scale > 110 else 1)
        z += pitch
    for _ in range(rng.randint(1, 4)):  # tyre marks
        x, slope = rng.uniform(-5, 5), rng.uniform(-0.4, 0.4)
        path = [view.project(x + slope * (z - 4), z)[:2] for z in (4.0, 6.0, 9.0, 14.0)]
        draw.line(path, fill=(88, 88, 88), width=rng.randint(2, 6), joint="curve")


def _marks(rng: random.Random, draw: ImageDraw.ImageDraw, view: "View", walkway: "Walkway") -> None:
    """The walkway: two painted edges, at times a filled strip or bars between them."""
    color, fill = rng.choice(MARKINGS), rng.choice(FILLS)
    half, edge = walkway.width / 2, rng.uniform(0.1, 0.16)

    def paint(start: float, end: float, paint_color: Color) -> None:
        band = walkway.band(start, end, WALL_AT - 0.5)
        draw.polygon([view.project(x, z)[:2] for x, z in band], fill=paint_color)

    if fill is not None:
        paint(-half, half, fill)
    if rng.random() < 0.3:
        _bars(draw, view, walkway, shade(color, 0.9))
    paint(-half, -half + edge, color)
    paint(half - edge, half, color)


def _bars(draw: ImageDraw.ImageDraw, view: "View", walkway: "Walkway", color: Color) -> None:
    half = walkway.width / 2 - 0.25
    for i in range(18):
        if walkway.along:
            z = 4.0 + i * 0.7
            x = walkway.offset + walkway.slope * (z - 8.0)
            corners = [(x - half, z), (x + half, z), (x + half, z + 0.3), (x - half, z + 0.3)]
        else:
            x, z = -9.0 + i, walkway.offset
            corners = [(x, z - half), (x + 0.4, z - half), (x + 0.4, z + half), (x, z + half)]
        draw.polygon([view.project(*corner)[:2] for corner in corners], fill=color)


def _wall(rng: random.Random, draw: ImageDraw.ImageDraw, view: "View", floor_line: int) -> None:
    width, (_, _, scale) = view.width, view.project(0.0, WALL_AT)
    color, top = rng.choice(WALLS), round(floor_line - scale * rng.uniform(4.2, 5.5))
    draw.rectangle((0, 0, width, floor_line), fill=shade(color, 0.42))
    draw.rectangle((0, top, width, floor_line), fill=color)
    panel = scale * rng.uniform(0.4, 1.4)
    for i in range(int(width / panel) + 1):
        draw.line(((i * panel, top), (i * panel, floor_line)), fill=shade(color, 0.9), width=2)
    draw.rectangle((0, floor_line - 0.9 * scale, width, floor_line), fill=shade(color, rng.uniform(0.6, 0.85)))
    x = rng.uniform(-2.0, 0.5) * scale
    while x < width:
        kind = rng.choices(("rack", "door", "window", "sign", "gap"), (4, 2, 2, 1, 2))[0]
        span = (
            scale
            * {"rack": rng.uniform(2.5, 5.0), "door": 3.0, "window": 2.4, "sign": 1.0, "gap": rng.uniform(0.5, 2.0)}[
                kind
            ]
        )
        if kind == "rack":
            _rack(rng, draw, x, floor_line, span, scale)
        elif kind == "door":
            _door(rng, draw, x, floor_line, span, scale)
        elif kind == "window":
            y = floor_line - 3.6 * scale
            draw.rectangle((x, y, x + span * 0.9, y + 1.1 * scale), fill=(232, 240, 246))
            for i in range(1, 4):
                draw.line(
                    ((x + span * 0.225 * i, y), (x + span * 0.225 * i, y + 1.1 * scale)), fill=(90, 96, 100), width=3
                )
        elif kind == "sign":
            y = floor_line - 2.2 * scale
            draw.rectangle(
                (x, y, x + span * 0.7, y + 0.6 * scale),
                fill=rng.choice(((248, 204, 30), (30, 90, 180), (36, 140, 80), (200, 40, 40))),
            )
            draw.rectangle((x + span * 0.15, y + 0.2 * scale, x + span * 0.55, y + 0.4 * scale), fill=(245, 245, 245))
        x += span + rng.uniform(0.1, 0.8) * scale
    for i in range(rng.randint(1, 3)):  # pipes under the ceiling
        y, thick = top + (0.25 + i * 0.3) * scale, 0.06 * scale
        tone = rng.choice(((128, 134, 140), (180, 60, 44), (70, 110, 150), (210, 180, 60)))
        draw.rectangle((0, y, width, y + 2 * thick), fill=shade(tone, 0.75))
        draw.rectangle((0, y, width, y + thick), fill=tone)
    for i in range(rng.randint(2, 5)):  # lamps
        lamp = width * (i + rng.uniform(0.3, 0.7)) / 5
        draw.rectangle(
            (lamp, max(4.0, top - 0.5 * scale), lamp + 1.6 * scale, max(4.0, top - 0.5 * scale) + 0.12 * scale),
            fill=(255, 255, 246),
        )


def _rack(rng: random.Random, draw: ImageDraw.ImageDraw, x: float, floor_line: int, span: float, scale: float) -> None:
    levels, pitch = rng.randint(2, 4), 1.05 * scale
    draw.rectangle((x, floor_line - levels * pitch, x + span, floor_line), fill=(58, 60, 64))
    for level in range(levels):
        y, at = floor_line - level * pitch, x + 4
        while at < x + span - 0.3 * scale:
            wide, tall = rng.uniform(0.3, 0.8) * scale, rng.uniform(0.35, 0.85) * scale
            if rng.random() < 0.85:
                goods = shade(rng.choice(CARTON + CARTON + DRUMS), rng.uniform(0.7, 1.0))
                draw.rectangle((at, y - tall, min(at + wide, x + span - 4), y), fill=goods)
                draw.rectangle((at, y - tall, min(at + wide, x + span - 4), y - tall * 0.86), fill=shade(goods, 1.15))
            at += wide + 0.05 * scale
        draw.rectangle((x, y - 0.09 * scale, x + span, y), fill=(232, 120, 34))
    for post in (x, x + span / 2, x + span):
        draw.rectangle((post - 3, floor_line - levels * pitch - 6, post + 4, floor_line), fill=(44, 74, 128))


def _door(rng: random.Random, draw: ImageDraw.ImageDraw, x: float, floor_line: int, span: float, scale: float) -> None:
    color: Color = rng.choice(((120, 128, 134), (70, 92, 120), (168, 168, 160)))
    draw.rectangle((x - 6, floor_line - 3.2 * scale, x + span + 6, floor_line), fill=(60, 62, 64))
    draw.rectangle((x, floor_line - 3.1 * scale, x + span, floor_line), fill=color)
    for i in range(14):
        y = floor_line - 3.1 * scale * i / 14
        draw.line(((x, y), (x + span, y)), fill=shade(color, 0.82), width=2)


@lru_cache(maxsize=4)
def light_map(seed: int, size: tuple[int, int]) -> Image.Image:
    """What the light takes away, per pixel and colour: gain, colour temperature, gradient, pools of lamps, stains."""
    rng, noise = random.Random(seed ^ 0x11647), np.random.default_rng(seed)
    y, x = np.mgrid[0:1:34j, 0:1:60j].astype(np.float32)
    gain = rng.choice((rng.uniform(0.95, 1.1), rng.uniform(0.8, 1.05), rng.uniform(0.5, 0.8)))
    field = gain * (1.0 + rng.uniform(-0.3, 0.3) * (x - 0.5) + rng.uniform(-0.25, 0.25) * (y - 0.5))
    for _ in range(rng.randint(0, 3)):
        distance = ((x - rng.random()) / 0.25) ** 2 + ((y - rng.uniform(0.3, 1.0)) / 0.3) ** 2
        field *= 1.0 + rng.uniform(-0.22, 0.25) * np.exp(-distance)
    field *= 1.0 - 0.35 * rng.random() * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    field += noise.normal(0.0, 0.02, field.shape).astype(np.float32)
    warm = rng.uniform(-0.1, 0.1)
    tint = np.array([1.0 + min(warm, 0.0) + 0.03, 1.0 - abs(warm) * 0.3, 1.0 - max(warm, 0.0)], dtype=np.float32)
    pixels = (field[:, :, None] * tint * 255.0).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


@lru_cache(maxsize=3)
def _noise_tile(level: int) -> Image.Image:
    rng = np.random.default_rng(level)
    grain = rng.normal(0.0, 1.6 * level, (1208, 2048, 1)) + rng.normal(0.0, 0.9 * level, (1208, 2048, 3))
    return Image.fromarray((grain + 128.0).clip(0, 255).astype(np.uint8))


def sensor_noise(image: Image.Image, level: int, seed: int) -> Image.Image:
    """Adds grain; one large tile per level is enough, read at a random place."""
    tile, rng = _noise_tile(level), random.Random(seed)
    if image.width > tile.width or image.height > tile.height:
        tile = tile.resize((max(image.width, tile.width), max(image.height, tile.height)), Image.Resampling.NEAREST)
    left, top = rng.randint(0, tile.width - image.width), rng.randint(0, tile.height - image.height)
    grain = tile.crop((left, top, left + image.width, top + image.height))
    return ImageChops.add(image, grain, 1.0, -128)
