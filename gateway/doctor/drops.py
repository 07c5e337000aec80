"""Whether the files of a Triton model fit a model.yaml, without loading anything; and what only loading can tell."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.adapters.triton_drop import DropFacts, read_drop
from gateway.errors import ConfigError
from gateway.layouts.binding import BoundOutput
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedVariant
from gateway.models.input_plan import InputPlan, WindowPlan
from gateway.models.repository import LogicalModel
from gateway.models.signature import fit

OPEN = {
    "pytorch_libtorch": "TorchScript holds no shapes: those of config.pbtxt were taken for true",
    "tensorrt_plan": "only Triton reads a TensorRT engine: the shapes of config.pbtxt were taken for true",
}
"""What the files of a platform do not tell."""
WITHOUT_CLASSES = ("anomaly-detection", "sensor-anomaly", "sensor-regression")
MAX_LISTED = 8
"""Inputs or outputs that one line lists."""
_INDEX = re.compile(r"__\d+$")


@dataclass(frozen=True, slots=True)
class DropReport:
    """One Triton model folder and, where a model.yaml names it, whether it fits that."""

    variant: str
    triton_model: str
    folder: Path
    facts: DropFacts | None = None
    served: ServedVariant | None = None
    """The variant as it would serve; None when that cannot be told, or when something is wrong."""
    open: tuple[str, ...] = ()
    """What only loading can tell."""
    problem: ConfigError | None = None


def examine_drop(
    folder: Path, model: LogicalModel | None = None, variant: str = "", version: int | None = None
) -> DropReport:
    """Read a folder of the repository and hold it against a model.yaml; never raises.

    With a version that one, else those that Triton would serve by itself.
    """
    report = DropReport(variant, folder.name, folder)
    try:
        facts = read_drop(folder, version)
    except ConfigError as error:
        return DropReport(variant, folder.name, folder, problem=error)
    except OSError as error:
        wrong = ConfigError(f"cannot be read: {error.strerror}", where=str(folder), fix="Check its permissions")
        return DropReport(variant, folder.name, folder, problem=wrong)
    unknown = tuple(_unknown(facts))
    report = DropReport(variant, folder.name, folder, facts, open=unknown)
    if model is None or not _has_signature(facts):
        return report
    try:
        served = fit(facts.config.signature, model, ServedVariant(variant, folder.name))
    except ConfigError as error:
        return DropReport(variant, folder.name, folder, facts, open=unknown, problem=_with_dims(error, facts))
    return DropReport(variant, folder.name, folder, facts, served, unknown)


def _with_dims(error: ConfigError, facts: DropFacts) -> ConfigError:
    """The same, its fix beginning with config.pbtxt where that alone told the shapes: it may be the wrong one."""
    if facts.config.platform not in OPEN or not error.fix.startswith("Correct "):
        return error
    fix = f"Correct dims in config.pbtxt, or {error.fix.removeprefix('Correct ')}"
    return ConfigError(error.message, where=error.where, fix=fix)


def disagreement(model: LogicalModel, reports: Sequence[DropReport]) -> ConfigError | None:
    """Why the variants of one model would give different answers, though each fits; None when they would not."""
    served = [report.served for report in reports if report.served is not None]
    counted = [each for each in served if each.classes]
    if len({each.classes for each in counted}) > 1:
        said = ", ".join(f"{each.name} has {_classes(each.classes)}" for each in counted)
        return _disagree(model, said, "Export them from the same model, or correct dims in config.pbtxt")
    for first, other in itertools.pairwise(served):
        here, there = _roles(first), _roles(other)
        # Other names altogether are usual of another format; the same ones in other roles are not.
        if here != there and set(here.values()) == set(there.values()):
            said = "; ".join(f"{each.name} gives {outputs_in_words(each.outputs)}" for each in (first, other))
            return _disagree(model, said, "Name the tensor of each role in inference.outputs")
    return None


def _disagree(model: LogicalModel, said: str, fix: str) -> ConfigError:
    return ConfigError(f"the variants disagree: {said}", where=str(model.path), fix=fix)


def _roles(served: ServedVariant) -> dict[str, str]:
    """The tensor of each role without the `__INDEX` that libtorch wants."""
    return {role: _INDEX.sub("", output.tensor) for role, output in served.outputs.items()}


def remarks_on(model: LogicalModel) -> tuple[str, ...]:
    """What works, but may surprise."""
    if model.labels or model.spec.model_type in WITHOUT_CLASSES:
        return ()
    return (
        "no labels: classes will be called class_0, class_1, ...; write labels.txt beside model.yaml, one class a line",
    )


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def classes_in_words(labels: int, served: Sequence[int | None]) -> str:
    """Of a logical model, by its labels or else by the classes of its variants; empty when nothing tells."""
    count = labels or next((each for each in served if each), 0)
    return _classes(count) if count else ""


def _has_signature(facts: DropFacts) -> bool:
    signature = facts.config.signature
    return bool(signature.inputs and signature.outputs)


def _unknown(facts: DropFacts) -> Iterator[str]:
    config = facts.config
    if not _has_signature(facts):
        yield "neither config.pbtxt nor the files tell its inputs and outputs, so nothing was held against model.yaml"
    elif config.ensemble:
        yield "the models that the ensemble is made of were not looked at"
    elif config.platform in OPEN:
        yield OPEN[config.platform]
    elif facts.onnx is None:
        yield f"the files of the backend '{config.backend}' were not read: config.pbtxt was taken for true"
    yield "whether Triton loads it, and what it sees, shows when it is loaded"


def fits_in_words(report: DropReport) -> list[str]:
    """What was checked and fits."""
    lines: list[str] = []
    if (facts := report.facts) is not None:
        versions = ", ".join(map(str, facts.served))
        kind = facts.config.platform or facts.config.backend or "unknown format"
        lines.append(f"{kind}, serves version {versions} of {', '.join(map(str, facts.versions))}")
        if facts.onnx is not None:
            lines.append("config.pbtxt agrees with the ONNX file" if facts.has_config else "no config.pbtxt is needed")
        if _has_signature(facts):
            signature = facts.config.signature
            lines += [f"takes {_tensors(signature.inputs)}", f"gives {_tensors(signature.outputs)}"]
    if (served := report.served) is not None and served.plan is not None:
        lines.append(f"input {input_in_words(served.plan)}")
        lines.append(f"outputs {outputs_in_words(served.outputs)}")
        if served.classes:
            lines.append(_classes(served.classes))
        lines.append(f"at most {max(1, served.max_batch)} in one request")
    return lines


def _tensors(specs: tuple[TensorSpec, ...]) -> str:
    """Name, type and shape of each, such as `output0 FP32 [1, 7, 1260]`; -1 is a size that is left open."""
    shown = ", ".join(f"{each.name} {each.datatype} {list(each.shape)}" for each in specs[:MAX_LISTED])
    return shown if len(specs) <= MAX_LISTED else f"{shown} and {len(specs) - MAX_LISTED} more"


def input_in_words(plan: InputPlan | WindowPlan) -> str:
    """Name, size and type of the input, such as `images, 256 high and 448 wide, FP32`."""
    if isinstance(plan, WindowPlan):
        return f"{plan.name}, {'x'.join(map(str, plan.shape))} numbers, {plan.datatype}"
    grey = ", grey" if plan.channels == 1 else ""
    return f"{plan.name}, {plan.height} high and {plan.width} wide{grey}, {plan.datatype}"


def outputs_in_words(outputs: Any) -> str:
    """Role and tensor of each output."""
    bound: dict[str, BoundOutput] = dict(outputs)
    return ", ".join(role if role == output.tensor else f"{role} = {output.tensor}" for role, output in bound.items())


def input_size(plan: InputPlan | WindowPlan | None) -> list[int] | None:
    """[height, width] of a picture, or the shape of a window; None when it is not known."""
    if plan is None:
        return None
    return list(plan.shape) if isinstance(plan, WindowPlan) else [plan.height, plan.width]


def signature_json(signature: ModelSignature) -> dict[str, Any]:
    """Inputs and outputs with type and shape."""

    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in specs]

    return {
        "inputs": tensors(signature.inputs),
        "outputs": tensors(signature.outputs),
        "max_batch_size": signature.max_batch_size,
    }


def report_json(report: DropReport) -> dict[str, Any]:
    """The report as `--json` prints it."""
    facts, served, problem = report.facts, report.served, report.problem
    entry: dict[str, Any] = {
        "variant": report.variant or None,
        "triton_model": report.triton_model,
        "folder": str(report.folder),
        "ok": problem is None,
        "problem": None
        if problem is None
        else {"message": problem.message, "where": problem.where, "fix": problem.fix},
        "not_known": list(report.open),
        "format": None,
        "versions": [],
        "served_versions": [],
        "signature": None,
        "input_size": input_size(served.plan) if served else None,
        "outputs": {role: output.tensor for role, output in served.outputs.items()} if served else None,
        "classes": served.classes if served else None,
    }
    if facts is not None:
        entry |= {
            "format": facts.config.platform or facts.config.backend or None,
            "versions": list(facts.versions),
            "served_versions": list(facts.served),
            "signature": signature_json(facts.config.signature),
        }
    return entry
