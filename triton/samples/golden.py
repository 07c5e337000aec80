"""Golden images: a few test scenes with the predictions that a correct installation must give for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import recipe
from dataset import classifier_input, detector_input, encode
from decode import detections

from gateway.local.scenes import TEST_SEEDS, render_scene

COUNT = 4
MAX_BYTES = 250_000
# A score this close to the threshold could fall on either side of it on other hardware.
MARGIN = 0.08


def write_golden(name: str) -> None:
    """Writes golden/*.jpg and golden/expected.json of a model, with what its ONNX file answers."""
    logical = recipe.DETECTOR_NAME if name == "detector" else recipe.CLASSIFIER_NAME
    folder = recipe.REPOSITORY / logical / "golden"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    model = recipe.REPOSITORY / f"{logical}-onnx" / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected: list[dict[str, Any]] = []
    seen: set[str] = set()
    for seed in TEST_SEEDS[:300]:
        jpeg = encode(render_scene(seed, recipe.CAMERA_SIZE), seed)
        found = _detected(session, jpeg) if name == "detector" else _classified(session, jpeg)
        new = {entry["class"] for entry in found} - seen
        if not found or len(jpeg) > MAX_BYTES or not (new or len(seen) == _classes(name)):
            continue
        seen |= new
        file = f"scene-{seed}.jpg"
        (folder / file).write_bytes(jpeg)
        expected.append({"image": file, "predictions": found})
        if len(expected) == COUNT:
            break
    _write(folder / "expected.json", expected)


def _classes(name: str) -> int:
    return len(recipe.DETECTOR_LABELS if name == "detector" else recipe.CLASSIFIER_LABELS)


def _detected(session: onnxruntime.InferenceSession, jpeg: bytes) -> list[dict[str, Any]]:
    """Predictions for one picture; none if any score is too close to the threshold to be a fair test."""
    tensor, box = detector_input(jpeg)
    output = session.run(None, {recipe.DETECTOR_PORTS["onnx"][0]: tensor[None]})[0][0]
    found = detections(output, box, recipe.CAMERA_SIZE, recipe.CONFIDENCE_THRESHOLD - MARGIN)
    if any(abs(d.confidence - recipe.CONFIDENCE_THRESHOLD) < MARGIN for d in found):
        return []
    return [
        {
            "class": recipe.DETECTOR_LABELS[d.class_id],
            "class_id": d.class_id,
            "confidence": round(d.confidence, 4),
            "bbox": [round(v, 1) for v in d.bbox],
        }
        for d in found
    ]


def _classified(session: onnxruntime.InferenceSession, jpeg: bytes) -> list[dict[str, Any]]:
    logits = session.run(None, {recipe.CLASSIFIER_PORTS["onnx"][0]: classifier_input(jpeg)[None]})[0][0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = int(shares.argmax())
    return [{"class": recipe.CLASSIFIER_LABELS[best], "class_id": best, "confidence": round(float(shares[best]), 4)}]


def _write(path: Path, expected: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(expected, indent=1) + "\n")
