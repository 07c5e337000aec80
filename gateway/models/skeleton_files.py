"""The files of a new drop as texts: model.yaml and config.pbtxt, with the comments that a person needs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import yaml

from gateway.messages import ModelSignature, TensorSpec
from gateway.models.input_plan import InputPlan
from gateway.models.skeleton import PLACEHOLDER_THRESHOLD, Skeleton
from gateway.models.spec import NEED_A_THRESHOLD

COLUMN = 34
"""Where comments begin, as in the sample models."""
TRITON_STRING = "STRING"


def model_yaml(skeleton: Skeleton) -> str:
    """The model.yaml; what no file tells stands there with its usual value and a word on when it is another."""
    plan = skeleton.plan
    question = _preprocessing(skeleton, plan) if isinstance(plan, InputPlan) else _sensor(skeleton)
    parts = [_head(skeleton), question, _inference(skeleton), _ROLLOUT, _MQTT]
    return "\n".join("\n".join(part) + "\n" for part in parts)


def labels_txt(skeleton: Skeleton) -> str:
    """One class a line; empty where nothing names the classes, or a name would not survive as a line."""
    lines = "".join(f"{label}\n" for label in skeleton.labels)
    kept = tuple(line.strip() for line in lines.splitlines())
    return lines if kept == skeleton.labels and all(kept) else ""


def config_pbtxt(skeleton: Skeleton, variant: str) -> str:
    """The config.pbtxt of the variant `onnx` or `torch`."""
    signature = skeleton.torch_signature if variant == "torch" else skeleton.signature
    return "".join(f"{line}\n" for line in _config(skeleton, variant, signature))


def _said(text: str, comment: str) -> str:
    return f"{text:<{COLUMN - 2}}  # {comment}" if len(text) < COLUMN else f"{text}  # {comment}"


def _head(skeleton: Skeleton) -> list[str]:
    lines = [
        "# Written by `edge-gateway models new`. What the model files tell is filled in; the rest has its usual value.",
        f"name: {_scalar(skeleton.name)}",
    ]
    if len(skeleton.variants) > 1:
        lines.append(_said("# backend: onnx", "who answers: onnx | torch | dual; without it DEFAULT_BACKEND decides"))
    lines.append(f"model_type: {skeleton.model_type}")
    if labels_txt(skeleton):
        lines.append(_said("labels: labels.txt", "one class per line; the line number, from 0, is the class id"))
    elif skeleton.model_type in ("object-detection", "instance-segmentation", "image-classification"):
        lines.append("# No labels: classes are called class_0, ...; write labels.txt beside this file, one a line.")
    lines += ["", "# The Triton models, which are folders beside this one.", "variants:"]
    return [*lines, *(f"  {variant}: {folder}" for variant, folder in skeleton.variants.items())]


def _scalar(name: str) -> str:
    """The name as YAML reads it as a text, and not as a number or a date."""
    return name if isinstance(yaml.safe_load(name), str) else json.dumps(name)


def _preprocessing(skeleton: Skeleton, plan: InputPlan) -> list[str]:
    of_the_tool = "Ultralytics" in skeleton.metadata.get("author", "")
    any_size = "; the model takes any" if skeleton.resize_is_open else ""
    mode = "crop" if of_the_tool and _classifies(skeleton) else "letterbox"
    lines = [
        "preprocessing:                    # as in training, which no file tells: compare answers with your own code",
        _said(f"  resize: [{plan.height}, {plan.width}]", f"height, width of the model's input{any_size}"),
        _said(f"  mode: {mode}", "letterbox | stretch | crop | tiles"),
    ]
    if of_the_tool:
        setting = "decode: full" if _classifies(skeleton) else "resample: opencv"
        lines.append(_said(f"  {setting}", "the tool's own pixels"))
    if plan.channels_last:
        lines.append("  layout: NHWC")
    if plan.datatype in ("FP32", "FP16"):
        lines += [
            _said("  normalize: true", "(x / 255 - mean) / std; false leaves 0..255"),
            _said("  mean: [0, 0, 0]", "ImageNet's are [0.485, 0.456, 0.406]"),
            _said("  std: [1, 1, 1]", "and [0.229, 0.224, 0.225]"),
        ]
    colour = "GRAY" if plan.channels == 1 else "RGB"
    return [*lines, _said(f"  color: {colour}", "RGB | BGR | GRAY; BGR for what was trained with OpenCV")]


def _classifies(skeleton: Skeleton) -> bool:
    return skeleton.model_type == "image-classification"


def _sensor(skeleton: Skeleton) -> list[str]:
    window, channels = skeleton.sensor
    return [
        "sensor:",
        _said(f"  window: {window}", "readings that one question holds"),
        _said("  stride: 1", "a new question after so many new readings"),
        _said(f"  channels: {channels}", "values in one reading"),
        _said(f"  mean: {[0.0] * channels}", "(value - mean) / std as in training, one figure per channel"),
        f"  std: {[1.0] * channels}",
    ]


def _inference(skeleton: Skeleton) -> list[str]:
    lines = ["inference:", _said(f"  output: {skeleton.layout}", "how the outputs are read, see docs/layouts.md")]
    if skeleton.also_fit:
        lines.append(f"  # The shapes fit these too: {', '.join(skeleton.also_fit)}")
    if _classifies(skeleton):
        softmaxed = skeleton.metadata.get("task") == "classify"
        lines += [
            _said(f"  activation: {'none' if softmaxed else 'softmax'}", "softmax | sigmoid | none: the model does it"),
            _said("  top_k: 1", "classes to report, the most likely first"),
            _said("  confidence_threshold: 0.0", "predictions must be above it"),
        ]
    elif skeleton.model_type != "sensor-regression":
        lines.append(_said("  confidence_threshold: 0.5", "predictions must be above it"))
    if skeleton.layout in NEED_A_THRESHOLD:
        lines.append(
            _said(f"  anomaly_threshold: {PLACEHOLDER_THRESHOLD}", "A PLACEHOLDER: the error of healthy data at most")
        )
    return [*lines, _said("  alert_classes: []", "names of classes that start an alert")]


_ROLLOUT = [
    "# What a new version has to pass before it serves. These are the usual values; docs/rollouts.md has all keys.",
    "# rollout:",
    _said("#   shadow: 50", "snapshots that both versions are asked about, unpublished"),
    _said("#   canary: [10, 50]", "per cent of the cameras, step by step"),
    _said("#   hold: 60s", "least time of each step"),
]
_MQTT = [
    _said("mqtt: {}", "no topics of its own: snapshots ask for it by model_name; or input_topics: [...]"),
]


def _config(skeleton: Skeleton, variant: str, signature: ModelSignature) -> Iterator[str]:
    pictures = isinstance(skeleton.plan, InputPlan)
    yield f'name: "{skeleton.variants[variant]}"'
    yield f'platform: "{"pytorch_libtorch" if variant == "torch" else "onnxruntime_onnx"}"'
    if signature.max_batch_size:
        yield _said(f"max_batch_size: {signature.max_batch_size}", "dims are without the batch")
    else:
        yield _said("max_batch_size: 0", "the model has a fixed batch, which stands in dims")
    if variant == "torch":
        yield "# TorchScript has no names for outputs, so Triton wants NAME__INDEX; the same form serves for inputs."
    for side, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        yield from _tensors(side, tensors, bool(signature.max_batch_size))
    if signature.max_batch_size:
        yield ""
        yield "# Snapshots that arrive while one execution lasts share the next one."
        yield "dynamic_batching {"
        yield "  max_queue_delay_microseconds: 0"
        yield "}"
    yield ""
    yield (
        "# Triton takes the GPU where there is one."
        if pictures
        else "# On the CPU: a few numbers are not worth a copy."
    )
    yield f"instance_group [ {{ count: 1{'' if pictures else ' kind: KIND_CPU'} }} ]"
    yield ""
    yield "# Without a GPU: one thread per execution, which leaves the other cores to the gateway."
    if variant == "torch":
        yield _parameter("INTRA_OP_THREAD_COUNT", "1")
        yield "# Without this libtorch re-optimises at every batch size that it has not met, in the middle of serving."
        yield _parameter("DISABLE_OPTIMIZED_EXECUTION", "true")
        yield _parameter("INFERENCE_MODE", "true")
    else:
        yield _parameter("intra_op_thread_count", "1")


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'


def _tensors(side: str, tensors: tuple[TensorSpec, ...], batched: bool) -> Iterator[str]:
    yield f"{side} ["
    for index, tensor in enumerate(tensors):
        kind = TRITON_STRING if tensor.datatype == "BYTES" else tensor.datatype
        dims = ", ".join(map(str, tensor.shape[1:] if batched else tensor.shape))
        name = json.dumps(tensor.name, ensure_ascii=False)
        comma = "," if index < len(tensors) - 1 else ""
        yield f"  {{ name: {name} data_type: TYPE_{kind} dims: [ {dims} ] }}{comma}"
    yield "]"
