"""Whether a loaded model fits its model.yaml: said once at load time rather than at every snapshot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from gateway import layouts
from gateway.errors import ConfigError
from gateway.layouts import Layout
from gateway.layouts.binding import BoundOutput, bind, classes_of, explain
from gateway.layouts.plausible import implausible
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedVariant, State
from gateway.models.inference_spec import unknown_label
from gateway.models.input_plan import Datatype, ExtraInput, InputPlan, Meaning, WindowPlan
from gateway.models.preprocessing_spec import PreprocessingSpec
from gateway.models.repository import LogicalModel

USUAL_EXTRAS: dict[str, Meaning] = {
    "orig_target_sizes": "input_width_height",
    "im_shape": "input_height_width",
    "scale_factor": "scale_height_width",
    "pixel_mask": "mask",
}
"""Inputs beside the picture as the exports of RT-DETR, PaddleDetection and DETR name them."""
BYTES_OF: dict[Datatype, int] = {"FP32": 4, "FP16": 2, "UINT8": 1, "INT8": 1}
MAX_INPUT_BYTES = 64 * 2**20
"""Tensors of one snapshot; MAX_IN_FLIGHT of them may be in memory at the same time."""
EXTRA_TYPES = ("FP32", "FP16", "INT64", "INT32", "BOOL", "UINT8")
_INDEX = re.compile(r"__\d+$")
UNBOUNDED = 64
"""Pictures per request where the model sets no limit."""


def fit(signature: ModelSignature, model: LogicalModel, variant: ServedVariant) -> ServedVariant:
    """The variant, ready, its inputs and outputs settled; raises ConfigError saying what came and what was expected."""
    where = f"{model.path} against Triton model '{signature.name}'"
    if not model.labels and (unknown := unknown_label(model.spec.inference, ())):
        raise ConfigError(
            f"inference.{unknown[0]} names '{unknown[1]}', and the model has no labels",
            where=where,
            fix="Write labels.txt beside model.yaml, one class a line",
        )
    plan, tensor = (_plan_picture if model.spec.takes_pictures else _plan_window)(signature, model, where)
    layout = model.spec.layout
    given = {role: _known_output(name, signature, where) for role, name in model.spec.inference.outputs.items()}
    bound = bind(layout, signature.outputs, len(model.labels), given)
    if bound is None:
        raise ConfigError(
            explain(layout, signature.outputs, len(model.labels), given),
            where=where,
            fix="Correct labels, model_type or inference.output in model.yaml",
        )
    classes = len(model.labels) or classes_of(layout, signature.outputs, bound)
    if not model.labels and isinstance(plan, InputPlan):
        _refuse_implausible(layout, signature, bound, plan, where)
    return replace(
        variant,
        state=State.READY,
        reason="",
        version=signature.version,
        plan=plan,
        outputs=bound,
        classes=classes,
        max_batch=_max_batch(signature, tensor, plan, batched=all(output.batch_axis for output in bound.values())),
        on_gpu=signature.on_gpu,
    )


def _refuse_implausible(
    layout: Layout, signature: ModelSignature, bound: Mapping[str, BoundOutput], plan: InputPlan, where: str
) -> None:
    """Without labels nearly every shape fits: raise ConfigError where it hardly means what the layout says."""
    why = _doubt(layout, signature, bound, plan)
    if not why:
        return
    others = [
        each.name
        for each in map(layouts.named, layouts.names())
        if each.task == layout.task
        and (found := bind(each, signature.outputs, 0, {})) is not None
        and not _doubt(each, signature, found, plan)
    ]
    came = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in signature.outputs)
    hint = f"; it would fit {' or '.join(others)}" if others else ""
    raise ConfigError(
        f"{came} is hardly {layout.name}: {why}{hint}",
        where=where,
        fix="Correct inference.output, or write labels.txt beside model.yaml if it is right",
    )


def _doubt(layout: Layout, signature: ModelSignature, bound: Mapping[str, BoundOutput], plan: InputPlan) -> str:
    by_name = {tensor.name: tensor.shape for tensor in signature.outputs}
    shapes = {role: by_name[output.tensor][output.batch_axis :] for role, output in bound.items()}
    return implausible(layout, shapes, classes_of(layout, signature.outputs, bound), (plan.height, plan.width))


def _plan_picture(signature: ModelSignature, model: LogicalModel, where: str) -> tuple[InputPlan, TensorSpec]:
    spec = model.spec.preprocessing
    extras = {tensor.name: meaning for tensor in signature.inputs if (meaning := _meaning(tensor.name, spec.inputs))}
    for name in spec.inputs:
        if name not in (*extras, *map(_plain, extras)):
            raise ConfigError(f"preprocessing.inputs names '{name}', which the model does not have", where=where,
                              fix=f"Its inputs are {_names(signature.inputs)}")  # fmt: skip
    tensor = _the_picture(signature, extras, where)
    if tensor.datatype not in BYTES_OF:
        raise ConfigError(f"the input '{tensor.name}' is {tensor.datatype}; a picture is {', '.join(BYTES_OF)}",
                          where=where, fix="Export the model with such an input")  # fmt: skip
    shape = _without_batch(tensor, signature, rank=3)
    if shape is None:
        raise ConfigError(
            f"the input '{tensor.name}' has the shape {list(tensor.shape)}, a picture has [batch, 3, height, width]",
            where=where,
            fix="Export it with a free batch axis or one of 1; a model on plain numbers has a model_type sensor-...",
        )
    channels_last = _channels_last(shape, spec.layout)
    channels, height, width = (shape[2], shape[0], shape[1]) if channels_last else shape
    if channels not in (-1, 1, 3):
        raise ConfigError(f"the input '{tensor.name}' has {channels} channels, a picture has 3 or 1", where=where,
                          fix="Correct preprocessing.layout, or export the model for RGB or grey pictures")  # fmt: skip
    height, width = _size(tensor, (height, width), spec.resize, where)
    plan = InputPlan(
        name=tensor.name,
        height=height,
        width=width,
        channels=1 if channels == 1 or (channels == -1 and spec.color == "GRAY") else 3,
        channels_last=channels_last,
        datatype=tensor.datatype,
        extras=tuple(
            _extra(each, extras[each.name], signature, where) for each in signature.inputs if each.name in extras
        ),
    )
    _refuse_huge(plan, spec, where)
    return plan, tensor


def _the_picture(signature: ModelSignature, extras: Mapping[str, Meaning], where: str) -> TensorSpec:
    pictures = [tensor for tensor in signature.inputs if tensor.name not in extras]
    if len(pictures) != 1:
        raise ConfigError(
            f"of the inputs ({_names(signature.inputs)}) exactly one must be the picture",
            where=where,
            fix="Say in preprocessing.inputs what the others are told, such as `orig_size: input_height_width`",
        )
    return pictures[0]


def _refuse_huge(plan: InputPlan, spec: PreprocessingSpec, where: str) -> None:
    """Raise ConfigError when the tensors of one snapshot would take more memory than several may at a time."""
    pictures, size = _pictures(spec), input_bytes(plan, spec)
    if size > MAX_INPUT_BYTES:
        raise ConfigError(
            f"the input '{plan.name}' takes {size / 2**20:.0f} MiB for one snapshot ({pictures} of {plan.height}x"
            f"{plan.width} {plan.datatype}), the limit is {MAX_INPUT_BYTES // 2**20} MiB",
            where=where,
            fix="Lower preprocessing.tiles.max_tiles" if pictures > 1 else "Export the model for a smaller picture",
        )


def input_bytes(plan: InputPlan, spec: PreprocessingSpec) -> int:
    """Bytes of the tensor of one snapshot at most, with all tiles of a picture that is cut."""
    return _pictures(spec) * plan.height * plan.width * plan.channels * BYTES_OF[plan.datatype]


def _pictures(spec: PreprocessingSpec) -> int:
    return spec.tiles.max_tiles + spec.tiles.whole if spec.mode == "tiles" else 1


def _meaning(name: str, given: dict[str, Meaning]) -> Meaning | None:
    return given.get(name) or given.get(_plain(name)) or USUAL_EXTRAS.get(_plain(name))


def _plain(name: str) -> str:
    """A tensor's name without the `__INDEX` that libtorch wants; model.yaml may leave it out, for both variants."""
    return _INDEX.sub("", name)


def _extra(tensor: TensorSpec, meaning: Meaning, signature: ModelSignature, where: str) -> ExtraInput:
    if tensor.datatype not in EXTRA_TYPES:
        raise ConfigError(f"the input '{tensor.name}' is {tensor.datatype}, not one of {', '.join(EXTRA_TYPES)}",
                          where=where, fix="Export the model with such an input")  # fmt: skip
    rank = 2 if meaning == "mask" else 1
    shape = _without_batch(tensor, signature, rank=rank)
    if shape is None or (rank == 1 and shape[0] not in (-1, 2)):
        raise ConfigError(
            f"the input '{tensor.name}' has the shape {list(tensor.shape)}, "
            f"{meaning} has {'[batch, height, width]' if rank == 2 else '[batch, 2]'}",
            where=where,
            fix="Correct preprocessing.inputs",
        )
    return ExtraInput(tensor.name, meaning, tensor.datatype, batch_axis=len(tensor.shape) == rank + 1)


def _without_batch(tensor: TensorSpec, signature: ModelSignature, rank: int) -> tuple[int, ...] | None:
    """The shape of one picture's tensor, or None when it is neither that nor a batch of it."""
    if len(tensor.shape) == rank + 1 and tensor.shape[0] in (-1, 1):
        return tensor.shape[1:]
    if len(tensor.shape) == rank and not signature.max_batch_size:
        return tensor.shape
    return None


def _channels_last(shape: tuple[int, ...], layout: str | None) -> bool:
    if layout is not None:
        return layout == "NHWC"
    return shape[0] not in (-1, 1, 3) and shape[2] in (1, 3)


def _size(tensor: TensorSpec, shape: tuple[int, int], resize: tuple[int, int] | None, where: str) -> tuple[int, int]:
    """Height and width of the input: as given, else as the model has them."""
    if resize is None:
        if -1 in shape:
            raise ConfigError(
                f"the input '{tensor.name}' {list(tensor.shape)} leaves height and width open",
                where=where,
                fix="Give preprocessing.resize: [height, width]",
            )
        return shape
    if any(size not in (-1, wanted) for size, wanted in zip(shape, resize, strict=True)):
        raise ConfigError(
            f"the input '{tensor.name}' is {tensor.datatype} {list(tensor.shape)}, that is {shape[0]} high and "
            f"{shape[1]} wide; preprocessing.resize says {list(resize)}",
            where=where,
            fix=f"Set preprocessing.resize to [{shape[0]}, {shape[1]}], or leave it out",
        )
    return resize


def _plan_window(signature: ModelSignature, model: LogicalModel, where: str) -> tuple[WindowPlan, TensorSpec]:
    sensor = model.spec.sensor
    if len(signature.inputs) != 1:
        raise ConfigError(f"the model has the inputs {_names(signature.inputs)}, one is expected", where=where,
                          fix="Export the model with the window of readings as its only input")  # fmt: skip
    tensor = signature.inputs[0]
    shapes = [(sensor.window, sensor.channels), (sensor.channels, sensor.window), (sensor.window * sensor.channels,)]
    for shape in shapes:
        given = _without_batch(tensor, signature, rank=len(shape))
        if given is not None and all(size in (-1, wanted) for size, wanted in zip(given, shape, strict=True)):
            match tensor.datatype:
                case "FP32" | "FP16":
                    return WindowPlan(tensor.name, shape, tensor.datatype), tensor
    raise ConfigError(
        f"the input '{tensor.name}' is {tensor.datatype} {list(tensor.shape)}; {sensor.window} readings of "
        f"{sensor.channels} values are FP32 or FP16 [batch, {sensor.window}, {sensor.channels}], with the last two "
        "either way round or as one",
        where=where,
        fix="Correct sensor.window and sensor.channels in model.yaml",
    )


def _max_batch(signature: ModelSignature, tensor: TensorSpec, plan: InputPlan | WindowPlan, *, batched: bool) -> int:
    """Pictures in one request; 0 when it has no batch axis at all; `batched` tells whether the outputs have one."""
    rank = 3 if isinstance(plan, InputPlan) else len(plan.shape)
    if len(tensor.shape) == rank:
        return 0
    if not batched:
        return 1  # answers without a batch axis cannot be told apart
    if signature.max_batch_size:
        return signature.max_batch_size
    return UNBOUNDED if tensor.shape[0] == -1 else 1


def _known_output(name: str, signature: ModelSignature, where: str) -> str:
    known = {_plain(tensor.name): tensor.name for tensor in signature.outputs}
    known |= {tensor.name: tensor.name for tensor in signature.outputs}
    if name not in known:
        raise ConfigError(f"inference.outputs names '{name}', which the model does not have", where=where,
                          fix=f"Its outputs are {_names(signature.outputs)}")  # fmt: skip
    return known[name]


def _names(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"'{tensor.name}'" for tensor in tensors) or "none"
