"""Golden examples: pictures or readings that the ML engineer sends with a model, and what it has to say about them.

`golden/expected.json` in the logical model's folder is a list. Each entry names a file beside it, `image` or
`readings` (`{"readings": [[value per channel], ...]}`, one window), and what is expected, under the names that result
messages have: `predictions`, `anomaly_score`, `values`. What an entry does not name is not held against anything;
shapes (`polygons`, `rle`) may stay in predictions that were copied from a result, and are not compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import FileIO
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendUnavailable, ConfigError, GatewayError, ModelUnavailable
from gateway.flow.answering import Answering
from gateway.flow.compare import VALUE_TOLERANCE
from gateway.layouts.boxes import iou_matrix
from gateway.messages import (
    Job,
    Origin,
    Place,
    Prediction,
    Prepared,
    ReplyTopics,
    Selection,
    Snapshot,
    VariantResult,
    Window,
)
from gateway.models.catalog import ServedModel, State
from gateway.regular_file import open_regular
from gateway.rollout.evidence import agreement_of

EXPECTED_FILE = "expected.json"
MAX_EXAMPLES = 1_000
MAX_PREDICTIONS = 1_000
"""Of one example; no model reports more."""
MAX_JSON_BYTES = 4 * 2**20
MAX_PICTURE_BYTES = 64 * 2**20
MOST_LISTED = 4
"""Predictions that one message names."""
LIMIT_S = 30.0
"""For one variant's answer to one example; INFER_TIMEOUT_MS may be shorter."""
FIX = 'Write a list of {"image": "file beside it", "predictions": [...]}, as docs/models.md shows'
WRONG_ANSWER = "Check the weights, labels.txt and model.yaml; or correct expected.json if the model is right"
ROUNDING = 1e-6
"""What confidences may be off by when they are written down."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ExpectedPrediction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prediction as result messages have it; `class_id` and `bbox` count where they are given."""

    class_name: Name = msgspec.field(name="class")
    confidence: Share
    class_id: int | None = None
    bbox: tuple[float, float, float, float] | None = None
    polygons: Any = None
    rle: Any = None


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of expected.json."""

    image: Name | None = None
    readings: Name | None = None
    predictions: Annotated[tuple[ExpectedPrediction, ...], msgspec.Meta(max_length=MAX_PREDICTIONS)] | None = None
    anomaly_score: Share | None = None
    values: tuple[float, ...] | None = None


class _Readings(msgspec.Struct, frozen=True):
    readings: list[list[float]]


@dataclass(frozen=True, slots=True)
class Example:
    """One entry of expected.json, and where the file lies that it names."""

    path: Path
    expected: Expected

    @property
    def name(self) -> str:
        """What people call it: the name of its file."""
        return self.path.name


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """What came of the examples; `failure` says of the first that failed what was expected and what came."""

    examples: int
    variants: tuple[str, ...]
    failure: str = ""
    fix: str = ""

    @property
    def passed(self) -> bool:
        """Whether every variant said what was expected of every example."""
        return not self.failure


# --- reading them ------------------------------------------------------------------------------------


def read_golden(folder: Path) -> tuple[Example, ...]:
    """The examples of the logical model in this folder; () where there is no golden/expected.json.

    Their files are looked for, not read. Raises ConfigError.
    """
    path = folder / "golden" / EXPECTED_FILE
    try:
        if not path.exists() and not path.is_symlink() and not path.parent.is_symlink():
            return ()
    except OSError as error:
        raise _unreadable(path, error) from error
    content = _content(_inside(folder, EXPECTED_FILE), MAX_JSON_BYTES)
    try:
        entries = msgspec.json.decode(content, type=list[Expected])
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"cannot be understood: {error}", where=str(path), fix=FIX) from error
    if len(entries) > MAX_EXAMPLES:
        raise ConfigError(f"{len(entries)} examples, at most {MAX_EXAMPLES} are read", where=str(path), fix="Keep few")
    return tuple(_example(folder, entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1))


def read_picture(example: Example, limit: int) -> bytes:
    """The picture of an example, of at most `limit` bytes. Blocking. Raises ConfigError."""
    return _content(example.path, limit)


def _example(folder: Path, entry: Expected, where: str) -> Example:
    if (entry.image is None) == (entry.readings is None):
        raise ConfigError("an entry names either an image or readings", where=where, fix=FIX)
    if entry.predictions is None and entry.anomaly_score is None and entry.values is None:
        raise ConfigError(
            "nothing is expected of it", where=where, fix="Give predictions ([] for none), anomaly_score or values"
        )
    return Example(_inside(folder, str(entry.image or entry.readings)), entry)


def _inside(folder: Path, name: str) -> Path:
    """The path of a regular file beside expected.json; links are followed, but not out of the model's folder."""
    if name in ("", ".", "..") or not name.isprintable() or set(name) & set("/\\"):
        fix = "Put it beside expected.json and give its name alone"
        raise ConfigError(f"'{name[:100]}' is no name of a file beside it", where=str(folder / "golden"), fix=fix)
    path = folder / "golden" / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise ConfigError("it leads out of the model's folder", where=str(path), fix="Put the file itself there")
        size = _size_of(path)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise _unreadable(path, error) from error
    if size > MAX_PICTURE_BYTES:
        limit = f"{MAX_PICTURE_BYTES >> 20} MiB"
        raise ConfigError(f"it is larger than {limit}", where=str(path), fix="Use a smaller picture")
    return path


def _size_of(path: Path) -> int:
    with open_regular(path) as file:
        return file.seek(0, 2)


def _content(path: Path, limit: int) -> bytes:
    """The bytes of a file; raises ConfigError, also for one that has grown beyond the limit."""
    try:
        with open_regular(path) as file:
            content = _read(file, limit + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if len(content) > limit:
        raise ConfigError(f"it is larger than {limit >> 20} MiB", where=str(path), fix="Keep it smaller")
    return content


def _read(file: FileIO, limit: int) -> bytes:
    """All of it: a single read may give less than there is."""
    parts, left = [], limit
    while left > 0 and (part := file.read(min(left, 2**20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(
        f"cannot be read: {reason}", where=str(path), fix="Put the file there and let the gateway read it"
    )


# --- asking about them -------------------------------------------------------------------------------


async def check_golden(examples: Sequence[Example], candidate: ServedModel, answering: Answering) -> GoldenReport:
    """Ask every variant of the candidate that serves about every example, the same way as about a snapshot.

    `cameras` of model.yaml do not hold, for an example is of no camera. Raises BackendUnavailable and
    ModelUnavailable, which say nothing of the model; whatever else goes wrong is the failure of an example.
    """
    spec = candidate.spec.model_copy(update={"cameras": {}})
    model = replace(candidate, spec=spec, trial=None)
    names = tuple(name for name, variant in model.variants.items() if variant.state is State.READY)
    if not names:
        raise ModelUnavailable(f"no variant of '{spec.name}' serves ({model.why_not_ready()})")
    agreements: list[tuple[float, str]] = []
    for example in examples:
        results: dict[str, VariantResult] = {}
        about = example.name
        try:
            prepared = await _prepare(example, model, names, answering)
            for name in names:
                about = f"{example.name}, {name}"
                results[name] = await _ask(prepared, name, answering)
                if problem := await asyncio.to_thread(difference, example.expected, results[name], model):
                    return GoldenReport(len(examples), names, f"{about}: {problem}", WRONG_ANSWER)
        except (BackendUnavailable, ModelUnavailable):
            raise
        except GatewayError as error:
            return GoldenReport(len(examples), names, f"{about}: {error.message}", error.fix)
        pairs = combinations(results.values(), 2)
        agreements += [(agreement_of(*pair, spec.inference.match_iou), example.name) for pair in pairs]
    return GoldenReport(len(examples), names, *_disagreement(agreements, names, spec.rollout.min_variant_agreement))


def _disagreement(agreements: list[tuple[float, str]], names: tuple[str, ...], least: float) -> tuple[str, str]:
    """Why the variants do not agree well enough, and what to do; two empty texts where they do."""
    if not agreements:
        return "", ""
    mean, (worst, example) = sum(value for value, _ in agreements) / len(agreements), min(agreements)
    if mean >= least:
        return "", ""
    text = f"{' and '.join(names)} agree by {mean:.2f} on the golden examples, at least {least:.2f} is due"
    return f"{text} (least on {example}: {worst:.2f})", "Export all variants from the same weights"


async def _prepare(example: Example, model: ServedModel, names: tuple[str, ...], answering: Answering) -> Prepared:
    snapshot = await asyncio.to_thread(_snapshot, example, model)
    return await answering.prepare(Job(snapshot, model, time.monotonic() + LIMIT_S, ReplyTopics("", "", "")), names)


async def _ask(prepared: Prepared, name: str, answering: Answering) -> VariantResult:
    job = replace(prepared.job, deadline_at=time.monotonic() + LIMIT_S)
    return (await answering.ask(replace(prepared, job=job), Selection("golden", "", name))).primary


def _snapshot(example: Example, model: ServedModel) -> Snapshot | Window:
    """The example as a snapshot; raises ConfigError when its file cannot be read, or is nothing for this model."""
    expected, spec = example.expected, model.spec
    if (expected.image is not None) != spec.takes_pictures:
        kind = "pictures" if spec.takes_pictures else "readings"
        raise ConfigError(f"the model takes {kind}", where=str(example.path), fix=f"Give examples of {kind}")
    content = _content(example.path, MAX_PICTURE_BYTES if spec.takes_pictures else MAX_JSON_BYTES)
    origin = Origin(
        result_id=f"golden-{example.name}",
        device_id="",
        timestamp=0,
        topic="",
        payload_bytes=len(content),
        payload_sha256="",
        received_at=time.monotonic(),
        place=Place("", "", ""),
    )
    if spec.takes_pictures:
        return Snapshot(origin=origin, image=content)
    return Window(origin=origin, readings=_readings(content, example.path, (spec.sensor.window, spec.sensor.channels)))


def _readings(content: bytes, path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    fix = f'Write {{"readings": [...]}} with {shape[0]} lists of {shape[1]} numbers, the oldest first'
    try:
        readings = np.array(msgspec.json.decode(content, type=_Readings).readings, np.float64)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"cannot be understood: {error}", where=str(path), fix=fix) from error
    if readings.shape != shape:
        came = " of ".join(map(str, readings.shape))
        raise ConfigError(f"it has {came} readings, the model takes {shape[0]} of {shape[1]}", where=str(path), fix=fix)
    return readings


# --- holding answers against them --------------------------------------------------------------------


def difference(expected: Expected, came: VariantResult, model: ServedModel) -> str:
    """The first thing that is not as expected, in one line; empty when all is.

    Confidences and the anomaly score may differ by `rollout.golden_confidence`, numbers by that share of the largest
    one expected. A prediction that lies no further than that above its threshold may be missing, and one may come.
    """
    rollout = model.spec.rollout
    if expected.values is not None and (problem := _other_values(expected.values, came, rollout.golden_confidence)):
        return problem
    if (score := expected.anomaly_score) is not None and (
        came.score is None or abs(came.score - score) > rollout.golden_confidence + ROUNDING
    ):
        return f"expected anomaly_score {score:.3g}, came {'none' if came.score is None else f'{came.score:.3g}'}"
    if expected.predictions is None:
        return ""
    return _other_predictions(expected.predictions, came.predictions, model)


def _other_values(expected: tuple[float, ...], came: VariantResult, tolerance: float) -> str:
    values = came.values or ()
    if len(values) != len(expected):
        return f"expected {len(expected)} values, came {len(values)}"
    most = tolerance * max(map(abs, expected), default=0.0) + VALUE_TOLERANCE
    for index, (wanted, value) in enumerate(zip(expected, values, strict=True)):
        if not abs(wanted - value) <= most:
            return f"expected {wanted:.4g} as value {index + 1}, came {value:.4g} (may differ by {most:.2g})"
    return ""


def _other_predictions(
    expected: tuple[ExpectedPrediction, ...], came: tuple[Prediction, ...], model: ServedModel
) -> str:
    tolerance = model.spec.rollout.golden_confidence
    pairs = _pairs(expected, came, model.spec.rollout.golden_iou)
    for i, j in pairs.items():
        if abs(expected[i].confidence - came[j].confidence) > tolerance + ROUNDING:
            return f"expected {_said(expected[i])}, came with confidence {came[j].confidence:.2f}"
    for i, missing in enumerate(expected):
        if i not in pairs and missing.confidence > _certain(missing.class_name, model):
            return f"expected {_said(missing)}, came {_listed(came)}"
    taken = set(pairs.values())
    for j, extra in enumerate(came):
        if j not in taken and extra.confidence > _certain(extra.class_name, model):
            return f"{_said(extra)} came and is not expected ({_listed(expected)} is)"
    return ""


def _pairs(expected: tuple[ExpectedPrediction, ...], came: tuple[Prediction, ...], least: float) -> dict[int, int]:
    """Which prediction came for which expected one: of the same class, the best overlap first; without boxes any."""
    fit = np.full((len(expected), len(came)), -1.0)
    placed = [i for i, item in enumerate(expected) if item.bbox is not None]
    boxed = [j for j, item in enumerate(came) if item.bbox is not None]
    if placed and boxed:
        overlap = iou_matrix(
            np.array([expected[i].bbox for i in placed], np.float32),
            np.array([came[j].bbox for j in boxed], np.float32),
        )
        fit[np.ix_(placed, boxed)] = np.where(overlap >= least, overlap, -1.0)
    for i, wanted in enumerate(expected):
        if wanted.bbox is None:
            fit[i] = 0.0
        fit[i, [not _same_class(wanted, item) for item in came]] = -1.0
    pairs = {}
    while fit.size and fit.max() >= 0:
        i, j = divmod(int(fit.argmax()), len(came))
        pairs[i] = j
        fit[i] = fit[:, j] = -1.0
    return pairs


def _same_class(expected: ExpectedPrediction, came: Prediction) -> bool:
    return expected.class_name == came.class_name and expected.class_id in (None, came.class_id)


def _certain(class_name: str, model: ServedModel) -> float:
    """The confidence above which a prediction of this class, as messages name it, has to be there."""
    spec = model.spec.inference
    labels = [label for label in model.labels if spec.rename.get(label, label) == class_name]
    least = max((spec.class_thresholds.get(label, spec.confidence_threshold) for label in labels),
                default=spec.confidence_threshold)  # fmt: skip
    return least + model.spec.rollout.golden_confidence + ROUNDING


def _said(item: ExpectedPrediction | Prediction) -> str:
    place = "" if item.bbox is None else f" at [{', '.join(f'{side:.0f}' for side in item.bbox)}]"
    return f"{item.class_name} {item.confidence:.2f}{place}"


def _listed(items: Sequence[ExpectedPrediction | Prediction]) -> str:
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return f"{', '.join(map(_said, items[:MOST_LISTED]))}{more}" if items else "nothing"
