"""Golden files: some test scenes or windows, with the predictions that a correct installation must give for them."""

import json
from typing import Any

import numpy as np
import onnxruntime
import recipe
import sensor_figures
from dataset import Letterbox, classifier_input, encode
from decode import detections
from evaluate import overlap
from readings import faulty_series

from gateway.flow.preprocess import prepare_picture
from gateway.local.scenes import TEST_SEEDS, Scene, render_scene
from gateway.models.input_plan import InputPlan
from gateway.models.repository import read_model

COUNT = 4
MAX_BYTES = 250_000
MIN_OBJECTS = 2
# A score this close to the threshold could fall on either side of it on other hardware.
MARGIN = 0.08


def write_golden_windows(threshold: float) -> None:
    """Writes golden/*.json of the sensor model: one healthy window and one of every fault, raw readings in degrees."""
    folder = recipe.REPOSITORY / recipe.SENSOR_NAME / "golden"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    model = sensor_figures.variants()["onnx"]
    windows, ends, episodes = next(faulty_series())
    scores = [sensor_figures.confidence(float(e), threshold) for e in sensor_figures.error(model, windows)]
    chosen = {"healthy": next(i for i, score in enumerate(scores) if score < 0.5 - MARGIN)}
    for episode in episodes:
        told = [i for i in np.flatnonzero(episode.told_by(ends)) if scores[i] > 0.5 + MARGIN]
        if told:
            chosen.setdefault(episode.fault, int(told[0]))
    expected: list[dict[str, Any]] = []
    for name, i in chosen.items():
        readings = (windows[i].astype(np.float64) * recipe.SENSOR_STD + recipe.SENSOR_MEAN).round(4)
        (folder / f"{name}.json").write_text(json.dumps({"readings": readings.tolist()}) + "\n")
        prediction = {"class": recipe.SENSOR_LABELS[1], "class_id": 1, "confidence": round(scores[i], 4)}
        expected.append({"readings": f"{name}.json", "predictions": [] if name == "healthy" else [prediction]})
    (folder / "expected.json").write_text(_readable(expected))


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
        scene = render_scene(seed, recipe.CAMERA_SIZE)
        jpeg = encode(scene, seed)
        found = _detected(session, jpeg) if name == "detector" else _classified(session, jpeg)
        if len(jpeg) > MAX_BYTES or not _right(found, scene, name):
            continue
        classes = {entry["class"] for entry in found}
        # First one scene for every class, then further ones.
        if not classes - seen and len(seen) < _classes(name):
            continue
        seen |= classes
        file = f"scene-{seed}.jpg"
        (folder / file).write_bytes(jpeg)
        expected.append({"image": file, "predictions": found})
        if len(expected) == COUNT:
            break
    (folder / "expected.json").write_text(_readable(expected))


def _right(found: list[dict[str, Any]], scene: Scene, name: str) -> bool:
    """Whether the model is right about the scene: an example should not show its mistakes."""
    if name != "detector":
        return bool(found[0]["class"] == scene.walkway)
    if len(found) != len(scene.objects) or len(found) < MIN_OBJECTS:
        return False
    return all(
        any(f["class"] == truth.class_name and overlap(f["bbox"], truth.bbox) > 0.5 for f in found)
        for truth in scene.objects
    )


def _readable(expected: list[dict[str, Any]]) -> str:
    """JSON with one prediction per line."""
    entries = []
    for entry in expected:
        lines = ",\n".join(f"      {json.dumps(prediction)}" for prediction in entry["predictions"])
        predictions = f"[\n{lines}\n    ]" if lines else "[]"
        kind, file = next(iter(entry.items()))
        entries.append(f'  {{\n    "{kind}": {json.dumps(file)},\n    "predictions": {predictions}\n  }}')
    return "[\n" + ",\n".join(entries) + "\n]\n"


def _classes(name: str) -> int:
    return len(recipe.DETECTOR_LABELS if name == "detector" else recipe.CLASSIFIER_LABELS)


def _detected(session: onnxruntime.InferenceSession, jpeg: bytes) -> list[dict[str, Any]]:
    """Predictions for one picture; none if any score is too close to the threshold to be a fair test."""
    # As the gateway serves it: it decodes at a larger scale than the pictures of the training were decoded at.
    name = recipe.DETECTOR_PORTS["onnx"][0]
    plan = InputPlan(name, recipe.DETECTOR_HEIGHT, recipe.DETECTOR_WIDTH)
    preprocessing = read_model(recipe.REPOSITORY / recipe.DETECTOR_NAME / "model.yaml").spec.preprocessing
    pixels = recipe.CAMERA_SIZE[0] * recipe.CAMERA_SIZE[1]
    output = session.run(None, dict(prepare_picture(jpeg, preprocessing, [plan], pixels)[plan].tensors))[0][0]
    box = Letterbox.fit(*recipe.CAMERA_SIZE)
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
