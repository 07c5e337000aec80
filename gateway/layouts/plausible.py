"""Whether shapes make sense where nobody has said how many classes there are, and so nearly everything fits.

A number of rows tells: the detectors of the YOLO family have one for each cell of their grids, whose strides are known.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.layouts.base import Layout

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32), (8, 16))
"""Of the detectors in use: the usual, P6, P2, and the tiny ones."""
ROWS_A_CELL = {"yolov8": (1,), "yolov8-seg": (1,), "yolov5": (3, 1), "yolox": (1,)}
"""How many rows each cell has; a decoded YOLOX is read as yolov5 and has one."""
MAX_GUESSED_CLASSES = 2000
"""More classes than any detector has."""


def implausible(layout: Layout, shapes: Mapping[str, tuple[int, ...]], classes: int, size: tuple[int, int]) -> str:
    """Why these shapes (by role, without the batch axis) are hardly those of the layout, or "".

    `classes` is the number that the shapes would mean, `size` the height and width of the model's input.
    """
    if layout.task in ("object-detection", "instance-segmentation") and classes > MAX_GUESSED_CLASSES:
        return f"that would be {classes} classes"
    if layout.name in ROWS_A_CELL:
        return _other_rows(layout, shapes["output"], size)
    heat = shapes.get("anomaly_map", ())[-2:]
    if len(heat) == 2 and min(heat) > 0 and not 0.8 < heat[0] * size[1] / (heat[1] * size[0]) < 1.25:
        return f"a map of {heat[0]}x{heat[1]} has not the proportions of the input, {size[0]}x{size[1]}"
    return ""


def _other_rows(layout: Layout, shape: tuple[int, ...], size: tuple[int, int]) -> str:
    rows = shape[layout.outputs["output"].index("N")]
    if rows < 1:
        return ""
    cells = [sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides) for strides in STRIDES]
    known = {count * each for count in cells for each in ROWS_A_CELL[layout.name]}
    usual = cells[0] * ROWS_A_CELL[layout.name][0]
    return "" if rows in known else f"with an input of {size[0]}x{size[1]} N would be {usual}, not {rows}"
