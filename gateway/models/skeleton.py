"""What a new drop would be, as far as its model files tell: kind of model, layout, labels, inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway import layouts
from gateway.errors import ConfigError
from gateway.layouts.binding import explain
from gateway.layouts.plausible import implausible
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedVariant
from gateway.models.input_plan import InputPlan, WindowPlan
from gateway.models.onnx_file import OnnxFacts, labels_of
from gateway.models.onnx_signature import complete
from gateway.models.repository import ANOMALY_LABELS, LogicalModel
from gateway.models.signature import fit
from gateway.models.skeleton_shapes import fill_in, is_picture, shapes_by_metadata, window_of
from gateway.models.spec import NEED_A_THRESHOLD, USUAL_LAYOUTS, ModelSpec
from gateway.models.torchscript_forward import Forward
from gateway.schema import parse

MAX_BATCH = 8
"""Of a model that can batch: snapshots that Triton may join, as in the sample models."""
TASKS = {
    "detect": "object-detection",
    "segment": "instance-segmentation",
    "classify": "image-classification",
}
"""model_type by the `task` that Ultralytics' tools write into their files."""
_INDEX = re.compile(r"__\d+$")
PLACEHOLDER_THRESHOLD = 1.0
"""A model.yaml of an autoencoder has to have one, and no file tells it."""


@dataclass(frozen=True, slots=True)
class TorchFacts:
    """What is known of a TorchScript file."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    forward: Forward | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller says rather than the files; empty where they are to tell."""

    model_type: str = ""
    layout: str = ""
    labels: tuple[str, ...] = ()
    input: TensorSpec | None = None
    """Type and shape of the picture or window, without the batch; its name does not count."""
    outputs: tuple[TensorSpec, ...] = ()
    """The same of each output, in order."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """All that model.yaml and the config.pbtxt of each variant are written from."""

    name: str
    model_type: str
    layout: str
    also_fit: tuple[str, ...]
    """Other layouts that the shapes allow."""
    labels: tuple[str, ...]
    signature: ModelSignature
    """Under the names of the ONNX file; shapes begin with -1 for the batch when max_batch_size is above 0."""
    plan: InputPlan | WindowPlan
    resize_is_open: bool
    """Whether the model takes pictures of any size, so that model.yaml alone says which."""
    sensor: tuple[int, int]
    """Readings and values in one reading of a model on plain numbers; (0, 0) for pictures."""
    variants: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def takes_pictures(self) -> bool:
        """False for a model on plain numbers."""
        return isinstance(self.plan, InputPlan)

    @property
    def torch_signature(self) -> ModelSignature:
        """The same tensors under the names that Triton's libtorch wants: NAME__INDEX."""
        sides = (self.signature.inputs, self.signature.outputs)
        named = [
            tuple(replace(each, name=f"{_INDEX.sub('', each.name)}__{index}") for index, each in enumerate(side))
            for side in sides
        ]
        return replace(self.signature, name=self.variants.get("torch", ""), inputs=named[0], outputs=named[1])


def outline(name: str, onnx: OnnxFacts | None, torch: TorchFacts | None, wishes: Wishes) -> Skeleton:
    """What a drop of these files is; raises ConfigError where they do not tell, naming the option that does.

    At least one of `onnx` and `torch` is given.
    """
    metadata = {**(torch.metadata if torch else {}), **(onnx.metadata if onnx else {})}
    labels = wishes.labels or labels_of(metadata)
    if onnx is not None:
        signature, is_open = _from_onnx(name, onnx, metadata, wishes)
    else:
        signature, is_open = _from_torch(name, torch or TorchFacts(), wishes), False
    if torch is not None:
        refuse_other_forward(signature, torch.forward, name)
    found = list(_fitting(name, signature, labels, _model_types(signature, metadata, wishes), wishes, is_open))
    if not found:
        raise _no_layout(name, signature, labels, metadata, wishes)
    best, *others = sorted(found, key=lambda each: _rank(each, signature))
    variants = {key: f"{name}-{key}" for key, given in (("onnx", onnx), ("torch", torch)) if given is not None}
    return Skeleton(
        name=name,
        model_type=best.model_type,
        layout=best.layout,
        also_fit=tuple(each.layout for each in others),
        labels=labels,
        signature=signature,
        plan=best.plan,
        resize_is_open=is_open,
        sensor=(0, 0) if isinstance(best.plan, InputPlan) else window_of(signature),
        variants=variants,
        metadata=metadata,
    )


def _from_onnx(name: str, onnx: OnnxFacts, metadata: Mapping[str, str], wishes: Wishes) -> tuple[ModelSignature, bool]:
    """The signature as Triton would see it, and whether height and width are open in it."""
    if not onnx.inputs or not onnx.outputs:
        raise ConfigError("the ONNX file has no inputs or no outputs", where=name, fix="Export the whole model")
    unshaped = [each.name for each in onnx.outputs if not each.shape]
    if unshaped and not wishes.outputs:
        raise ConfigError(
            f"the ONNX file gives no shape for {', '.join(unshaped)[:200]}",
            where=name,
            fix="Say the shape of each output without the batch, in order, such as --output 7x8400",
        )
    signature = complete(ModelSignature(name, "", (), ()), onnx, name)
    signature = replace(signature, max_batch_size=MAX_BATCH if signature.max_batch_size else 0)
    if wishes.outputs:
        signature = replace(signature, outputs=_told(signature.outputs, wishes.outputs, signature.max_batch_size))
    return fill_in(signature, wishes.input, metadata)


def _told(known: Sequence[TensorSpec], told: Sequence[TensorSpec], max_batch_size: int) -> tuple[TensorSpec, ...]:
    """The outputs with the shapes that the caller gives."""
    if len(known) != len(told):
        raise ConfigError(
            f"{len(told)} outputs are given, the ONNX file has {len(known)}: {', '.join(each.name for each in known)}",
            where="--output",
            fix="Give one --output for each, in this order",
        )
    lead = (-1,) if max_batch_size else ()
    return tuple(replace(own, shape=(*lead, *given.shape)) for own, given in zip(known, told, strict=True))


def _from_torch(name: str, torch: TorchFacts, wishes: Wishes) -> ModelSignature:
    """The signature of a TorchScript file by itself, which has no shapes."""
    by_tool = shapes_by_metadata(torch.metadata)
    if by_tool is not None and wishes.input is None and not wishes.outputs:
        return replace(by_tool, name=name)
    if wishes.input is None or not wishes.outputs:
        raise ConfigError(
            "a TorchScript file holds no shapes, and no ONNX file tells them",
            where=name,
            fix="Give --onnx too, or the shapes without the batch: --input 3x640x640 --output 7x8400 [--output ...]",
        )
    arguments = torch.forward.arguments if torch.forward else ("INPUT",)
    inputs = (replace(wishes.input, name=arguments[0], shape=(-1, *wishes.input.shape)),)
    outputs = tuple(
        replace(each, name=f"OUTPUT__{index}", shape=(-1, *each.shape)) for index, each in enumerate(wishes.outputs)
    )
    return ModelSignature(name, "", inputs, outputs, MAX_BATCH)


def refuse_other_forward(signature: ModelSignature, forward: Forward | None, name: str) -> None:
    """Raise ConfigError when the TorchScript file is certainly no twin of what is known of the model."""
    if forward is None:
        return
    for side, own, expected in (
        ("inputs", len(forward.arguments), len(signature.inputs)),
        ("outputs", forward.outputs, len(signature.outputs)),
    ):
        if own not in (None, expected):
            raise ConfigError(
                f"forward() of the TorchScript file has {own} {side}, {expected} are expected",
                where=name,
                fix="Export both files from one model, with the same inputs and outputs",
            )


def _model_types(signature: ModelSignature, metadata: Mapping[str, str], wishes: Wishes) -> tuple[str, ...]:
    """The kinds of model that it can be."""
    if wishes.layout:
        layout = layouts.named(wishes.layout)
        if wishes.model_type not in ("", layout.task):
            raise ConfigError(
                f"the layout '{layout.name}' is for model_type '{layout.task}', not '{wishes.model_type}'",
                where="--layout",
                fix="Correct one of --layout and --type",
            )
        return (layout.task,)
    if wishes.model_type:
        return (wishes.model_type,)
    if known := TASKS.get(metadata.get("task", "")):
        return (known,)
    pictures = is_picture(signature)
    return tuple(each for each in USUAL_LAYOUTS if each.startswith("sensor-") != pictures)


@dataclass(frozen=True, slots=True)
class _Candidate:
    model_type: str
    layout: str
    plan: InputPlan | WindowPlan


def _fitting(
    name: str,
    signature: ModelSignature,
    labels: tuple[str, ...],
    model_types: tuple[str, ...],
    wishes: Wishes,
    is_open: bool,
) -> Iterator[_Candidate]:
    """Every layout with which the gateway would serve the model; raises ConfigError for the one that is wished."""
    for each in [wishes.layout] if wishes.layout else layouts.names():
        task = layouts.named(each).task
        if task not in model_types:
            continue
        try:
            model = _as_model(name, task, each, signature, labels, is_open)
            served = fit(signature, model, ServedVariant(name, name))
        except ConfigError:
            if wishes.layout:
                raise
            continue
        if served.plan is not None and (wishes.layout or _is_likely(served, signature, each)):
            yield _Candidate(task, each, served.plan)


def _is_likely(served: ServedVariant, signature: ModelSignature, layout: str) -> bool:
    """Whether it reads all outputs and they hardly mean something else; nearly every shape could be a map."""
    if len(served.outputs) != len(signature.outputs):
        return False
    if signature.max_batch_size and not all(output.batch_axis for output in served.outputs.values()):
        return False
    if not isinstance(served.plan, InputPlan):
        return True
    by_name = {tensor.name: tensor.shape for tensor in signature.outputs}
    shapes = {role: by_name[output.tensor][output.batch_axis :] for role, output in served.outputs.items()}
    return not implausible(layouts.named(layout), shapes, served.classes, (served.plan.height, served.plan.width))


def _as_model(
    name: str, task: str, layout: str, signature: ModelSignature, labels: tuple[str, ...], is_open: bool
) -> LogicalModel:
    """The model.yaml that would be written, so far as the fit depends on it."""
    data: dict[str, Any] = {"name": name, "model_type": task, "inference": {"output": layout}}
    if layout in NEED_A_THRESHOLD:
        data["inference"]["anomaly_threshold"] = PLACEHOLDER_THRESHOLD
    if task.startswith("sensor-"):
        window, channels = window_of(signature)
        data["sensor"] = {"window": window, "channels": channels}
    elif is_open:
        data["preprocessing"] = {"resize": list(signature.inputs[0].shape[-2:])}
    if not labels and task in ("anomaly-detection", "sensor-anomaly"):
        labels = ANOMALY_LABELS
    return LogicalModel(parse(ModelSpec, data, where=name), labels, Path(name) / "model.yaml")


def _rank(candidate: _Candidate, signature: ModelSignature) -> tuple[int, bool, str]:
    """The more outputs are called as the layout's roles, the likelier it is; then the usual ones."""
    roles = layouts.named(candidate.layout).outputs
    alike = sum(each.name in roles for each in signature.outputs)
    return -alike, candidate.layout not in USUAL_LAYOUTS.values(), candidate.layout


def _no_layout(
    name: str, signature: ModelSignature, labels: tuple[str, ...], metadata: Mapping[str, str], wishes: Wishes
) -> ConfigError:
    usual = USUAL_LAYOUTS[_model_types(signature, metadata, wishes)[0]]
    return ConfigError(
        f"no layout reads the model's outputs: {explain(layouts.named(usual), signature.outputs, len(labels))}",
        where=name,
        fix="Correct --labels or --type; name a layout that reads some of them, or one of your own in LAYOUTS_DIR, "
        "with --layout",
    )
