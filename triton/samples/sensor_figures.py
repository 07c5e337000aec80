"""What the sensor model is worth on the test sensors: false alarms, faults found, agreement of the variants."""

import platform
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import onnxruntime
import recipe
import torch
from card import write_model_card
from numpy.typing import NDArray
from readings import faulty_series, healthy_windows

from gateway.local.thermometer import FAULTS, READINGS_A_DAY, Fault

Array = NDArray[np.float32]
Model = Callable[[Array], Array]


def error(model: Model, windows: Array) -> Array:
    """Mean squared error per window, (n,)."""
    errors: Array = np.square(model(windows) - windows).mean((1, 2))
    return errors


def confidence(error: float, threshold: float) -> float:
    """What the gateway reports for an error: 0.5 at the threshold."""
    return error / (error + threshold)


def variants() -> dict[str, Model]:
    """Both exported files as functions of (n, 32, 1)."""
    folder = recipe.REPOSITORY / f"{recipe.SENSOR_NAME}-onnx" / "1"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    script = torch.jit.load(  # type: ignore[no-untyped-call]
        str(recipe.REPOSITORY / f"{recipe.SENSOR_NAME}-torch" / "1" / "model.pt")
    )

    def in_torch(windows: Array) -> Array:
        with torch.inference_mode():
            answer: Array = script(torch.from_numpy(windows)).numpy()
        return answer

    def in_onnxruntime(windows: Array) -> Array:
        answer: Array = session.run(None, {recipe.SENSOR_PORTS["onnx"][0]: windows})[0]
        return answer

    return {"onnx": in_onnxruntime, "torch": in_torch}


def write_figures(threshold: float) -> list[tuple[str, str]]:
    """Measures both files, writes the model card and returns its rows."""
    models = variants()
    healthy = healthy_windows("test")
    rows = [("threshold (mean squared error)", f"{threshold:g}")]
    for name, model in models.items():
        alarms = error(model, healthy) > threshold
        daily = alarms.mean() * READINGS_A_DAY / recipe.STRIDE
        figure = f"{1000 * alarms.mean():.2f} per 1000 windows ({alarms.sum()} of {len(healthy)}); {daily:.2f} a day"
        rows.append((f"{name}: false alarms on healthy sensors", figure))
    delays, differ, total = found(models, threshold)
    for fault in FAULTS:
        told = [delay for delay in delays[fault] if delay is not None]
        figure = f"{100 * len(told) / len(delays[fault]):.1f} % of {len(delays[fault])}"
        rows.append((f"{fault}: found", f"{figure}, after {np.median(told):.0f} readings (median)"))
    rows.append(("windows on which the variants disagree", f"{differ} of {total}"))
    size = {
        name: (recipe.REPOSITORY / f"{recipe.SENSOR_NAME}-{name}" / "1" / file).stat().st_size
        for name, file in (("onnx", "model.onnx"), ("torch", "model.pt"))
    }
    rows.append(("size", ", ".join(f"{name} {bytes_ / 1000:.0f} kB" for name, bytes_ in size.items())))
    count = recipe.SENSORS
    measured = (
        f"Measured at the export, on the exported files themselves ({platform.machine()}, no GPU): {count['test']} "
        f"healthy test sensors for two days each, and {count['faulty']} with one fault after another. A fault counts "
        "as found when a window that ends while it lasts is flagged; a short one: a window that holds it."
    )
    card = {"model": recipe.SENSOR_NAME, "measured": measured, "rows": rows}
    write_model_card(recipe.REPOSITORY / recipe.SENSOR_NAME / "MODEL_CARD.md", card)
    return rows


def found(models: dict[str, Model], threshold: float) -> tuple[dict[Fault, list[int | None]], int, int]:
    """Per kind of fault, after how many of its readings the ONNX file first told (None: never); then the number of
    windows on which both files differ about the threshold, and of all windows.
    """
    delays: dict[Fault, list[int | None]] = defaultdict(list)
    differ = total = 0
    for windows, ends, episodes in faulty_series():
        flagged = error(models["onnx"], windows) > threshold
        differ += int((flagged != (error(models["torch"], windows) > threshold)).sum())
        total += len(windows)
        for episode in episodes:
            told = ends[flagged & episode.told_by(ends)]
            delays[episode.fault].append(int(told[0]) - episode.first + 1 if len(told) else None)
    return delays, differ, total
