"""What one export says about a picture and what its own tool makes of it, kept for the tests of the layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.exports.pictures import CLASSES

LARGEST_REFERENCE = 300_000
"""Bytes of one file: the references lie in the repository."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One picture: the export's raw outputs by their names, and the tool's answer to exactly these values.

    A detector's answer has `boxes` (K, 4) as x1, y1, x2, y2 in pixels of the model's input, `scores` (K,) and `classes`
    (K,), best first; with masks also `masks`, the bits of (K, H, W) packed along the last axis. A classifier's has
    `classes` and `scores`. An anomaly detector's has `map` (H, W) and `score`.
    """

    outputs: Arrays
    answer: Arrays


@dataclass(frozen=True, slots=True)
class Reference:
    """The cases of one export.

    `settings` are what the tool's own post-processing was called with: `confidence`, `iou`, `max_detections`; and what
    the layout has to be told beside them, such as `activation`.
    """

    family: str
    layout: str
    input_size: tuple[int, int]
    cases: tuple[Case, ...]
    settings: Mapping[str, float | str] = field(default_factory=dict)
    classes: int = len(CLASSES)

    def save(self, folder: Path) -> Path:
        """Writes `<family>.npz`; raises ValueError where an answer is empty or the file is too large to keep."""
        arrays: dict[str, NDArray[Any]] = {
            "layout": np.array(self.layout),
            "input_size": np.array(self.input_size, np.int64),
            "classes": np.array(self.classes),
            "cases": np.array(len(self.cases)),
        }
        arrays |= {f"setting.{name}": np.array(value) for name, value in self.settings.items()}
        for number, case in enumerate(self.cases):
            if not all(value.size for value in case.answer.values()):
                raise ValueError(f"{self.family}: the answer to picture {number} is empty and would prove nothing")
            arrays |= {f"{number}.output.{name}": value for name, value in case.outputs.items()}
            arrays |= {f"{number}.answer.{name}": value for name, value in case.answer.items()}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.family}.npz"
        np.savez_compressed(path, **arrays)
        if path.stat().st_size > LARGEST_REFERENCE:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, more than {LARGEST_REFERENCE}")
        return path


def detections(boxes: Any, scores: Any, classes: Any) -> dict[str, NDArray[Any]]:
    """The answer of a detector from tensors or arrays of any precision."""
    return {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "scores": np.asarray(scores, np.float32),
        "classes": np.asarray(classes, np.int64),
    }
