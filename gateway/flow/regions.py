"""Where a heat map is unusual: connected regions, in pixels of the original picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.flow.outlines import Form, outlines, visible
from gateway.layouts.base import Mask, Masks
from gateway.messages import Geometry, Outline, Rle

MAX_REGIONS = 32
TINY = 1e-4
"""Regions of less than this share of the map are left out: one pixel above the threshold is noise."""

Indices = NDArray[np.intp]


class Region(NamedTuple):
    """A connected part above the threshold: bbox [x1, y1, x2, y2] in pixels of the picture, and the highest heat."""

    bbox: tuple[float, float, float, float]
    peak: float
    shape: Outline | Rle | None


def regions(
    heat: NDArray[Any], threshold: float, geometry: Geometry, size: tuple[int, int], form: Form = "polygon"
) -> list[Region]:
    """The regions of heat (h, w), which spans a model input of `size` (height, width), above the threshold.

    The highest peak comes first, at most MAX_REGIONS. Cells that touch at a corner are one region. Padding around the
    picture does not count.
    """
    cell_height, cell_width = size[0] / heat.shape[0], size[1] / heat.shape[1]
    hot = visible(Mask(heat > threshold, 0.0, 0.0, cell_width, cell_height), geometry)
    if not hot.cells.size:
        return []
    top, left = round(hot.top / cell_height), round(hot.left / cell_width)
    height, width = hot.cells.shape
    labels, peaks, areas = components(hot.cells, heat[top : top + height, left : left + width])
    large = np.flatnonzero(areas >= max(1.0, TINY * heat.size))
    chosen = large[np.lexsort((-areas[large], -peaks[large]))][:MAX_REGIONS]
    # visible() cuts each mask to its own cells.
    masks = [visible(replace(hot, cells=labels == label), geometry) for label in chosen]
    found = Masks(masks.__getitem__)
    shapes = outlines([(found, index, geometry) for index in range(len(masks))], form)
    return [
        Region(_bbox(mask, geometry), float(peak), shape)
        for mask, peak, shape in zip(masks, peaks[chosen], shapes, strict=True)
    ]


def components(cells: NDArray[np.bool_], heat: NDArray[Any]) -> tuple[Indices, NDArray[np.float64], Indices]:
    """Which connected part each cell (h, w) belongs to, -1 for none; of each part the highest heat and the area.

    Cells of a row that touch form a run; runs that touch the one below, or its corner, get the same label.
    """
    stride = cells.shape[1] + 1  # a clear column at the end keeps runs of neighbouring rows apart
    flat = np.pad(cells, ((0, 0), (0, 1))).ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    first = np.searchsorted(ends, starts + stride, side="left")
    amounts = np.searchsorted(starts, ends + stride, side="right") - first
    upper = np.repeat(np.arange(len(starts)), amounts)
    lower = np.arange(len(upper)) + np.repeat(first - (np.cumsum(amounts) - amounts), amounts)
    _, of_run = np.unique(_joined(len(starts), upper, lower), return_inverse=True)
    count = int(of_run.max(initial=-1)) + 1
    labels = np.full(flat.size, -1, dtype=np.intp)
    labels[flat] = np.repeat(of_run, ends - starts)
    areas: Indices = np.zeros(count, dtype=np.intp)
    np.add.at(areas, of_run, ends - starts)
    peaks = np.full(count, -np.inf)
    if count:
        highest = np.maximum.reduceat(np.pad(heat, ((0, 0), (0, 1))).ravel(), edges)[::2]
        np.maximum.at(peaks, of_run, highest)
    return labels.reshape(-1, stride)[:, :-1], peaks, areas


def _joined(count: int, first: Indices, second: Indices) -> Indices:
    """For each of `count` runs the lowest one that it is connected with, given the pairs that touch."""
    lowest: Indices = np.arange(count)
    while True:
        before = lowest.copy()
        least = np.minimum(lowest[first], lowest[second])
        # The roots take the lower label too, so that it spreads over whole groups and not by one run a round.
        for touched in (before[first], before[second], first, second):
            np.minimum.at(lowest, touched, least)
        lowest = lowest[lowest]
        if (lowest == before).all():
            return lowest


def _bbox(mask: Mask, geometry: Geometry) -> tuple[float, float, float, float]:
    height, width = mask.cells.shape
    x1, y1, x2, y2 = geometry.box or (0, 0, geometry.width, geometry.height)
    left, right = (
        (place - geometry.offset_x) / geometry.scale_x for place in (mask.left, mask.left + width * mask.cell_width)
    )
    top, bottom = (
        (place - geometry.offset_y) / geometry.scale_y for place in (mask.top, mask.top + height * mask.cell_height)
    )
    return max(left, x1), max(top, y1), min(right, x2), min(bottom, y2)
