"""Which output tensor plays which role of a layout: by the shapes, types and names that the model announces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import BackendInvalidResponse
from gateway.layouts.base import Dim, Head, Layout, Outputs, Seen, named, names, parts_of
from gateway.messages import TensorSpec

MAX_TRIED = 25_000
"""Ways to give out the roles that are tried; a model with more has to name its outputs."""
MAX_LISTED = 6
"""Outputs or layouts that one message lists."""

INTEGERS = frozenset(("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"))
READABLE = INTEGERS | {"FP16", "FP32", "FP64", "BOOL"}

ALIASES = {
    "boxes": ("box", "dets", "loc"),
    "scores": ("score", "conf", "prob"),
    "labels": ("label", "class", "cls"),
    "logits": ("logit", "label", "class", "cls", "score"),
}
"""Parts of the names that exports give to these roles."""

Assignment = dict[str, TensorSpec]
"""Role to tensor."""


@dataclass(frozen=True, slots=True)
class BoundOutput:
    """The tensor of one role; `batch_axis` is False where the model gives one picture's answer without it."""

    tensor: str
    batch_axis: bool


def bind(
    layout: Layout, tensors: Sequence[TensorSpec], classes: int, given: Mapping[str, str]
) -> dict[str, BoundOutput] | None:
    """The tensor of each role; `given` fixes roles by name, `classes` is 0 where it is not known.

    None when the shapes do not fit, and when tensors fit roles equally well in several ways: a wrong guess would serve.
    """
    found = _best(layout, tensors, classes, given)
    if len(found) != 1:
        return None
    return {
        role: BoundOutput(tensor.name, batch_axis=len(tensor.shape) > len(layout.outputs[role]))
        for role, tensor in found[0].items()
    }


def fitting_layouts(layouts: Iterable[Layout], tensors: Sequence[TensorSpec], classes: int) -> list[str]:
    """The names of the layouts that these outputs could be."""
    return [layout.name for layout in layouts if _best(layout, tensors, classes, {})]


def classes_of(layout: Layout, tensors: Sequence[TensorSpec], bound: Mapping[str, BoundOutput]) -> int:
    """How many classes the shapes of the bound tensors tell, or 0."""
    by_name = {tensor.name: tensor for tensor in tensors}
    sizes = _sizes(layout, {role: by_name[output.tensor] for role, output in bound.items()}, {})
    return (sizes or {}).get("C", 0)


def read(layout: Layout, outputs: Outputs, head: Head) -> Seen:
    """What one picture's tensors say; raises BackendInvalidResponse for shapes that are not the layout's."""
    sizes: dict[str, int] | None = _known(head.classes)
    for role, pattern in layout.outputs.items():
        sizes = _matched(outputs[role].shape, pattern, sizes)
    if sizes is None:
        came = ", ".join(f"{role} {list(outputs[role].shape)}" for role in layout.outputs)
        raise BackendInvalidResponse(f"the model answered {came}, expected {_expected(layout, head.classes)}")
    return layout.decode(outputs, head)


def explain(layout: Layout, tensors: Sequence[TensorSpec], classes: int, given: Mapping[str, str] | None = None) -> str:
    """Where `bind` says None: why these outputs do not fit the layout, and what they would fit, in one line."""
    came = (
        _listed([f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors], "and") or "no outputs"
    )
    text = f"{came}, expected {_expected(layout, classes)}"
    if given and _best(layout, tensors, classes, {}):
        roles = _listed([f"{role}: {name}" for role, name in given.items()], "and")
        return f"{text}; it would fit without {roles} in inference.outputs"
    if len(_best(layout, tensors, classes, given or {})) > 1:
        return f"{text}; several outputs fit {_listed(list(layout.outputs), 'or')}: inference.outputs has to name them"
    unread = sorted({tensor.datatype for tensor in tensors} - READABLE)
    if unread:
        text += f"; {_listed(unread, 'and')} is not read"
    likely = _likely(layout, tensors, classes)
    return f"{text}; it would fit {_listed(likely, 'or')}" if likely else f"{text}; no known layout fits"


def _likely(layout: Layout, tensors: Sequence[TensorSpec], classes: int) -> list[str]:
    """Layouts that would fit, most likely only: with that number of classes rather than with another one, and of the
    same task rather than of one that also reads pictures, or also does not."""
    every = sorted((named(name) for name in names()), key=lambda each: (each != layout, each.name))
    for_sensors = layout.task.startswith("sensor-")
    same = [each for each in every if each.task == layout.task]
    # Other tasks have layouts that nearly everything fits, but for the number of classes.
    kin = [each for each in every if each not in same and each.task.startswith("sensor-") == for_sensors]
    groups = (same, [each for each in kin if _tells_classes(each)])
    for group in groups if classes else ():
        found = fitting_layouts(group, tensors, classes)
        if found:
            return [name + _of_task(name, layout) for name in found]
    for group in (same, kin):
        told = [(each.name, count) for each in group if (count := _likely_classes(each, tensors)) is not None]
        if told:
            return [name + _with_labels(count) + _of_task(name, layout) for name, count in told]
    return []


def _of_task(name: str, layout: Layout) -> str:
    task = named(name).task
    return "" if task == layout.task else f" with model_type {task}"


def _tells_classes(layout: Layout) -> bool:
    return any(parts_of(dim)[0] == "C" for shape in layout.outputs.values() for dim in shape)


def _likely_classes(layout: Layout, tensors: Sequence[TensorSpec]) -> int | None:
    """The classes if the tensors were of this layout, 0 where they do not tell; None when that is not likely.

    An unknown number of classes makes any two axes fit: the longer one is hardly that of the classes.
    """
    found = _best(layout, tensors, 0, {})
    if not found or not found[0]:
        return None
    sizes = _sizes(layout, found[0], {}) or {}
    count = sizes.pop("C", 0)
    return count if all(count <= size for size in sizes.values()) else None


def _best(layout: Layout, tensors: Sequence[TensorSpec], classes: int, given: Mapping[str, str]) -> list[Assignment]:
    """The ways to give out the roles that names and types speak for most; more than one leaves it open."""
    known = _known(classes)
    choices = [
        [
            tensor
            for tensor in tensors
            if given.get(role) in (None, tensor.name)
            and tensor.datatype in READABLE
            and _matched(_without_batch(tensor.shape, pattern), pattern, known) is not None
        ]
        for role, pattern in layout.outputs.items()
    ]
    if math.prod(map(len, choices)) > MAX_TRIED:
        return [{}, {}]
    found: list[Assignment] = []
    most = -1
    for chosen in itertools.product(*choices):
        assignment = dict(zip(layout.outputs, chosen, strict=True))
        if _sizes(layout, assignment, known) is None or len({tensor.name for tensor in chosen}) < len(chosen):
            continue
        rank = sum(_hint(role, tensor) for role, tensor in assignment.items())
        if rank >= most:
            found = [*found, assignment] if rank == most else [assignment]
            most = rank
    return found


def _sizes(layout: Layout, assignment: Assignment, known: dict[str, int]) -> dict[str, int] | None:
    """What the names in the layout's patterns stand for, or None when the tensors do not agree on it."""
    sizes: dict[str, int] | None = known
    for role, tensor in assignment.items():
        pattern = layout.outputs[role]
        sizes = _matched(_without_batch(tensor.shape, pattern), pattern, sizes)
    return sizes


def _hint(role: str, tensor: TensorSpec) -> int:
    """How much name and type speak for the role; a name more than a type."""
    name = tensor.name.lower()
    alike = any(part in name for part in ALIASES.get(role, (role,)))
    return 4 * (name == role) + 2 * alike + ((tensor.datatype in INTEGERS) == (role == "labels"))


def _known(classes: int) -> dict[str, int]:
    return {"C": classes} if classes else {}


def _without_batch(shape: tuple[int, ...], pattern: tuple[Dim, ...]) -> tuple[int, ...] | None:
    """The shape of one picture's tensor; None when it cannot be one of the pattern."""
    if len(shape) == len(pattern) + 1 and shape[0] in (-1, 1):
        return shape[1:]
    # A first axis of any size is how many objects there are, or else a batch of something of fewer axes.
    counts_objects = bool(pattern) and pattern[0] != "C" and not parts_of(pattern[0])[1]
    return shape if shape[:1] != (-1,) or counts_objects else None


def _matched(
    shape: tuple[int, ...] | None, pattern: tuple[Dim, ...], sizes: dict[str, int] | None
) -> dict[str, int] | None:
    """What the names stand for after this shape too, or None when it does not fit the pattern and what is known."""
    if sizes is None or shape is None or len(shape) != len(pattern):
        return None
    found = dict(sizes)
    for size, dim in zip(shape, pattern, strict=True):
        name, constant = parts_of(dim)
        rest = size - constant
        if size == -1:
            continue
        if not name:
            if rest:
                return None
        elif rest < (0 if name.endswith("?") else 1) or found.setdefault(name.removesuffix("?"), rest) != rest:
            return None
    return found


def _expected(layout: Layout, classes: int) -> str:
    text = f"{layout.name}: {layout.expects}"
    if not classes or not _tells_classes(layout):
        return text
    counted = layout.expects_for(classes)
    if len(layout.outputs) == 1:
        counted = counted[counted.index("[") :]
    return f"{text} = {counted}{_with_labels(classes, 'for')}"


def _with_labels(count: int, word: str = "with") -> str:
    return f" {word} {count} label{'s' * (count != 1)}" if count else ""


def _listed(items: list[str], word: str) -> str:
    """As in a sentence: "a, b or c"; of many only the first."""
    if len(items) > MAX_LISTED:
        items = [*items[:MAX_LISTED], f"{len(items) - MAX_LISTED} more"]
    return f" {word} ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))
