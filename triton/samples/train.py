"""Renders the scenes, trains the sample models, exports them and writes their golden files: `make sample-models`.

    python triton/samples/train.py [--only detector|classifier|sensor] [--stage render|train|export] [--threads N]

Everything is seeded. What was rendered and trained lies in .cache/sample-models, so a stage can be repeated by itself.
"""

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
_compiler = importlib.util.find_spec("triton")
if _compiler is None or _compiler.origin is None:
    # torch looks for the Triton compiler; this repository's folder `triton/` must not pass for it.
    sys.modules["triton"] = None  # type: ignore[assignment]

import dataset  # noqa: E402
import recipe  # noqa: E402
import torch  # noqa: E402
from classifier import Classifier  # noqa: E402
from detector import Detector  # noqa: E402
from export import export  # noqa: E402
from fit import fit_classifier, fit_detector, validate_classifier, validate_detector  # noqa: E402
from golden import write_golden, write_golden_windows  # noqa: E402
from sensor import SensorAutoencoder, fit_sensor, write_threshold  # noqa: E402
from sensor_figures import write_figures  # noqa: E402

NAMES = ("detector", "classifier", "sensor")
STAGES = ("render", "train", "export")


def main() -> None:
    arguments = _arguments()
    names = [arguments.only] if arguments.only else list(NAMES)
    if "sensor" in names:
        names.remove("sensor")
        if arguments.stage != "render":
            _make_sensor(arguments.stage)
    if not names:
        return
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    splits = {name: dataset.load(name, count, arguments.threads) for name, count in recipe.SCENES.items()}
    _done("scenes rendered", began)
    if arguments.stage == "render":
        return
    for name in names:
        if arguments.stage != "export":
            began = time.perf_counter()
            _train(name, splits["train"], splits["validation"])
            _done(f"{name} trained", began)
        _publish(name, splits["test"])


def _train(name: str, train: dataset.Split, validation: dataset.Split) -> None:
    if name == "detector":
        fit_detector(train, validation, recipe.DETECTOR_EPOCHS)
    else:
        fit_classifier(train, validation, recipe.CLASSIFIER_EPOCHS, _trained_detector())


def _make_sensor(stage: str | None) -> None:
    """Trains, exports and measures the sensor model; it needs no scenes, and seconds instead of minutes."""
    torch.set_num_threads(1)  # the figures are too small to share, and the same sums come out on any number of cores
    began = time.perf_counter()
    if stage != "export":
        fit_sensor(recipe.SENSOR_EPOCHS)
    model = SensorAutoencoder()
    model.load_state_dict(_checkpoint("sensor"))
    difference = export("sensor", model.eval())
    error = write_threshold(model)
    write_golden_windows(error)
    print(f"  sensor: ONNX and TorchScript differ by at most {difference:.1e} on windows of a test sensor")
    for what, figure in write_figures(error):
        print(f"    {what}: {figure}")
    _done("sensor", began)


def _trained_detector() -> Detector:
    detector = Detector()
    detector.load_state_dict(_checkpoint("detector"))
    return detector


def _checkpoint(name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(recipe.CACHE / f"{name}.pt", weights_only=True)
    return state


def _publish(name: str, test: dataset.Split) -> None:
    """Exports the last checkpoint, writes the golden files with it and measures it on the test scenes."""
    model = Detector() if name == "detector" else Classifier()
    model.load_state_dict(_checkpoint(name))
    model.eval()
    difference = export(name, model)
    write_golden(name)
    print(f"  {name}: ONNX and TorchScript differ by at most {difference:.1e} on test scenes")
    if isinstance(model, Detector):
        figures = validate_detector(model, test)
        print(f"  test scenes: mAP50 {figures.map50:.4f}")
        for label, f in figures.classes.items():
            print(f"    {label} ({f.objects} objects): AP50 {f.average_precision:.4f}, ", end="")
            print(f"recall {f.recall:.4f}, precision {f.precision:.4f}")
    else:
        print(f"  test scenes: accuracy {validate_classifier(model, test):.4f}")


def _done(what: str, began: float) -> None:
    print(f"{what} ({(time.perf_counter() - began) / 60:.1f} min)", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, help="one of the models")
    parser.add_argument("--stage", choices=STAGES, help="render: only fill the cache; export: use the last checkpoint")
    parser.add_argument(
        "--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores to use (default: %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
