"""DETR and its kin of transformers, small, by `torch.onnx.export` of logits and boxes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tests.exports.fitting import fit, settle
from tests.exports.pictures import CLASSES, Picture
from tests.exports.reference import Case, Reference, detections
from tests.exports.runtime import Export, run_onnx
from tests.exports.workplace import Workplace

os.environ.update(HF_HUB_OFFLINE="1")

CONFIDENCE = 0.3
SIZE = (192, 320)
LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: number for number, name in enumerate(CLASSES)}}
NARROW = {"encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "encoder_attention_heads": 4, "decoder_attention_heads": 4}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The model and its tool's picture processor, the layout of the export, and how long it is fitted."""

    build: Callable[[], tuple[Any, Any]]
    layout: str
    steps: int
    rate: float


def _processor(kind: Any) -> Any:
    return kind(size={"height": SIZE[0], "width": SIZE[1]}, do_pad=False)


def _detr() -> tuple[Any, Any]:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    stages = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    config = DetrConfig(
        backbone_config=ResNetConfig(**stages, out_features=["stage4"]), d_model=128, num_queries=25,
        encoder_layers=2, decoder_layers=2, dropout=0.0, **NARROW, **LABELS,
    )  # fmt: skip
    return DetrForObjectDetection(config), _processor(DetrImageProcessor)


def _rt_detr_settings() -> dict[str, Any]:
    from transformers import RTDetrResNetConfig

    stages = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    backbone = RTDetrResNetConfig(**stages, out_features=["stage2", "stage3", "stage4"])
    return {
        "backbone_config": backbone, "encoder_in_channels": [128, 256, 512], "encoder_hidden_dim": 128, "d_model": 128,
        "decoder_in_channels": [128] * 3, "decoder_layers": 2, "num_queries": 50, "num_denoising": 20,
        "freeze_backbone_batch_norms": False, "hidden_expansion": 0.5, **NARROW, **LABELS,
    }  # fmt: skip


def _rt_detr() -> tuple[Any, Any]:
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor

    return RTDetrForObjectDetection(RTDetrConfig(**_rt_detr_settings())), _processor(RTDetrImageProcessor)


def _rt_detr_v2() -> tuple[Any, Any]:
    from transformers import RTDetrImageProcessor, RTDetrV2Config, RTDetrV2ForObjectDetection

    return RTDetrV2ForObjectDetection(RTDetrV2Config(**_rt_detr_settings())), _processor(RTDetrImageProcessor)


RECIPES = {
    "transformers-detr": Recipe(_detr, "detr", 250, 5e-4),
    "transformers-rtdetr": Recipe(_rt_detr, "rt-detr", 120, 5e-4),
    "transformers-rtdetr-v2": Recipe(_rt_detr_v2, "rt-detr", 120, 5e-4),
}


def make(family: str, place: Workplace) -> Reference:
    """Fits, exports to ONNX and TorchScript, asks, and hands back the reference."""
    import torch

    recipe = RECIPES[family]
    torch.manual_seed(0)
    net, processor = recipe.build()
    pictures = processor([picture.image for picture in place.pictures], return_tensors="pt")["pixel_values"]
    truth = [_truth(picture) for picture in place.pictures]
    net.train()
    fit(net, lambda: net(pictures, labels=truth).loss, recipe.steps, recipe.rate)
    settle(net, lambda: net(pictures))
    export = _export(net.eval(), place.folder(family) / family, pictures[:1])
    export.describe(SIZE)
    outputs = [run_onnx(export.onnx, picture[None].numpy()) for picture in pictures]
    whole = [
        _answer(processor, found, picture.image.size[::-1])
        for found, picture in zip(outputs, place.pictures, strict=True)
    ]
    place.keep_answers(family, place.pictures, [{k: v.tolist() for k, v in answer.items()} for answer in whole])
    cases = tuple(Case(found, _answer(processor, found, SIZE)) for found in outputs)
    return Reference(family, recipe.layout, SIZE, cases, {"confidence": CONFIDENCE, "max_detections": 300})


def _truth(picture: Picture) -> dict[str, Any]:
    """Centre, width and height as fractions, in the form that the losses take."""
    import torch

    boxes = np.array(picture.boxes(), np.float32) / np.array([*picture.image.size] * 2, np.float32)
    centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    return {"class_labels": torch.tensor(picture.classes()), "boxes": torch.from_numpy(centred)}


def _export(net: Any, stem: Path, example: Any) -> Export:
    import torch

    class Tensors(torch.nn.Module):
        """Two tensors instead of the tool's answer object."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.net(pixel_values)
            return found.logits, found.pred_boxes

    export = Export(stem.with_suffix(".onnx"), stem.with_suffix(".pt"))
    names, trace = ["logits", "pred_boxes"], cast("Any", torch.jit.trace)
    with torch.no_grad():
        torch.onnx.export(
            Tensors(), (example,), export.onnx, input_names=["pixel_values"], output_names=names, dynamo=False,
            opset_version=17,
        )  # fmt: skip
        trace(Tensors().eval(), example, check_trace=False).save(str(export.torchscript))
    return export


def _answer(processor: Any, outputs: dict[str, NDArray[Any]], size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The tool's own post-processing, in pixels of that size (h, w); DETR's comes in the order of the queries."""
    import torch

    given = SimpleNamespace(
        logits=torch.from_numpy(outputs["logits"]), pred_boxes=torch.from_numpy(outputs["pred_boxes"])
    )
    found = processor.post_process_object_detection(given, threshold=CONFIDENCE, target_sizes=[size])[0]
    order = found["scores"].argsort(descending=True, stable=True)
    return detections(*(found[name][order] for name in ("boxes", "scores", "labels")))
