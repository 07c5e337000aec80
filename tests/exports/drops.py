"""The exports as files of a model repository, as the how-to pages say: the pages' own blocks, with what has to differ.

What differs is the name, the labels, and what a page tells its reader to take from the tool: the size of the input,
which of two outputs it is, the thresholds that the tool is asked with, a classifier's crop, mean and deviation.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.messages import TensorSpec
from gateway.models.onnx_file import labels_of, read_onnx
from tests.exports.pictures import CLASSES

PAGES = Path(__file__).parents[2] / "docs" / "howto"
BLOCK = re.compile(r"^```\w+\n# model_repository/([\w-]+)/([\w.]+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
DIMS = re.compile(r"dims: \[[^\]]*\]")

ULTRALYTICS = {"confidence_threshold": "0.25", "iou_threshold": "0.45"}
TIMM_MEANS = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}


@dataclass(frozen=True, slots=True)
class Drop:
    """Which model of the how-to pages an export is, and what its model.yaml says that the page's does not."""

    page_model: str
    settings: Mapping[str, str] = field(default_factory=dict)
    torch_needs: str = ""
    """What the TorchScript file asks of Triton beside torch."""


def _yolo(output: str = "yolov8", torch_needs: str = "") -> Drop:
    return Drop("helmets", {"output": output, **ULTRALYTICS}, torch_needs)


DROPS = {
    **{f"ultralytics-{name}": _yolo() for name in ("yolov5nu", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n")},
    "ultralytics-yolo26n": _yolo(),
    "ultralytics-yolov8n-nms": _yolo("end2end", torch_needs="torchvision"),
    "ultralytics-yolov10n-end2end": _yolo("end2end"),
    "ultralytics-yolo26n-end2end": _yolo("end2end"),
    "ultralytics-yolov8n-seg": Drop("parts", ULTRALYTICS),
    "ultralytics-yolo11n-seg": Drop("parts", ULTRALYTICS),
    "ultralytics-yolo26n-seg-end2end": Drop("parts", {"output": "end2end-seg", **ULTRALYTICS}),
    "ultralytics-yolov8n-cls": Drop("colours"),
    "ultralytics-yolo11n-cls": Drop("colours"),
    "ultralytics-rtdetr-l": Drop("trucks"),
    "yolov5-yolov5n": Drop("pallets", {"labels": f"[{', '.join(CLASSES)}]"}),
    "yolox-nano": Drop("vehicles", {"confidence_threshold": "0.25"}),
    "yolox-nano-decoded": Drop("vehicles", {"output": "yolov5", "confidence_threshold": "0.25"}),
    "torchvision-fasterrcnn": Drop("tools", {"confidence_threshold": "0.25"}),
    "torchvision-retinanet": Drop("tools", {"confidence_threshold": "0.25"}),
    "torchvision-ssdlite": Drop("tools", {"confidence_threshold": "0.25"}),
    "torchvision-resnet18": Drop("species", {"crop_fraction": "1.0"}),
    "transformers-detr": Drop("tables", {"confidence_threshold": "0.3"}),
    "transformers-rtdetr": Drop("people", {"confidence_threshold": "0.3"}),
    "transformers-rtdetr-v2": Drop("people", {"confidence_threshold": "0.3"}),
    "timm-mobilenetv3": Drop("surfaces", {"crop_fraction": "0.875", **TIMM_MEANS}),
    "timm-convnext": Drop("surfaces", {"crop_fraction": "0.875", **TIMM_MEANS}),
    "timm-vit": Drop("surfaces", {"crop_fraction": "0.9", "mean": "0.5", "std": "0.5"}),
}


def lay_out(family: str, exports: Path, repository: Path) -> dict[str, str]:
    """Puts the family's files into the repository; hands back what each variant needs beside its backend, or ''.

    Raises ValueError where a page has no such block or its block lacks a line that has to differ.
    """
    drop = DROPS[family]
    files = _files(drop.page_model)
    text = model_yaml(family)
    (repository / family).mkdir(parents=True)
    (repository / family / "model.yaml").write_text(text)
    onnx = exports / family / f"{family}.onnx"
    if "labels: [" not in text and not labels_of(read_onnx(onnx).metadata):
        (repository / family / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    _place(onnx, repository / f"{family}-onnx" / "1" / "model.onnx")
    config = files.get((f"{drop.page_model}-torch", "config.pbtxt"))
    if config is None:
        return {"onnx": ""}
    _place(_torchscript(family, exports), repository / f"{family}-torch" / "1" / "model.pt")
    (repository / f"{family}-torch" / "config.pbtxt").write_text(_sized(config, onnx))
    return {"onnx": "", "torch": drop.torch_needs}


def model_yaml(family: str) -> str:
    """The page's model.yaml for this family; raises ValueError as `lay_out` does."""
    drop = DROPS[family]
    text = _changed(_files(drop.page_model)[(drop.page_model, "model.yaml")], drop)
    return re.sub(rf"\b{drop.page_model}\b", family, text)


def _files(page_model: str) -> dict[tuple[str, str], str]:
    """The blocks of the page on which this model stands, by folder and file."""
    for page in sorted(PAGES.glob("*.md")):
        found = {(folder, name): text for folder, name, text in BLOCK.findall(page.read_text())}
        if (page_model, "model.yaml") in found:
            return found
    raise ValueError(f"no page of {PAGES} has a model.yaml of {page_model}")


def _changed(text: str, drop: Drop) -> str:
    for key, value in drop.settings.items():
        text, count = re.subn(rf"^(\s*){key}:.*$", rf"\g<1>{key}: {value}", text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"the model.yaml of {drop.page_model} has {count} lines with {key}, expected one")
    return text


def _torchscript(family: str, exports: Path) -> Path:
    made = exports / family / f"{family}.torchscript"
    return made if made.exists() else made.with_suffix(".pt")


def _place(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    shutil.copyfile(file, target)


def _sized(config: str, onnx: Path) -> str:
    """The page's config.pbtxt with the shapes of this model, which are those of its ONNX file."""
    facts = read_onnx(onnx)
    batching = "max_batch_size" in config
    shapes = iter([_dims(tensor, batching) for tensor in (*facts.inputs, *facts.outputs)])
    return DIMS.sub(lambda _: next(shapes), config)


def _dims(tensor: TensorSpec, batching: bool) -> str:
    shape = tensor.shape[1:] if batching else tensor.shape
    return f"dims: [ {', '.join(map(str, shape))} ]"
