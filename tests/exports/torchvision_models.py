"""Detectors and a classifier of torchvision: the whole model, its own suppression included, by `torch.onnx.export`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tests.exports.fitting import fit, settle
from tests.exports.pictures import CLASSES, PICTURE_SIZE, Picture
from tests.exports.reference import Case, Reference, detections
from tests.exports.runtime import Export, run_onnx
from tests.exports.workplace import Workplace

CONFIDENCE, MAX_DETECTIONS = 0.25, 100
SIZE = (180, 320)
BACKGROUND = 1
"""torchvision's label 0 is the background: the first of our classes is its label 1."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a detector is built and how long it is fitted."""

    build: Callable[[], Any]
    steps: int
    rate: float
    size: tuple[int, int] = SIZE
    outputs: tuple[str, ...] = ("boxes", "scores", "labels")
    """The order of the model's own answer, which is not that of Faster R-CNN for all; an export's names must follow."""


def _faster_rcnn() -> Any:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    # Fewer proposals than usual while it is fitted, which is where the time goes.
    return fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=len(CLASSES) + BACKGROUND, min_size=SIZE[0], max_size=SIZE[1],
        rpn_pre_nms_top_n_train=300, rpn_post_nms_top_n_train=150, box_batch_size_per_image=128,
    )  # fmt: skip


def _retinanet() -> Any:
    from torch.nn import BatchNorm2d
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=BatchNorm2d, trainable_layers=5, returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )  # fmt: skip
    return RetinaNet(backbone, num_classes=len(CLASSES) + BACKGROUND, min_size=SIZE[0], max_size=SIZE[1])


def _ssdlite() -> Any:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(CLASSES) + BACKGROUND, detections_per_img=MAX_DETECTIONS
    )


RECIPES = {
    "torchvision-fasterrcnn": Recipe(_faster_rcnn, 50, 1e-3, outputs=("boxes", "labels", "scores")),
    "torchvision-retinanet": Recipe(_retinanet, 60, 1e-3),
    "torchvision-ssdlite": Recipe(_ssdlite, 80, 3e-3, (320, 320)),
}
CLASSIFIER = "torchvision-resnet18"
CLASSIFIER_SIZE = (96, 96)


def mismatch() -> str:
    """Why torchvision cannot be used here, in one line; empty where it can."""
    import torch

    try:
        import torchvision.ops  # noqa: F401 - the question is whether it can be imported
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchvision does not fit torch {torch.__version__} here ({str(error).splitlines()[0]})"
    return ""


def make(family: str, place: Workplace) -> Reference:
    """Fits, exports to ONNX and TorchScript, asks the model itself, and hands back the reference."""
    import torch

    recipe = RECIPES[family]
    torch.manual_seed(0)
    net = recipe.build()
    pictures = [_input(picture, recipe.size) for picture in place.pictures]
    truth = [_truth(picture, recipe.size) for picture in place.pictures]
    net.train()
    fit(net, lambda: sum(net(pictures, truth).values()), recipe.steps, recipe.rate)
    settle(net, lambda: net(pictures, truth))
    return detector_reference(family, place, net.eval())


def detector_reference(family: str, place: Workplace, net: Any) -> Reference:
    """Exports a fitted detector at the size of the pictures, which it resizes by itself, and asks it about them."""
    from torchvision.transforms import functional

    wholes = [functional.to_tensor(picture.image) for picture in place.pictures]
    size = PICTURE_SIZE[::-1]
    export = _export(net, place.folder(family) / family, wholes[0][None], RECIPES[family].outputs)
    export.describe(size)
    answers = [_answer(net, whole) for whole in wholes]
    place.keep_answers(family, place.pictures, [{k: v.tolist() for k, v in answer.items()} for answer in answers])
    cases = tuple(_case(export.onnx, *pair) for pair in zip(wholes, answers, strict=True))
    settings = {"confidence": CONFIDENCE, "max_detections": MAX_DETECTIONS}
    return Reference(family, "torchvision", size, cases, settings)


def _input(picture: Picture, size: tuple[int, int]) -> Any:
    """What the model is fitted to: (3, H, W), RGB, 0 to 1; the model itself subtracts the mean."""
    from torchvision.transforms import functional

    return functional.to_tensor(picture.image.resize(size[::-1]))


def _truth(picture: Picture, size: tuple[int, int]) -> dict[str, Any]:
    import torch

    scale = np.array([size[1] / picture.image.width, size[0] / picture.image.height] * 2, np.float32)
    return {
        "boxes": torch.from_numpy(np.array(picture.boxes(), np.float32) * scale),
        "labels": torch.tensor(picture.classes()) + BACKGROUND,
    }


def _export(net: Any, stem: Path, example: Any, outputs: tuple[str, ...]) -> Export:
    import torch

    onnx, script = stem.with_suffix(".onnx"), stem.with_suffix(".pt")
    # How many objects there are depends on the picture, which only the tracing exporter can say of these models.
    torch.onnx.export(
        net, (example,), onnx, input_names=["images"], output_names=list(outputs), opset_version=17,
        dynamo=False, dynamic_axes={name: {0: "objects"} for name in outputs},
    )  # fmt: skip
    cast("Any", torch.jit.script)(_one_picture(net)).save(str(script))
    return Export(onnx, script)


def _one_picture(net: Any) -> Any:
    """The model for Triton's PyTorch backend: a tensor instead of a list in, three tensors instead of a list out."""
    import torch

    class OnePicture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cast("Any", torch.jit.script)(net)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found = self.net([images[0]])[1][0]
            return found["boxes"], found["scores"], found["labels"]

    return OnePicture().eval()


def _answer(net: Any, picture: Any) -> dict[str, NDArray[Any]]:
    """What the model in PyTorch says, its own suppression included; its labels become our class ids."""
    import torch

    with torch.inference_mode():
        found = net([picture])[0]
    kept = found["scores"] > CONFIDENCE
    return detections(found["boxes"][kept], found["scores"][kept], found["labels"][kept] - BACKGROUND)


def _case(onnx: Path, picture: Any, answer: dict[str, NDArray[Any]]) -> Case:
    return Case(run_onnx(onnx, picture[None].numpy()), answer)


def make_classifier(family: str, place: Workplace) -> Reference:
    """A ResNet by the same way; its logits are read by torchvision's documented softmax."""
    import torch
    from torchvision.models import resnet18
    from torchvision.transforms._presets import ImageClassification

    torch.manual_seed(0)
    net = resnet18(weights=None, num_classes=len(CLASSES))
    prepare = ImageClassification(crop_size=CLASSIFIER_SIZE[0], resize_size=CLASSIFIER_SIZE[0])
    pictures = torch.stack([prepare(picture.image) for picture in place.crops])
    labels = torch.tensor([picture.classes()[0] for picture in place.crops])
    net.train()
    fit(net, lambda: torch.nn.functional.cross_entropy(net(pictures), labels), 4, 3e-4)
    settle(net, lambda: net(pictures))
    return classifier_reference(family, place, net.eval(), pictures, CLASSIFIER_SIZE)


def classifier_reference(family: str, place: Workplace, net: Any, pictures: Any, size: tuple[int, int]) -> Reference:
    """Exports a classifier of logits, asks it about the first pictures (N, 3, H, W), and hands back the reference."""
    import torch

    stem = place.folder(family) / family
    export = Export(stem.with_suffix(".onnx"), stem.with_suffix(".pt"))
    torch.onnx.export(
        net, (pictures[:1],), export.onnx, input_names=["input"], output_names=["logits"], dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    trace = cast("Any", torch.jit.trace)
    trace(net, pictures[:1]).save(str(export.torchscript))
    export.describe(size)
    asked = place.crops[:3]
    cases, answers = [], []
    for picture in pictures[: len(asked)]:
        outputs = run_onnx(export.onnx, picture[None].numpy())
        best = torch.from_numpy(outputs["logits"][0]).softmax(-1).topk(len(CLASSES))
        cases.append(Case(outputs, {"classes": best.indices.numpy(), "scores": best.values.numpy()}))
        answers.append({"classes": best.indices.tolist(), "scores": best.values.tolist()})
    place.keep_answers(family, asked, answers)
    return Reference(family, "classification", size, tuple(cases), {"activation": "softmax"})
