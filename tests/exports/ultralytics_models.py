"""The YOLO families of ultralytics, and its RT-DETR: fitted, exported by `YOLO.export`, asked by `YOLO.predict`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.exports.fitting import fit, settle
from tests.exports.pictures import CLASSES, Picture
from tests.exports.reference import Case, Reference, detections
from tests.exports.runtime import Export, run_onnx
from tests.exports.workplace import Workplace

# Neither weights, nor fonts, nor packages are fetched: this works on a machine without a network.
os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")

CONFIDENCE, IOU, MAX_DETECTIONS = 0.25, 0.45, 300


@dataclass(frozen=True, slots=True)
class Recipe:
    """One architecture: the tool's own definition file, the layout of its export and how long it is fitted."""

    definition: str
    layout: str
    steps: int
    rate: float = 0.004
    size: tuple[int, int] = (192, 320)
    pictures: int = 3
    nms: bool | None = None
    """The option of that name of `YOLO.export`; False chooses the head that needs no suppression."""

    @property
    def stretched(self) -> bool:
        return self.definition.startswith("rtdetr")


RECIPES = {
    "ultralytics-yolov5nu": Recipe("yolov5n.yaml", "yolov8", 60),
    "ultralytics-yolov8n": Recipe("yolov8n.yaml", "yolov8", 60),
    "ultralytics-yolov8n-nms": Recipe("yolov8n.yaml", "end2end", 60, nms=True),
    "ultralytics-yolov9t": Recipe("yolov9t.yaml", "yolov8", 60),
    "ultralytics-yolov10n": Recipe("yolov10n.yaml", "yolov8", 60),
    "ultralytics-yolov10n-end2end": Recipe("yolov10n.yaml", "end2end", 120, nms=False),
    "ultralytics-yolo11n": Recipe("yolo11n.yaml", "yolov8", 60),
    "ultralytics-yolo12n": Recipe("yolo12n.yaml", "yolov8", 60),
    "ultralytics-yolo26n": Recipe("yolo26n.yaml", "yolov8", 60),
    "ultralytics-yolo26n-end2end": Recipe("yolo26n.yaml", "end2end", 120, nms=False),
    "ultralytics-yolov8n-seg": Recipe("yolov8n-seg.yaml", "yolov8-seg", 80, size=(160, 256), pictures=1),
    "ultralytics-yolo11n-seg": Recipe("yolo11n-seg.yaml", "yolov8-seg", 80, size=(160, 256), pictures=1),
    "ultralytics-yolo26n-seg-end2end": Recipe(
        "yolo26n-seg.yaml", "end2end-seg", 120, size=(160, 256), pictures=1, nms=False
    ),
    "ultralytics-rtdetr-l": Recipe("rtdetr-l.yaml", "rtdetr-end2end", 60, 2e-4),
    "ultralytics-yolov8n-cls": Recipe("yolov8n-cls.yaml", "classification", 8, size=(128, 128)),
    "ultralytics-yolo11n-cls": Recipe("yolo11n-cls.yaml", "classification", 8, size=(128, 128)),
}


def make(family: str, place: Workplace) -> Reference:
    """Fits, exports to ONNX and TorchScript, asks, and hands back the reference; prints what the exports look like."""
    recipe = RECIPES[family]
    classifier = recipe.layout == "classification"
    asked = (place.crops if classifier else place.pictures)[: recipe.pictures]
    weights = place.folder(family) / f"{family}.pt"
    _fit(recipe, place.crops if classifier else asked, weights)
    export = Export(*(_export(weights, kind, recipe) for kind in ("onnx", "torchscript")))
    export.describe(recipe.size)
    task = "classify" if classifier else "segment" if "seg" in family else "detect"
    answers = _predict(export.onnx, task, recipe, asked)
    place.keep_answers(family, asked, answers)
    return _reference(family, recipe, export.onnx, asked)


def _fit(recipe: Recipe, shown: list[Picture], weights: Path) -> None:
    """Fits the architecture to the pictures by the tool's own loss, and saves it the way the tool saves a model."""
    import torch
    from ultralytics import RTDETR, YOLO
    from ultralytics.cfg import get_cfg

    torch.manual_seed(0)
    kind = RTDETR if recipe.definition.startswith("rtdetr") else YOLO
    template = kind(recipe.definition)
    net = type(template.model)(recipe.definition, nc=len(CLASSES), verbose=False)
    net.names, net.nc, net.task, net.args = dict(enumerate(CLASSES)), len(CLASSES), template.task, get_cfg()
    batch = _batch(recipe, shown)
    net.train()
    fit(net, lambda: net.loss(batch)[0].sum(), recipe.steps, recipe.rate)
    settle(net, lambda: net(batch["img"]))
    net.criterion = None
    torch.save({"model": net.eval(), "train_args": {"imgsz": max(recipe.size)}, "date": None}, weights)


def _batch(recipe: Recipe, shown: list[Picture]) -> dict[str, Any]:
    """The pictures in the tool's own letterbox and the truth in the form that its losses take."""
    import torch

    height, width = recipe.size
    truth, classes, owners = [], [], []
    masks = np.zeros((2, len(shown), height // 4, width // 4), np.float32)  # numbers of objects, their classes
    for number, picture in enumerate(shown):
        scales = np.array([width / picture.image.width, height / picture.image.height])
        scales = scales if recipe.stretched else scales.min().repeat(2)
        left, top = (np.array([width, height]) - np.array(picture.image.size) * scales) / 2
        for place, (box, class_id) in enumerate(zip(picture.boxes(), picture.classes(), strict=True)):
            x1, x2 = (float(v * scales[0] + left) for v in box[::2])
            y1, y2 = (float(v * scales[1] + top) for v in box[1::2])
            truth.append([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
            classes.append(class_id)
            owners.append(number)
            inside = _ellipse(masks.shape[2:], (x1 / 4, y1 / 4, x2 / 4, y2 / 4))
            masks[0, number][inside], masks[1, number][inside] = place + 1, class_id
    return {
        "img": torch.from_numpy(np.concatenate([_input(picture, recipe) for picture in shown])),
        "cls": torch.tensor(classes) if recipe.layout == "classification" else torch.tensor(classes)[:, None].float(),
        "bboxes": torch.tensor(truth, dtype=torch.float32),
        "batch_idx": torch.tensor(owners, dtype=torch.float32),
        "masks": torch.from_numpy(masks[0]),
        "sem_masks": torch.from_numpy(masks[1]),
    }


def _ellipse(shape: tuple[int, ...], box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """An ellipse that fills the box: our scenes have no outlines, and any shape but the box itself tests a mask."""
    x1, y1, x2, y2 = box
    y, x = np.ogrid[: shape[0], : shape[1]]
    across, down = (x + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2), (y + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    inside: NDArray[np.bool_] = across**2 + down**2 <= 1
    return inside


def _input(picture: Picture, recipe: Recipe) -> NDArray[np.float32]:
    """The model's input (1, 3, H, W) by the tool's own resizing; RGB, 0 to 1. Its RT-DETR stretches the picture."""
    from ultralytics.data.augment import LetterBox

    if recipe.layout == "classification":
        from ultralytics.data.augment import classify_transforms

        tensor: NDArray[np.float32] = classify_transforms(recipe.size[0])(picture.image)[None].numpy()
        return tensor
    box = LetterBox(recipe.size, auto=False, scale_fill=recipe.stretched)(image=np.asarray(picture.image))
    return np.ascontiguousarray(box.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _export(weights: Path, kind: str, recipe: Recipe) -> Path:
    from ultralytics import RTDETR, YOLO

    model = RTDETR if "rtdetr" in weights.name else YOLO
    options = {"conf": CONFIDENCE, "iou": IOU, "max_det": MAX_DETECTIONS} if recipe.nms else {}
    return Path(model(weights).export(format=kind, imgsz=recipe.size, nms=recipe.nms, device="cpu", **options))


def _predict(onnx: Path, task: str, recipe: Recipe, asked: list[Picture]) -> list[dict[str, Any]]:
    """What the tool's `predict` says about each picture as a whole, in the picture's own pixels."""
    from ultralytics import RTDETR, YOLO

    model = RTDETR(onnx) if "rtdetr" in onnx.name else YOLO(onnx, task=task)
    options = {"imgsz": recipe.size, "conf": CONFIDENCE, "iou": IOU, "max_det": MAX_DETECTIONS}
    results = model.predict([str(picture.path) for picture in asked], device="cpu", verbose=False, **options)
    if task == "classify":
        return [{"scores": result.probs.data.tolist()} for result in results]
    return [
        {
            "boxes": result.boxes.xyxy.tolist(),
            "scores": result.boxes.conf.tolist(),
            "classes": [int(value) for value in result.boxes.cls.tolist()],
            "polygons": [polygon.tolist() for polygon in result.masks.xy] if result.masks is not None else None,
        }
        for result in results
    ]


def _reference(family: str, recipe: Recipe, onnx: Path, asked: list[Picture]) -> Reference:
    settings = {"confidence": CONFIDENCE, "iou": IOU, "max_detections": MAX_DETECTIONS}
    if recipe.layout == "classification":
        cases = [_class_case(recipe, onnx, picture) for picture in asked]
        return Reference(family, recipe.layout, recipe.size, tuple(cases), {"activation": "none"})
    answer: Callable[[dict[str, NDArray[Any]], tuple[int, int]], dict[str, NDArray[Any]]] = _detected
    if "seg" in recipe.layout:
        answer = _segmented
    if recipe.stretched:
        answer = _rtdetr_detected
    if "end2end" in recipe.layout or answer is _rtdetr_detected:
        del settings["iou"]
    cases = []
    for picture in asked:
        outputs = run_onnx(onnx, _input(picture, recipe))
        if answer is _segmented:  # half precision, or the prototypes would be too large to keep
            outputs = {name: value.astype(np.float16) for name, value in outputs.items()}
        exact = {name: value.astype(np.float32) for name, value in outputs.items()}
        cases.append(Case(outputs, answer(exact, recipe.size)))
    return Reference(family, recipe.layout, recipe.size, tuple(cases), settings)


def _suppressed(output: NDArray[Any]) -> Any:
    """The tool's own suppression of one output; rows of x1, y1, x2, y2, score, class and mask coefficients."""
    import torch
    from ultralytics.utils.nms import non_max_suppression

    end2end = output.shape[-1] < output.shape[-2]
    kept = non_max_suppression(
        torch.from_numpy(output.copy()), CONFIDENCE, IOU, nc=len(CLASSES), max_det=MAX_DETECTIONS, end2end=end2end
    )
    return kept[0]


def _detected(outputs: dict[str, NDArray[Any]], size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    rows = _suppressed(outputs["output0"])
    return detections(rows[:, :4], rows[:, 4], rows[:, 5])


def _segmented(outputs: dict[str, NDArray[Any]], size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    import torch
    from ultralytics.utils.ops import process_mask

    rows = _suppressed(outputs["output0"])
    prototypes = torch.from_numpy(outputs["output1"][0])
    masks = process_mask(prototypes, rows[:, 6:], rows[:, :4], size, upsample=True)
    packed = np.packbits(masks.numpy().astype(np.bool_), axis=-1)
    return detections(rows[:, :4], rows[:, 4], rows[:, 5]) | {"masks": packed}


def _rtdetr_detected(outputs: dict[str, NDArray[Any]], size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """RTDETRPredictor.postprocess, of which nothing can be called alone; into the input's pixels, not the picture's."""
    import torch
    from ultralytics.utils.ops import xywh2xyxy

    boxes, scores, classes = torch.split(torch.from_numpy(outputs["output0"][0]), [4, 1, 1], dim=-1)
    kept = scores.squeeze(-1) > CONFIDENCE
    rows = torch.cat([xywh2xyxy(boxes), scores, classes], dim=-1)[kept][:MAX_DETECTIONS]
    rows[:, [0, 2]] *= size[1]
    rows[:, [1, 3]] *= size[0]
    return detections(rows[:, :4], rows[:, 4], rows[:, 5])


def _class_case(recipe: Recipe, onnx: Path, picture: Picture) -> Case:
    outputs = run_onnx(onnx, _input(picture, recipe))
    scores = outputs["output0"][0]
    order = np.argsort(-scores, kind="stable")
    return Case(outputs, {"classes": order, "scores": scores[order]})
