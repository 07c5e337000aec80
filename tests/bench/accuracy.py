"""What the fast way to a tensor costs in accuracy: scaled decoding and resizing by vector instructions.

The sample detector sees the test scenes twice, through the gateway's own preprocessing and layout: once as it is
served, and once with `decode: full`, which is Pillow's own pixels from the whole picture. The mean average precision of
both must agree within 0.002. Run it with `python -m tests.bench.accuracy [scenes]`; all 500 take some minutes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gateway.bench.records import Accuracy, Precision
from gateway.flow.preprocess import boxes_to_picture, prepare_picture
from gateway.layouts import Detections, Head
from gateway.layouts.binding import read
from gateway.local.scenes import DETECTOR_CLASSES, TEST_SEEDS, render_scene
from gateway.models.input_plan import InputPlan
from gateway.models.preprocessing_spec import PreprocessingSpec
from gateway.models.repository import read_model

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "triton" / "samples"
REPOSITORY = ROOT / "model_repository"
DETECTOR = "industrial-safety"
CAMERA_SIZE = (1920, 1080)
LIMIT = CAMERA_SIZE[0] * CAMERA_SIZE[1]
SCENES = 500
LOW_THRESHOLD = 0.01
"""Average precision is the area under the whole curve, so what is seen with little confidence counts too."""
STRICTER = tuple(float(iou) for iou in np.arange(0.5, 0.96, 0.05).round(2))
"""The overlaps over which mAP50-95 is the mean."""
MOST_LOST = 0.002


def compare(scenes: int = SCENES) -> Accuracy:
    """Both figures both ways over the first of the test scenes; the same each time."""
    spec = read_model(REPOSITORY / DETECTOR / "model.yaml").spec.preprocessing
    ways = {"scaled": spec, "full": spec.model_copy(update={"decode": "full"})}
    detector, dataset, decode = _Detector(), _sample("dataset"), _sample("decode")
    truths: list[Any] = []
    found: dict[str, list[Any]] = {way: [] for way in ways}
    for seed in TEST_SEEDS[:scenes]:
        scene = render_scene(seed, CAMERA_SIZE)
        image = dataset.encode(scene, seed)
        truths.append([decode.Detection(DETECTOR_CLASSES.index(it.class_name), 1.0, it.bbox) for it in scene.objects])
        for way, given in ways.items():
            found[way].append([decode.Detection(*one) for one in detector.find(image, given)])
    return Accuracy(scenes, **{way: _precision(truths, found[way]) for way in ways})


class _Detector:
    """The ONNX model of the sample detector, without any server."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = REPOSITORY / f"{DETECTOR}-onnx" / "1" / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._spec = read_model(REPOSITORY / DETECTOR / "model.yaml").spec
        port = self._session.get_inputs()[0]
        self._plan = InputPlan(port.name, *port.shape[2:])
        self._head = Head(
            classes=len(DETECTOR_CLASSES),
            height=self._plan.height,
            width=self._plan.width,
            thresholds=LOW_THRESHOLD,
            iou_threshold=self._spec.inference.iou_threshold,
            max_detections=self._spec.inference.max_detections,
        )

    def find(self, image: bytes, given: PreprocessingSpec) -> list[tuple[int, float, tuple[float, ...]]]:
        """Class, confidence and box in pixels of the picture of each object, best first."""
        prepared = prepare_picture(image, given, [self._plan], LIMIT)[self._plan]
        answer = self._session.run(None, dict(prepared.tensors))
        layout = self._spec.layout
        seen = read(layout, dict(zip(layout.outputs, (output[0] for output in answer), strict=True)), self._head)
        assert isinstance(seen, Detections)
        boxes = boxes_to_picture(seen.boxes, prepared.geometries[0]).tolist()
        return [
            (class_id, score, tuple(box))
            for class_id, score, box in zip(seen.class_ids.tolist(), seen.scores.tolist(), boxes, strict=True)
        ]


def _precision(truths: Sequence[Any], found: Sequence[Any]) -> Precision:
    figures = _sample("evaluate").detection_figures
    means = [figures(truths, found, DETECTOR_CLASSES, iou).map50 for iou in STRICTER]
    return Precision(means[0], float(np.mean(means)))


def _sample(name: str) -> Any:
    """A module of the sample models' recipe, which are scripts beside each other and no package."""
    sys.path.insert(0, str(SAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SAMPLES))


def main() -> int:
    """Print both figures both ways; 1 where they differ too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=int, nargs="?", default=SCENES, help=f"test scenes to look at ({SCENES})")
    accuracy = compare(parser.parse_args().scenes)
    print(f"{accuracy.scenes} test scenes, {DETECTOR}    mAP50  mAP50-95")
    for name, figures in (("scaled", accuracy.scaled), ("full", accuracy.full), ("difference", accuracy.difference)):
        print(f"{name:<35} {figures.map50:+.4f}   {figures.map50_95:+.4f}")
    return 0 if accuracy.largest_difference <= MOST_LOST else 1


if __name__ == "__main__":
    sys.exit(main())
