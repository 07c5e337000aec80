"""Shapes for a new drop where a file leaves them open: told by the caller, or by what Ultralytics' tools wrote."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace

from gateway.errors import ConfigError
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.onnx_file import labels_of
from gateway.models.signature import USUAL_EXTRAS

LEAST_SIDE = 8
"""Pixels; a smaller axis is none of a picture's."""
STRIDES = (8, 16, 32, 64)
MASKS = 32
"""Prototypes of Ultralytics' segmentation, each a quarter as high and wide as the input."""
MAX_SIDE = 65_536

_TOLD = re.compile(r"(?:(?P<kind>[a-z]+[0-9]*):)?(?P<sides>-?\d{1,9}(?:x-?\d{1,9})*)", re.IGNORECASE)
KINDS = ("FP32", "FP16", "INT64", "INT32", "UINT8", "INT8", "BOOL")
_PAIR = re.compile(r"\[\s*(\d{1,5})\s*,\s*(\d{1,5})\s*\]")


def read_shape(text: str, option: str) -> TensorSpec:
    """`3x640x640` or `uint8:3x640x640`, without the batch; raises ConfigError. The tensor has no name yet."""
    found = _TOLD.fullmatch(text.strip())
    kind = (found["kind"] or "FP32").upper() if found else ""
    sides = tuple(int(side) for side in found["sides"].split("x")) if found else ()
    if kind not in KINDS or not all(side == -1 or 0 < side < 1 << 31 for side in sides):
        raise ConfigError(
            f"'{text[:60]}' is no shape",
            where=option,
            fix=f"Write it as 3x640x640, with another type than FP32 as uint8:3x640x640; types: {', '.join(KINDS)}",
        )
    return TensorSpec("", kind, sides)


def main_input(signature: ModelSignature) -> TensorSpec:
    """The picture or window: the first input that is none of the usual ones beside a picture."""
    return next((each for each in signature.inputs if each.name not in USUAL_EXTRAS), signature.inputs[0])


def without_batch(tensor: TensorSpec, signature: ModelSignature) -> tuple[int, ...]:
    """The shape of one snapshot's tensor."""
    has_batch = bool(signature.max_batch_size) or (len(tensor.shape) > 1 and tensor.shape[0] in (-1, 1))
    return tensor.shape[1:] if has_batch else tensor.shape


def is_picture(signature: ModelSignature) -> bool:
    """Whether the input has the shape of a picture, (channels, height, width) or (height, width, channels)."""
    shape = without_batch(main_input(signature), signature)
    if len(shape) != 3:
        return False
    return any(
        channels in (1, 3, -1) and all(side == -1 or side >= LEAST_SIDE for side in sides)
        for channels, sides in ((shape[0], shape[1:]), (shape[2], shape[:2]))
    )


def window_of(signature: ModelSignature) -> tuple[int, int]:
    """Readings, and values in one reading, of a model on plain numbers; raises ConfigError where that is open.

    Which of two axes is which no file says: a window has more readings than a reading has values, as a rule.
    """
    shape = without_batch(main_input(signature), signature)
    if not 1 <= len(shape) <= 2 or not all(1 <= side <= MAX_SIDE for side in shape):
        raise ConfigError(
            f"the input {list(shape)} is neither a picture nor a window of readings",
            where=signature.name,
            fix="Say its shape without the batch: --input 3x480x640 of a picture, --input 32x1 of 32 readings",
        )
    return (max(shape), min(shape)) if len(shape) == 2 else (shape[0], 1)


def fill_in(
    signature: ModelSignature, told: TensorSpec | None, metadata: Mapping[str, str]
) -> tuple[ModelSignature, bool]:
    """The signature with the open sizes of its input as told, or by `imgsz`; and whether the model leaves them open.

    Raises ConfigError for sizes that nobody tells, and for told ones that the model does not have.
    """
    tensor = main_input(signature)
    shape = without_batch(tensor, signature)
    wanted = told.shape if told is not None else _by_imgsz(shape, metadata)
    if wanted is None:
        if -1 not in shape:
            return signature, False
        raise ConfigError(
            f"the input '{tensor.name}' {list(tensor.shape)} leaves its size open",
            where=signature.name,
            fix="Say it without the batch, such as --input 3x480x640",
        )
    if len(wanted) != len(shape) or any(own not in (-1, size) for own, size in zip(shape, wanted, strict=True)):
        raise ConfigError(
            f"--input says {'x'.join(map(str, wanted))}, the model's input '{tensor.name}' is {list(tensor.shape)}",
            where=signature.name,
            fix="Correct --input, or leave it out where the file tells the shape",
        )
    filled = replace(tensor, shape=(*tensor.shape[: len(tensor.shape) - len(shape)], *wanted))
    inputs = tuple(filled if each is tensor else each for each in signature.inputs)
    return replace(signature, inputs=inputs), -1 in shape


def _by_imgsz(shape: tuple[int, ...], metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    size = _imgsz(metadata)
    return (3, *size) if size is not None and -1 in shape and len(shape) == 3 else None


def _imgsz(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    found = _PAIR.fullmatch(metadata.get("imgsz", "").strip())
    return (int(found[1]), int(found[2])) if found else None


def shapes_by_metadata(metadata: Mapping[str, str]) -> ModelSignature | None:
    """What an Ultralytics TorchScript file takes and gives, by what the tool wrote into it; None where that is not
    certain: boxes that are suppressed in the model already, and RT-DETR."""
    size, classes, task = _imgsz(metadata), len(labels_of(metadata)), metadata.get("task", "")
    if size is None or not classes or task not in ("detect", "segment", "classify"):
        return None
    if (
        metadata.get("end2end") == "True"
        or _arguments(metadata).get("nms")
        or "rtdetr" in metadata.get("description", "").lower()
    ):
        return None
    largest = 64 if metadata.get("stride") == "64" else 32
    cells = sum((size[0] // stride) * (size[1] // stride) for stride in STRIDES if stride <= largest)
    by_task: dict[str, list[tuple[int, ...]]] = {
        "detect": [(4 + classes, cells)],
        "segment": [(4 + classes + MASKS, cells), (MASKS, size[0] // 4, size[1] // 4)],
        "classify": [(classes,)],
    }
    batch = int(metadata["batch"]) if re.fullmatch(r"\d{1,3}", metadata.get("batch", "")) else 1
    return ModelSignature(
        "",
        "",
        (TensorSpec("images", "FP32", (batch, 3, *size)),),
        tuple(TensorSpec(f"output{index}", "FP32", (batch, *shape)) for index, shape in enumerate(by_task[task])),
    )


def _arguments(metadata: Mapping[str, str]) -> Mapping[str, object]:
    """What the tool was called with: a small dict in Python's notation; {} for anything else."""
    text = metadata.get("args", "")
    if len(text) < 10_000 and text.count("{") == 1:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text)
            return found if isinstance(found, dict) else {}
    return {}
