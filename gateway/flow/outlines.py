"""What is published of a mask: polygons, or COCO's run lengths, in pixels of the original picture.

Sizes are bounded here, because a model may answer with noise: corners and polygons of one object, and the bytes of all
objects of one result. Objects come best first; those for which no room is left have no shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gateway.layouts.base import Mask, Masks
from gateway.messages import Geometry, Outline, Rle

Form = Literal["polygon", "rle", "none"]
Corners = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_BYTES = 256 * 1024
"""All shapes of one result, as they are written in JSON."""

MAX_CELLS = 16_000_000
"""Cells of all masks that are looked at for one result: about a second of work."""

MAX_POLYGONS = 16
MAX_CORNERS = 200
CORNER_BYTES = 16
"""One corner in JSON: [1234.5,1234.5] and a comma."""

MAX_TRACED = 20_000
"""Corners of cells that are followed in one mask; a clean one of 640x640 has 2,000, and a coarser grid has fewer."""

SPECK = 0.01
"""Parts smaller than this share of the largest one are left out."""


def outlines(asked: Sequence[tuple[Masks, int, Geometry]], form: Form) -> tuple[Outline | Rle | None, ...]:
    """The shape of each object, given as the masks of its tile, its index there, and how the picture lies in the tile.

    None for a mask that is empty within the picture, for all with the form `none`, and for all from the first on that
    does not fit any more into MAX_BYTES or MAX_CELLS.
    """
    shapes: list[Outline | Rle | None] = []
    bytes_left, cells_left = MAX_BYTES, MAX_CELLS
    for masks, index, geometry in asked if form != "none" else ():
        mask = masks.of(index)
        cells_left -= mask.cells.size
        shape = polygons_of(mask, geometry) if form == "polygon" else rle_of(mask, geometry)
        bytes_left -= _bytes_of(shape)
        if cells_left < 0 or bytes_left < 0:
            break
        shapes.append(shape)
    return tuple(shapes) + (None,) * (len(asked) - len(shapes))


def polygons_of(mask: Mask, geometry: Geometry) -> Outline | None:
    """The outer contours, largest first, simplified to within a cell; holes are filled. None for an empty mask."""
    mask = _traceable(visible(mask, geometry))
    rings = [(abs(area), ring) for ring in _rings(mask.cells) if (area := _area(ring))]
    rings.sort(key=lambda pair: -pair[0])
    polygons = []
    for area, ring in rings[:MAX_POLYGONS]:
        if area < SPECK * rings[0][0]:
            break
        corners = _in_picture(_simplified(ring, area), mask, geometry)
        if len(corners) >= 3:
            polygons.append(tuple(corners))
    return Outline(tuple(polygons)) if polygons else None


def rle_of(mask: Mask, geometry: Geometry) -> Rle | None:
    """The mask at the picture's size, each pixel as the cell under its middle; None when empty or above MAX_BYTES."""
    mask = visible(mask, geometry)
    if not mask.cells.size:
        return None
    columns, across = _cells_under(
        geometry.width, geometry.scale_x, geometry.offset_x, mask.left, mask.cell_width, 1, mask
    )
    rows, down = _cells_under(geometry.height, geometry.scale_y, geometry.offset_y, mask.top, mask.cell_height, 0, mask)
    # Neighbouring pixels share a column of cells, and with it the rows where the mask begins and ends.
    distinct, which = np.unique(across, return_inverse=True)
    sampled = np.pad(mask.cells[down][:, distinct].T, ((0, 0), (1, 1)))
    owner, turns = np.nonzero(sampled[:, 1:] != sampled[:, :-1])
    amount = np.bincount(owner, minlength=len(distinct))
    amounts = amount[which]
    if not 0 < amounts.sum() <= MAX_BYTES:
        return None
    begins = np.cumsum(amount) - amount
    ends = np.cumsum(amounts)
    taken = np.arange(ends[-1]) + np.repeat(begins[which] - (ends - amounts), amounts)
    places = np.repeat(columns, amounts) * geometry.height + rows[0] + turns[taken]
    counts = _compressed(_run_lengths(places, geometry.width * geometry.height))
    return Rle(geometry.height, geometry.width, counts)


def visible(mask: Mask, geometry: Geometry) -> Mask:
    """The part of the mask that has set cells and lies on the picture, not on padding around it."""
    x1, y1, x2, y2 = geometry.box or (0, 0, geometry.width, geometry.height)
    rows = _between(
        y1 * geometry.scale_y + geometry.offset_y, y2 * geometry.scale_y + geometry.offset_y, mask.top, mask.cell_height
    )
    columns = _between(
        x1 * geometry.scale_x + geometry.offset_x, x2 * geometry.scale_x + geometry.offset_x, mask.left, mask.cell_width
    )
    cells = mask.cells[rows, columns]
    filled_rows, filled_columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    if not filled_rows.size:
        return Mask(np.zeros((0, 0), dtype=np.bool_))
    top, left = int(filled_rows[0]), int(filled_columns[0])
    return Mask(
        cells[top : filled_rows[-1] + 1, left : filled_columns[-1] + 1],
        left=mask.left + (columns.start + left) * mask.cell_width,
        top=mask.top + (rows.start + top) * mask.cell_height,
        cell_width=mask.cell_width,
        cell_height=mask.cell_height,
    )


def _between(low: float, high: float, start: float, size: float) -> slice:
    """Which cells have their middle between two places in the input."""
    first, last = (max(0, int(np.ceil((place - start) / size - 0.5))) for place in (low, high))
    return slice(first, max(first, last))


def _bytes_of(shape: Outline | Rle | None) -> int:
    if isinstance(shape, Rle):
        return len(shape.counts)
    return CORNER_BYTES * sum(map(len, shape.polygons)) if shape else 0


# --- polygons ----------------------------------------------------------------------------------------


def _traceable(mask: Mask) -> Mask:
    """The mask, on a coarser grid where it is noise: each halving keeps what is set in at least half of four cells."""
    cells, size = mask.cells, 1
    while _turns(cells).sum() > MAX_TRACED:
        even = np.pad(cells, ((0, cells.shape[0] % 2), (0, cells.shape[1] % 2))).astype(np.uint8)
        cells = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] >= 2
        size *= 2
    return Mask(cells, mask.left, mask.top, mask.cell_width * size, mask.cell_height * size)


def _turns(cells: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """How many corners contours have at each corner of cells (h + 1, w + 1): 2 where set cells meet diagonally."""
    around = np.pad(cells, 1)
    upper = around[:-1, :-1] ^ around[:-1, 1:]
    lower = around[1:, :-1] ^ around[1:, 1:]
    diagonal = upper & lower & (around[:-1, :-1] == around[1:, 1:])
    turns: NDArray[np.uint8] = (upper ^ lower).astype(np.uint8)
    turns[diagonal] = 2
    return turns


def _rings(cells: NDArray[np.bool_]) -> list[Corners]:
    """The outer contours as closed rings (n, 2) of x and y along the edges of cells; diagonal neighbours are joined.

    Each corner is the end of one horizontal and one vertical edge: sorted by rows, neighbours are the ends of
    a horizontal edge; sorted by columns, of a vertical one.
    """
    if not cells.size:
        return []
    turns = _turns(cells)
    y, x = np.nonzero(turns)
    twice = turns[y, x]
    second = np.zeros(int(twice.sum()), dtype=np.bool_)
    second[np.cumsum(twice)[twice == 2] - 1] = True
    y, x, double = np.repeat(y, twice), np.repeat(x, twice), np.repeat(twice == 2, twice)
    around = np.pad(cells, 1)
    falling = around[y + 1, x + 1]  # the cell to the lower right of the corner
    # Where set cells meet diagonally, a contour keeps to the cell that is not set: of the two corners there the first
    # has the edge to the left, and the upper edge unless that cell is the lower left one.
    order = np.lexsort((double & (second ^ falling), y, x))
    vertical = np.empty_like(order)
    vertical[order[::2]], vertical[order[1::2]] = order[1::2], order[::2]
    return _followed(np.column_stack((x, y)).astype(np.float64), vertical.tolist(), falling.tolist())


def _followed(corners: Corners, vertical: list[int], falling: list[bool]) -> list[Corners]:
    """The rings from who is joined to whom; a ring that starts below a cell that is set is that of a hole."""
    rings: list[Corners] = []
    seen = bytearray(len(vertical))
    for start in range(0, len(vertical), 2):
        if seen[start]:
            continue
        ring: list[int] = []
        corner = start
        while not seen[corner]:
            seen[corner] = seen[corner ^ 1] = True
            ring += (corner, corner ^ 1)
            corner = vertical[corner ^ 1]
        if falling[start]:
            rings.append(corners[ring])
    return rings


def _area(ring: Corners) -> float:
    x, y = ring.T
    return float(0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _simplified(ring: Corners, area: float) -> Corners:
    """The corners that matter: at most MAX_CORNERS, within a cell of the ring, closer for a small one."""
    tolerance = min(1.0, 0.03 * area**0.5)
    while len(kept := _farthest(ring, tolerance)) > MAX_CORNERS:
        tolerance *= 1.5
    return kept if len(kept) >= 3 else ring[_extremes(ring)]


def _extremes(ring: Corners) -> NDArray[np.intp]:
    """The indices of the corners farthest in each of eight directions: at least three, even of a thin line."""
    places = ring @ np.array([[1, 0, 1, 1], [0, 1, 1, -1]])
    found: NDArray[np.intp] = np.unique((places.argmin(axis=0), places.argmax(axis=0)))
    return found


def _farthest(ring: Corners, tolerance: float) -> Corners:
    """Douglas and Peucker: keep the corner farthest from the line between two kept ones, until all are near enough.

    All stretches between kept corners are split at once, so this takes as many rounds as the recursion is deep.
    """
    closed = np.concatenate((ring, ring[:1]))
    kept: NDArray[np.bool_] = np.zeros(len(closed), dtype=np.bool_)
    kept[[0, -1, ((ring - ring[0]) ** 2).sum(axis=1).argmax()]] = True
    while True:
        bounds = np.flatnonzero(kept)
        starts, lengths = bounds[:-1], np.diff(bounds)
        first, along = closed[starts], closed[bounds[1:]] - closed[starts]
        first, along = np.repeat(first, lengths, axis=0), np.repeat(along, lengths, axis=0)
        offset = closed[:-1] - first
        share = (offset * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
        distance = ((offset - share.clip(0, 1)[:, None] * along) ** 2).sum(axis=1)
        farthest = np.maximum.reduceat(distance, starts)
        far = (distance == np.repeat(farthest, lengths)) & (distance > tolerance**2)
        if not far.any():
            break
        new = np.flatnonzero(far)
        stretch = np.searchsorted(starts, new, side="right")
        kept[new[np.concatenate(([True], stretch[1:] != stretch[:-1]))]] = True
        if np.count_nonzero(kept) > 2 * MAX_CORNERS:
            break
    found: Corners = ring[kept[:-1]]
    return found


def _in_picture(ring: Corners, mask: Mask, geometry: Geometry) -> list[tuple[float, float]]:
    """The corners in pixels of the picture, to a tenth, without repetitions."""
    x1, y1, x2, y2 = geometry.box or (0, 0, geometry.width, geometry.height)
    x = (mask.left + ring[:, 0] * mask.cell_width - geometry.offset_x) / geometry.scale_x
    y = (mask.top + ring[:, 1] * mask.cell_height - geometry.offset_y) / geometry.scale_y
    places = np.column_stack((x.clip(x1, x2), y.clip(y1, y2))).round(1)
    moved: NDArray[np.bool_] = (places != np.roll(places, 1, axis=0)).any(axis=1)
    return [(x, y) for x, y in places[moved].tolist()]


# --- run lengths -------------------------------------------------------------------------------------


def _cells_under(
    pixels: int, scale: float, offset: float, start: float, size: float, axis: int, mask: Mask
) -> tuple[Integers, NDArray[np.intp]]:
    """Which pixels of the picture along one axis lie on the mask, and the cell under the middle of each."""
    count = mask.cells.shape[axis]
    low, high = ((place - offset) / scale for place in (start, start + count * size))
    places = np.arange(max(0, int(low) - 1), min(pixels, int(high) + 2), dtype=np.int64)
    cells = np.floor(((places + 0.5) * scale + offset - start) / size).astype(np.intp)
    inside = (cells >= 0) & (cells < count)
    return places[inside], cells[inside]


def _run_lengths(places: Integers, total: int) -> Integers:
    """Lengths of alternating runs, clear ones first, from the sorted places where they change."""
    same = places[1:] == places[:-1]  # a run that goes on from the foot of one column at the head of the next
    real = np.ones(len(places), dtype=np.bool_)
    real[1:] &= ~same
    real[:-1] &= ~same
    places = places[real & (places < total)]
    return np.diff(np.concatenate(([0], places, [total])))


def _compressed(counts: Integers) -> str:
    """COCO's text: each count as its difference to the one two before, five bits a character, the lowest first."""
    rest = counts.copy()
    rest[3:] -= counts[1:-2]
    written: list[NDArray[Any]] = []
    going = np.ones(len(rest), dtype=np.bool_)
    while going.any():
        five = rest & 31
        rest >>= 5
        more = going & np.where(five & 16, rest != -1, rest != 0)
        written.append(np.where(going, five + 32 * more + 48, 0))
        going = more
    text = np.column_stack(written).astype(np.uint8).ravel()
    return text[text > 0].tobytes().decode("ascii")
