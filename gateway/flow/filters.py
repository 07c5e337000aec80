"""Which predictions count: classes, sizes and zones of the camera, then the names that messages have."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gateway.messages import Prediction
from gateway.models.inference_spec import CameraSpec, InferenceSpec, Sides

PAIRS_AT_ONCE = 2**16
"""Points times sides that are looked at together, so that many large polygons cost time but no memory."""


def keep(
    predictions: tuple[Prediction, ...],
    spec: InferenceSpec,
    camera: CameraSpec | None,
    picture: tuple[int, int] | None,
) -> tuple[Prediction, ...]:
    """The predictions that count, most confident first, at most `spec.max_detections`, under their published names."""
    return tuple(published(predictions[index], spec) for index in which_count(predictions, spec, camera, picture))


def published(item: Prediction, spec: InferenceSpec) -> Prediction:
    """The prediction under the name that messages have for its class."""
    return replace(item, class_name=spec.rename[item.class_name]) if item.class_name in spec.rename else item


def which_count(
    predictions: tuple[Prediction, ...],
    spec: InferenceSpec,
    camera: CameraSpec | None,
    picture: tuple[int, int] | None,
) -> list[int]:
    """Which of the predictions count, most confident first, at most `spec.max_detections`.

    `picture` is the width and height that boxes are pixels of. What has no box has no size and no place: only its
    class and confidence matter. Classes and thresholds go by the model's own labels, before `rename`.
    """
    classes = frozenset(spec.classes)
    kept = [
        index
        for index, item in enumerate(predictions)
        if (not classes or item.class_name in classes)
        and item.confidence > spec.class_thresholds.get(item.class_name, -1.0)
        and _large_enough(item, spec.min_size)
    ]
    if camera is not None and picture is not None:
        kept = _in_zones(kept, predictions, camera, picture)
    kept.sort(key=lambda index: -predictions[index].confidence)
    return kept[: spec.max_detections]


def camera_of(cameras: Mapping[str, CameraSpec], device_id: str) -> CameraSpec | None:
    """The first entry whose name fits the device, or None; only `*` and `?` in a name are special."""
    if not cameras:
        return None
    names = tuple(cameras)
    found = _matcher(names).match(device_id)
    return cameras[names[found.lastindex - 1]] if found is not None and found.lastindex else None


@lru_cache(maxsize=256)
def _matcher(names: tuple[str, ...]) -> re.Pattern[str]:
    """One expression with a group a name. Only names from model.yaml are cached: a device's id is for it to choose."""
    # translate() gives atomic groups, so that no device id makes many asterisks expensive.
    return re.compile("|".join(f"({fnmatch.translate(name.replace('[', '[[]'))})" for name in names))


def _large_enough(item: Prediction, least: tuple[float, float]) -> bool:
    if item.bbox is None:
        return True
    x1, y1, x2, y2 = item.bbox
    return x2 - x1 >= least[0] and y2 - y1 >= least[1]


def _in_zones(
    kept: list[int], predictions: tuple[Prediction, ...], camera: CameraSpec, picture: tuple[int, int]
) -> list[int]:
    boxes = [bbox for index in kept if (bbox := predictions[index].bbox) is not None]
    if not boxes:
        return kept
    x1, y1, x2, y2 = np.array(boxes).T
    # Divided, not multiplied: 192 of 1920 pixels is then the same number as a corner at 0.1.
    across = (x1 + x2) / 2 / picture[0]
    down = (y2 if camera.anchor == "bottom" else (y1 + y2) / 2) / picture[1]
    inside = inside_of(camera.sides, np.stack((across, down), axis=1))
    regions = len(camera.regions)
    counts = ~inside[:, regions:].any(axis=1)
    if regions:
        counts &= inside[:, :regions].any(axis=1)
    verdict = iter(counts.tolist())
    return [index for index in kept if predictions[index].bbox is None or next(verdict)]


def inside_of(sides: Sides, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the points (K, 2) lie in which of the P polygons, (K, P); a point on a side lies inside.

    Where a polygon crosses itself the even-odd rule holds: inside is what an odd number of sides lies to the right of.
    """
    step = max(1, PAIRS_AT_ONCE // len(sides.x))
    parts = [_inside(sides, points[start : start + step]) for start in range(0, len(points), step)]
    return np.concatenate(parts)


def _inside(sides: Sides, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    px, py = points[:, :1], points[:, 1:]
    # Its sign says on which side of the line the point lies; its size, by the length of the side, how far off.
    area = sides.dx * (py - sides.y) - (px - sides.x) * sides.dy
    straddles = (py < sides.y) != (py < sides.end_y)
    odd = np.logical_xor.reduceat(straddles & ((area > 0) == (sides.dy > 0)), sides.starts, axis=1)
    on = np.abs(area) <= sides.close
    on &= (px >= sides.left) & (px <= sides.right) & (py >= sides.top) & (py <= sides.bottom)
    touches: NDArray[np.bool_] = np.logical_or.reduceat(on, sides.starts, axis=1)
    touches |= odd
    return touches
