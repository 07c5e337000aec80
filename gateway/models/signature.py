"""Whether a loaded model fits its model.yaml: said once at load time rather than at every snapshot."""

from __future__ import annotations

from dataclasses import replace

from gateway.errors import ConfigError
from gateway.messages import ModelSignature
from gateway.models.catalog import ServedVariant, State
from gateway.models.repository import LogicalModel


def fit(signature: ModelSignature, model: LogicalModel, variant: ServedVariant) -> ServedVariant:
    """The variant, ready, with its tensors' names; raises ConfigError saying what came and what was expected."""
    where = f"{model.folder / 'model.yaml'} against Triton model '{signature.name}'"
    batched = signature.max_batch_size > 0
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs) or "none"
        raise ConfigError(f"the model has {len(signature.inputs)} inputs ({names}), one is supported", where=where,
                          fix="Export the model with the picture as its only input")  # fmt: skip
    tensor = signature.inputs[0]
    height, width = model.spec.preprocessing.resize
    expected = (3, height, width)
    given = tensor.shape[1:] if batched or len(tensor.shape) == 4 else tensor.shape
    if (
        tensor.datatype != "FP32"
        or len(given) != 3
        or any(g not in (-1, e) for g, e in zip(given, expected, strict=True))
    ):
        raise ConfigError(
            f"the input '{tensor.name}' is {tensor.datatype} {list(given)}, "
            f"preprocessing gives FP32 {list(expected)} (channels, height, width)",
            where=where,
            fix="Set preprocessing.resize to the model's height and width",
        )
    if not signature.outputs:
        raise ConfigError("the model has no outputs", where=where, fix="Name its outputs in config.pbtxt")
    _check_output(signature, model, where, batched=batched)
    return replace(
        variant,
        state=State.READY,
        reason="",
        version=signature.version,
        input_name=tensor.name,
        output_names=(signature.outputs[0].name,),
        batched=batched or len(tensor.shape) == 4,
    )


def _check_output(signature: ModelSignature, model: LogicalModel, where: str, *, batched: bool) -> None:
    spec, labels = signature.outputs[0], len(model.labels)
    if model.spec.inference.output == "yolov8":
        shape = spec.shape[1:] if batched or len(spec.shape) == 3 else spec.shape
        fits = len(shape) == 2 and shape[0] in (-1, 4 + labels)
        layout = f"[{4 + labels}, N] for {labels} labels (yolov8: 4 box values, then one score a class)"
    else:
        shape = spec.shape[1:] if batched or len(spec.shape) == 2 else spec.shape
        fits = len(shape) == 1 and shape[0] in (-1, labels)
        layout = f"[{labels}] for {labels} labels (classification)"
    if not fits or spec.datatype != "FP32":
        raise ConfigError(
            f"the output '{spec.name}' is {spec.datatype} {list(shape)}, expected FP32 {layout}",
            where=where,
            fix="Correct labels or inference.output in model.yaml",
        )
