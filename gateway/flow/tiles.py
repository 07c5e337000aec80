"""How a large picture is cut into tiles, so that small objects keep their pixels."""

from __future__ import annotations

from itertools import product
from math import ceil

Box = tuple[float, float, float, float]
"""[x1, y1, x2, y2] in pixels of the picture."""


def cut(width: int, height: int, tile: tuple[int, int], overlap: float, max_tiles: int) -> list[Box]:
    """Tiles of one size, row by row, spread evenly from edge to edge; together they cover the picture exactly.

    `tile` is the wanted width and height. Neighbours share at least `overlap` of a tile (a pixel less by rounding).
    Where that would make more than `max_tiles`, all tiles grow by the smallest factor that avoids it. A side of the
    picture that is shorter than the tile makes the tiles shorter.
    """
    step = 1 - overlap
    factor = min(
        max(_factor(width, tile[0], across, step), _factor(height, tile[1], max_tiles // across, step))
        for across in range(1, max_tiles + 1)
    )
    columns = _spread(width, min(width, ceil(tile[0] * factor - 1e-6)), step)
    rows = _spread(height, min(height, ceil(tile[1] * factor - 1e-6)), step)
    return [(x1, y1, x2, y2) for (y1, y2), (x1, x2) in product(rows, columns)]


def _factor(length: int, tile: int, count: int, step: float) -> float:
    """By how much tiles must grow for `count` of them to cover `length`; 1 at least."""
    return max(1.0, length / (tile * (1 + (count - 1) * step)))


def _spread(length: int, tile: int, step: float) -> list[tuple[int, int]]:
    """First and last edge of each tile along one side."""
    # The small allowance keeps a tile that grew to fit exactly from being one too many by rounding.
    last = ceil((length - tile) / (tile * step) - 1e-6)
    starts = [round(index * (length - tile) / last) for index in range(last + 1)] if last else [0]
    return [(start, start + tile) for start in starts]
