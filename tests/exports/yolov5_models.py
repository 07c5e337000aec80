"""The classic YOLOv5 with anchors, by the `yolov5` package: its `export.run`, its letterbox and its suppression."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.exports.fitting import fit, settle
from tests.exports.pictures import CLASSES, Picture
from tests.exports.reference import Case, Reference, detections
from tests.exports.runtime import Export, run_onnx
from tests.exports.workplace import Workplace

# The tool loads whole models, which torch refuses since 2.6; this one was written a moment ago by ourselves.
os.environ.update(TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")

CONFIDENCE, IOU, MAX_DETECTIONS = 0.25, 0.45, 300
SIZE = (192, 320)
ASKED = 2  # three anchors a cell: a third picture would be too much to keep
FAMILIES = ("yolov5-yolov5n",)


def make(family: str, place: Workplace) -> Reference:
    """Fits, exports to ONNX and TorchScript, asks, and hands back the reference."""
    weights = place.folder(family) / f"{family}.pt"
    inputs = np.concatenate([_input(picture) for picture in place.pictures])
    _fit(weights, inputs, place.pictures)
    export = _export(weights)
    export.describe(SIZE)
    cases, answers = [], []
    asked = place.pictures[:ASKED]
    for picture, tensor in zip(asked, inputs, strict=False):
        outputs = run_onnx(export.onnx, tensor[None])
        rows = _suppressed(outputs["output0"])
        cases.append(Case(outputs, detections(rows[:, :4], rows[:, 4], rows[:, 5])))
        answers.append(_whole(rows, picture))
    place.keep_answers(family, asked, answers)
    settings = {"confidence": CONFIDENCE, "iou": IOU, "max_detections": MAX_DETECTIONS}
    return Reference(family, "yolov5", SIZE, tuple(cases), settings)


def _fit(weights: Path, inputs: NDArray[np.float32], shown: list[Picture]) -> None:
    import torch
    import yaml
    import yolov5
    from yolov5.models.yolo import DetectionModel
    from yolov5.utils.loss import ComputeLoss

    torch.manual_seed(0)
    folder = Path(yolov5.__file__).parent
    net = DetectionModel(str(folder / "models" / "yolov5n.yaml"), ch=3, nc=len(CLASSES))
    net.names = dict(enumerate(CLASSES))
    net.hyp = yaml.safe_load((folder / "data" / "hyps" / "hyp.scratch-low.yaml").read_text()) | {"label_smoothing": 0.0}
    images, truth, loss_of = torch.from_numpy(inputs), torch.from_numpy(_truth(shown)), ComputeLoss(net)
    net.train()
    fit(net, lambda: loss_of(net(images), truth)[0], 120, 0.004)
    settle(net, lambda: net(images))
    torch.save({"model": net.eval(), "ema": None}, weights)


def _truth(shown: list[Picture]) -> NDArray[np.float32]:
    """Rows of picture, class, centre x, y, width, height as fractions of the letterboxed input."""
    rows = []
    for number, picture in enumerate(shown):
        scale = min(SIZE[1] / picture.image.width, SIZE[0] / picture.image.height)
        left, top = (SIZE[1] - picture.image.width * scale) / 2, (SIZE[0] - picture.image.height * scale) / 2
        for (x1, y1, x2, y2), class_id in zip(picture.boxes(), picture.classes(), strict=True):
            centre = ((x1 + x2) / 2 * scale + left) / SIZE[1], ((y1 + y2) / 2 * scale + top) / SIZE[0]
            rows.append((number, class_id, *centre, (x2 - x1) * scale / SIZE[1], (y2 - y1) * scale / SIZE[0]))
    return np.array(rows, np.float32)


def _input(picture: Picture) -> NDArray[np.float32]:
    from yolov5.utils.augmentations import letterbox

    box = letterbox(np.asarray(picture.image), SIZE, auto=False)[0]
    return np.ascontiguousarray(box.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _export(weights: Path) -> Export:
    import functools

    import torch
    from yolov5 import export
    from yolov5.utils import downloads

    # It would first look for the file on a hub, with a client that is gone since.
    downloads.attempt_download_from_hub = lambda *_, **__: None
    usual = torch.onnx.export
    # The tool is older than torch's new exporter and asks for an opset that only the former one writes.
    torch.onnx.export = functools.partial(usual, dynamo=False)
    try:
        files = export.run(weights=str(weights), imgsz=list(SIZE), include=["torchscript", "onnx"])
    finally:
        torch.onnx.export = usual
    made = {Path(file).suffix: Path(file) for file in files}
    return Export(made[".onnx"], made[".torchscript"])


def _suppressed(output: NDArray[Any]) -> Any:
    import torch
    from yolov5.utils.general import non_max_suppression

    return non_max_suppression(torch.from_numpy(output.copy()), CONFIDENCE, IOU, max_det=MAX_DETECTIONS)[0]


def _whole(rows: Any, picture: Picture) -> dict[str, Any]:
    """The same in pixels of the whole picture."""
    from yolov5.utils.general import scale_boxes

    boxes = scale_boxes(SIZE, rows[:, :4].clone(), (picture.image.height, picture.image.width))
    return {"boxes": boxes.tolist(), "scores": rows[:, 4].tolist(), "classes": rows[:, 5].int().tolist()}
