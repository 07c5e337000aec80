"""What output tensors mean: one small function per layout, found by the name in `inference.output` of model.yaml.

Importing this package registers the layouts that come with it; `gateway.layouts.custom` adds those of LAYOUTS_DIR.
"""

from gateway.layouts import anomaly, classes, detr, end2end, segmentation, sensors, ssd, yolo  # noqa: F401 - registers
from gateway.layouts.base import (
    AnomalyMap,
    Classes,
    Detections,
    Head,
    Layout,
    Mask,
    Masks,
    Outputs,
    Seen,
    Task,
    Values,
    layout,
    named,
    names,
)

__all__ = [
    "AnomalyMap",
    "Classes",
    "Detections",
    "Head",
    "Layout",
    "Mask",
    "Masks",
    "Outputs",
    "Seen",
    "Task",
    "Values",
    "layout",
    "named",
    "names",
]
