"""The registry of layouts, and what a layout is given and gives back."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gateway.errors import ConfigError

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

Outputs = Mapping[str, NDArray[Any]]
"""One picture's output tensors by role, without the batch axis; read-only, of whatever type the model gives."""

Task = Literal[
    "object-detection",
    "image-classification",
    "instance-segmentation",
    "anomaly-detection",
    "sensor-anomaly",
    "sensor-classification",
    "sensor-regression",
]


BoxFormat = Literal["xyxy", "cxcywh", "yxyx"]
BoxUnits = Literal["pixels", "normalized"]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What a layout may need to know of its model; all of it from model.yaml and the loaded model."""

    classes: int = 0
    """How many labels there are; 0: not known, the tensors tell."""
    height: int = 0
    """Height of the model's input in pixels; 0 for models on plain numbers."""
    width: int = 0
    thresholds: float | Floats = 0.5
    """Least confidence, the same for all classes or (classes,) one for each; a prediction must be above it."""
    iou_threshold: float = 0.5
    """Boxes of one class that overlap more than this are one object."""
    max_detections: int = 300
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    """What turns numbers into confidences; None: what is usual for the layout."""
    top_k: int = 1
    box_format: BoxFormat | None = None
    box_units: BoxUnits | None = None
    """Of the model's input: pixels, or fractions 0..1 of its width and height. None: what is usual for the layout."""
    background: Literal["none", "first", "last"] | None = None
    """Which class stands for "nothing there"; it is left out and does not count among the labels."""
    anomaly_threshold: float | None = None
    """The anomaly score at which the confidence is 0.5; None: scores are confidences already."""
    question: NDArray[Any] | None = None
    """The input of a model on plain numbers as it was asked, (window, channels), normalised; None for pictures."""

    @property
    def least_threshold(self) -> float:
        """A prediction that is not above this is above the threshold of no class."""
        return float(np.min(self.thresholds, initial=1.0))

    def threshold_of(self, class_ids: Indices) -> float | Floats:
        """The least confidence for each of these classes."""
        if isinstance(self.thresholds, float | int):
            return float(self.thresholds)
        # A class beyond the labels has no threshold of its own: the lowest one holds.
        table = np.append(self.thresholds, self.thresholds.min(initial=1.0))
        found: Floats = table[np.minimum(class_ids, len(self.thresholds))].astype(np.float32)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Where one object is: cells (h, w), and where they lie in the model's input, in its pixels."""

    cells: NDArray[np.bool_]
    left: float = 0.0
    top: float = 0.0
    """Corner of the first cell."""
    cell_width: float = 1.0
    cell_height: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """The masks of all objects, made one at a time: 300 of them at 640x640 would hold 120 MB at once."""

    of: Callable[[int], Mask]
    """The mask of the object with this index among the boxes."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Objects, best first: boxes (K, 4) as [x1, y1, x2, y2] in pixels of the model's input, scores and classes (K,)."""

    boxes: Floats
    scores: Floats
    class_ids: Indices
    masks: Masks | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Classes of the whole picture or window, best first; ids and scores (K,)."""

    class_ids: Indices
    scores: Floats


@dataclass(frozen=True, slots=True, eq=False)
class AnomalyMap:
    """How unusual the whole is (0..1, above 0.5 is unusual), and where: heat (h, w) in 0..1 over the model's input."""

    score: float
    heat: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Plain numbers (n,), as a regression gives them."""

    values: Floats


Seen = Detections | Classes | AnomalyMap | Values
Decode = Callable[[Outputs, Head], Seen]
Dim = int | str
"""A number; a text of numbers and `C` (the classes) joined by `+`, such as "4+C"; or a name such as "N" for any size
above 0 ("N?": 0 too), which is the same wherever one layout has that name."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to read output tensors."""

    name: str
    task: Task
    outputs: Mapping[str, tuple[Dim, ...]]
    """Role to shape without the batch axis."""
    decode: Decode
    summary: str
    """What it is and which models have it, in one line."""
    settings: Mapping[str, tuple[str, ...]]
    """Which of `activation`, `box_format`, `box_units` and `background` it reads: what they may be, the usual first."""
    custom: bool = False
    """Whether it is the user's code, of which nothing is known: how long it takes, and whether it ends."""

    @property
    def expects(self) -> str:
        """The shapes in words, such as `output [4+C, N]`."""
        return _shapes(self.outputs)

    def expects_for(self, classes: int) -> str:
        """The shapes for that many classes, such as `output [84, N]`."""
        return _shapes({role: tuple(_counted(dim, classes) for dim in shape) for role, shape in self.outputs.items()})

    def objection(self, setting: str, value: str) -> str:
        """What speaks against this value of one of the `settings`, or "" when nothing does."""
        known = self.settings.get(setting)
        if known is None:
            return f"the layout '{self.name}' does not read {setting}"
        return "" if value in known else f"{setting} of the layout '{self.name}' is {' or '.join(known)}, not {value}"


def parts_of(dim: Dim) -> tuple[str, int]:
    """The name in a dimension, or "", and the sum of its numbers: ("C", 4) of "4+C"."""
    parts = str(dim).split("+")
    return "".join(part for part in parts if not part.isdigit()), sum(int(part) for part in parts if part.isdigit())


def _counted(dim: Dim, classes: int) -> Dim:
    name, rest = parts_of(dim)
    return rest + classes if name == "C" else dim


def _shapes(outputs: Mapping[str, tuple[Dim, ...]]) -> str:
    shapes = {role: ", ".join(str(dim).removesuffix("?") for dim in shape) for role, shape in outputs.items()}
    return ", ".join(f"{role} [{shape}]" for role, shape in shapes.items())


_registry: dict[str, Layout] = {}


def layout(
    name: str,
    *,
    task: Task,
    outputs: Mapping[str, tuple[Dim, ...]],
    settings: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[Decode], Decode]:
    """Register a function as the layout `name`; the first line of its docstring is its summary.

    It gets the tensors by role, without the batch axis, and returns what is seen. Raise BackendInvalidResponse for
    values that make no sense. Raises ConfigError when the name is taken.
    """

    def register(decode: Decode) -> Decode:
        if name in _registry:
            raise ConfigError(f"there is already a layout '{name}'", where="layouts", fix="Give yours another name")
        summary = (decode.__doc__ or "").strip().partition("\n")[0]
        _registry[name] = Layout(name, task, outputs, decode, summary, settings or {})
        return decode

    return register


def named(name: str) -> Layout:
    """The layout of that name; raises ConfigError naming the nearest one."""
    try:
        return _registry[name]
    except KeyError:
        nearest = difflib.get_close_matches(name.lower(), _registry, n=1, cutoff=0.6)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known layouts: {', '.join(names())}"
        raise ConfigError(f"unknown layout '{name}' ({hint})", where="inference.output", fix="Correct it") from None


def names() -> tuple[str, ...]:
    """All layouts, in the order of the alphabet."""
    return tuple(sorted(_registry))
