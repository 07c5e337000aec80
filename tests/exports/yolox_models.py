"""YOLOX by its own package: its export tools, its picture preparation, its decoding and its suppression."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.exports.fitting import fit, settle
from tests.exports.pictures import CLASSES, Picture
from tests.exports.reference import Case, Reference, detections
from tests.exports.runtime import Export, run_onnx
from tests.exports.workplace import Workplace

CONFIDENCE, IOU, MAX_DETECTIONS = 0.25, 0.45, 300
SIZE = (192, 320)
DECODED = "yolox-nano-decoded"
FAMILIES = ("yolox-nano", DECODED)
EXPERIMENT = f"""from yolox.exp import get_exp

def Exp():
    exp = get_exp(exp_name="yolox-nano")
    exp.num_classes, exp.test_size, exp.exp_name = {len(CLASSES)}, {SIZE}, "nano"
    return exp
"""


def make(family: str, place: Workplace) -> Reference:
    """Fits, exports, asks, and hands back the reference; once as the tool does by default, once with boxes decoded."""
    folder = place.folder(family)
    (folder / "experiment.py").write_text(EXPERIMENT)
    inputs = np.concatenate([_input(picture) for picture in place.pictures])
    _fit(folder, inputs, place.pictures)
    export = _export(folder, family)
    export.describe(SIZE)
    cases, answers = [], []
    for picture, tensor in zip(place.pictures, inputs, strict=True):
        outputs = run_onnx(export.onnx, tensor[None])
        answer = _answer(outputs["output"], decoded=family == DECODED)
        cases.append(Case(outputs, answer))
        ratio = min(SIZE[0] / picture.image.height, SIZE[1] / picture.image.width)
        whole = {**answer, "boxes": answer["boxes"] / ratio}
        answers.append({name: value.tolist() for name, value in whole.items()})
    place.keep_answers(family, place.pictures, answers)
    settings = {"confidence": CONFIDENCE, "iou": IOU, "max_detections": MAX_DETECTIONS}
    return Reference(family, "yolov5" if family == DECODED else "yolox", SIZE, tuple(cases), settings)


def _fit(folder: Path, inputs: NDArray[np.float32], shown: list[Picture]) -> None:
    import torch
    from yolox.exp import get_exp

    torch.manual_seed(0)
    net = get_exp(str(folder / "experiment.py")).get_model()
    images, truth = torch.from_numpy(inputs), torch.from_numpy(_truth(shown))
    net.train()
    net.head.use_l1 = True
    fit(net, lambda: net(images, truth)["total_loss"], 150, 0.004)
    settle(net, lambda: net(images, truth))
    torch.save({"model": net.eval().state_dict()}, folder / "weights.pth")


def _truth(shown: list[Picture]) -> NDArray[np.float32]:
    """Rows of class, centre x, y, width, height in pixels of the input for each picture, filled up with zeros."""
    truth = np.zeros((len(shown), 20, 5), np.float32)
    for number, picture in enumerate(shown):
        ratio = min(SIZE[0] / picture.image.height, SIZE[1] / picture.image.width)
        for row, (x1, y1, x2, y2), class_id in zip(truth[number], picture.boxes(), picture.classes(), strict=False):
            row[:] = (class_id, *(ratio * np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])))
    return truth


def _input(picture: Picture) -> NDArray[np.float32]:
    """BGR from 0 to 255, the picture in the upper left corner: so the tool wants it."""
    from yolox.data.data_augment import ValTransform

    tensor: NDArray[np.float32] = ValTransform()(np.asarray(picture.image)[..., ::-1], None, SIZE)[0]
    return tensor[None]


def _export(folder: Path, family: str) -> Export:
    """By the tool's own commands; TorchScript comes without decoding only."""
    import torch
    from yolox.tools import export_onnx, export_torchscript

    # The tool calls the former exporter by a name that torch no longer has.
    torch.onnx._export = functools.partial(torch.onnx.export, dynamo=False)  # type: ignore[attr-defined]
    onnx, script = folder / f"{family}.onnx", folder / f"{family}.torchscript.pt"
    common = ["-f", str(folder / "experiment.py"), "-c", str(folder / "weights.pth")]
    decode = ["--decode_in_inference"] if family == DECODED else []
    _run(export_onnx, ["--output-name", str(onnx), "--no-onnxsim", *decode, *common])
    if decode:
        return Export(onnx)
    _run(export_torchscript, ["--output-name", str(script), *common])
    return Export(onnx, script)


def _run(tool: Any, arguments: list[str]) -> None:
    before, sys.argv = sys.argv, [tool.__name__, *arguments]
    try:
        tool.main()
    finally:
        sys.argv = before


def _answer(output: NDArray[Any], decoded: bool) -> dict[str, NDArray[Any]]:
    """The tool's `demo_postprocess` (unless the export does that) and `postprocess`, one class apart from the other."""
    import torch
    from yolox.utils import postprocess
    from yolox.utils.demo_utils import demo_postprocess

    rows = output.copy() if decoded else demo_postprocess(output.copy(), SIZE)
    found = postprocess(torch.from_numpy(rows), len(CLASSES), CONFIDENCE, IOU, class_agnostic=False)[0]
    return detections(found[:, :4], found[:, 4] * found[:, 5], found[:, 6])
