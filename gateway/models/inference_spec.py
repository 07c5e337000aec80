"""`inference`, `alerts` and `cameras` in model.yaml: how output tensors become predictions and alerts."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from gateway.schema import StrictModel

MAX_NAME = 256
"""Characters of a label, or of the name that it has in messages."""
MAX_POLYGONS = 64
MAX_CORNERS = 256
ON_THE_LINE = 1e-9
"""A point this near to a side lies on it: a millionth of a pixel, so that rounding never decides."""


class InferenceSpec(StrictModel):
    """How the output tensors become predictions."""

    output: str = ""
    """Layout of the output tensors (docs/layouts.md); without it the usual one of the model_type."""
    outputs: dict[str, str] = Field(default_factory=dict)
    """Which tensor plays which role of the layout, where shapes and names leave it open: role to tensor name."""
    confidence_threshold: float = Field(0.5, ge=0, le=1)
    """Predictions must be above this confidence; one that is equal to it is left out."""
    class_thresholds: dict[str, float] = Field(default_factory=dict)
    """Confidence thresholds of single classes, by label."""
    classes: tuple[str, ...] = ()
    """Labels to report; without it all."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Names that classes have in messages, by label; two labels may become one."""
    iou_threshold: float = Field(0.5, ge=0, le=1)
    """Boxes of one class that overlap more than this are one object (NMS)."""
    match_iou: float = Field(0.5, ge=0, le=1)
    """Boxes of two variants that overlap at least this much are the same object (comparison)."""
    max_detections: int = Field(300, ge=1, le=1_000)
    """Most detections per picture, the most confident first."""
    min_size: tuple[float, float] = (0.0, 0.0)
    """Least width and height of a detection in pixels of the picture."""
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    """What turns numbers into confidences; `none` when the model does it itself. Without it the layout's usual one."""
    top_k: int = Field(1, ge=1, le=1000)
    """Classes that a classifier reports, the most confident first."""
    box_format: Literal["xyxy", "cxcywh", "yxyx"] | None = None
    """Order of the four numbers of a box, where the layout leaves it open; without it the layout's usual one."""
    box_units: Literal["pixels", "normalized"] | None = None
    """Whether boxes are in pixels of the input or in fractions of it; without it the layout's usual one."""
    background: Literal["none", "first", "last"] | None = None
    """Which class stands for "nothing there" and has no label; without it the layout's usual one."""
    masks: Literal["polygon", "rle", "none"] = "polygon"
    """How a segmentation's outlines are published: corners, COCO's run-length encoding, or not at all."""
    anomaly_threshold: float | None = Field(None, gt=0)
    """Anomaly score at which the confidence is 0.5; without it scores are confidences already."""
    alert_classes: tuple[str, ...] = ()
    """Names, as messages have them, that set `alert_triggered` in the result and start an alert."""
    batch_size: int = Field(1, ge=1, le=64)
    """Most tiles of one picture in one request; Triton's dynamic batching joins the requests of different cameras."""
    gpu_enabled: bool | None = None
    """`true`: it is said when Triton runs the model on the CPU; `false`: the CPU is meant. Where it runs, config.pbtxt
    decides."""

    @field_validator("class_thresholds")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        for label, threshold in value.items():
            if not 0 <= threshold <= 1:
                raise ValueError(f"'{label}': a threshold lies between 0 and 1, not at {threshold}")
        return value

    @field_validator("rename")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for label, name in value.items():
            if not name or len(name) > MAX_NAME:
                raise ValueError(f"'{label[:MAX_NAME]}': a name has 1 to {MAX_NAME} characters, not {len(name)}")
        return value

    @field_validator("min_size")
    @classmethod
    def _not_negative(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= side <= 100_000 for side in value):
            raise ValueError("width and height are pixels, at least 0")
        return value


class AlertsSpec(StrictModel):
    """When a sighting of an alert class is an event."""

    min_confidence: float = Field(0.0, ge=0, le=1)
    """Sightings below this confidence start no alert."""
    after_frames: int = Field(1, ge=1, le=1000)
    """Frames with the class, each within `hold_off_s` of the one before, until an alert starts."""
    hold_off_s: float = Field(10.0, gt=0, le=86_400)
    """Seconds without the class until the alert ends; a sighting within it belongs to the same event."""
    severity: Literal["low", "medium", "high", "critical"] = "high"
    """What the alert message says of its weight."""


Point = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The E sides of P polygons, one polygon after the other: arrays (E,) in fractions of the picture."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    end_y: NDArray[np.float64]
    dx: NDArray[np.float64]
    dy: NDArray[np.float64]
    left: NDArray[np.float64]
    """As `top`, `right` and `bottom`, ON_THE_LINE outside of the side."""
    top: NDArray[np.float64]
    right: NDArray[np.float64]
    bottom: NDArray[np.float64]
    close: NDArray[np.float64]
    """Twice the area of the triangle of a side and a point that is ON_THE_LINE away from it."""
    starts: NDArray[np.intp]
    """(P,) index of each polygon's first side."""


def sides_of(polygons: tuple[tuple[Point, ...], ...]) -> Sides:
    """The sides of closed polygons, at least one; the last corner is joined to the first."""
    x, y = np.array([corner for polygon in polygons for corner in polygon], dtype=np.float64).T
    end_x, end_y = np.array([corner for polygon in polygons for corner in (*polygon[1:], polygon[0])]).T
    dx, dy = end_x - x, end_y - y
    return Sides(
        x=x,
        y=y,
        end_y=end_y,
        dx=dx,
        dy=dy,
        left=np.minimum(x, end_x) - ON_THE_LINE,
        top=np.minimum(y, end_y) - ON_THE_LINE,
        right=np.maximum(x, end_x) + ON_THE_LINE,
        bottom=np.maximum(y, end_y) + ON_THE_LINE,
        close=np.hypot(dx, dy) * ON_THE_LINE,
        starts=np.cumsum([0, *(len(polygon) for polygon in polygons[:-1])]),
    )


class CameraSpec(StrictModel):
    """Where in one camera's picture detections count."""

    regions: tuple[tuple[Point, ...], ...] = ()
    """Polygons in which detections count, corners as [x, y] in fractions 0..1 of the picture; without it everywhere."""
    ignore: tuple[tuple[Point, ...], ...] = ()
    """Polygons in which detections do not count, corners as in `regions`."""
    anchor: Literal["center", "bottom"] = "center"
    """Which point of a box has to lie inside: its centre, or the middle of its lower edge, where a person stands."""

    @field_validator("regions", "ignore")
    @classmethod
    def _polygons(cls, value: tuple[tuple[Point, ...], ...]) -> tuple[tuple[Point, ...], ...]:
        if len(value) > MAX_POLYGONS:
            raise ValueError(f"{len(value)} polygons, at most {MAX_POLYGONS} are read")
        for polygon in value:
            if not 3 <= len(polygon) <= MAX_CORNERS:
                raise ValueError(f"a polygon has 3 to {MAX_CORNERS} corners, not {len(polygon)}")
            for x, y in polygon:
                if not (0 <= x <= 1 and 0 <= y <= 1):
                    raise ValueError(f"corners are fractions 0..1 of the picture's width and height, not [{x}, {y}]")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> CameraSpec:
        if not (self.regions or self.ignore):
            raise ValueError("give regions, ignore, or both")
        return self

    @cached_property
    def sides(self) -> Sides:
        """The sides of all polygons, those of `regions` first; made once, for they are needed with every picture."""
        return sides_of((*self.regions, *self.ignore))


def nearest_of(name: str, known: tuple[str, ...]) -> str:
    """A hint at what may have been meant, for an error message."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known[:20])}"


def unknown_label(spec: InferenceSpec, labels: tuple[str, ...]) -> tuple[str, str, str] | None:
    """The first key that names a class which the model does not have, that name, and a hint; or None."""
    renamed = tuple(dict.fromkeys(spec.rename.get(label, label) for label in labels))
    for key, names, known in (
        ("class_thresholds", spec.class_thresholds, labels),
        ("classes", spec.classes, labels),
        ("rename", spec.rename, labels),
        ("alert_classes", spec.alert_classes, renamed),
    ):
        for name in names:
            if name not in known:
                return key, name, nearest_of(name, known)
    return None
