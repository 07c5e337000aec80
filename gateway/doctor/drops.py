"""Whether the files of a Triton model fit a model.yaml, without loading anything; and what only loading can tell."""

from __future__ import annotations

from collections.abc import Iterator
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


def examine_drop(folder: Path, model: LogicalModel | None = None, variant: str = "") -> DropReport:
    """Read a folder of the repository and hold it against a model.yaml; never raises."""
    report = DropReport(variant, folder.name, folder)
    try:
        facts = read_drop(folder)
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
        return DropReport(variant, folder.name, folder, facts, open=unknown, problem=error)
    return DropReport(variant, folder.name, folder, facts, served, unknown)


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
    if (served := report.served) is not None and served.plan is not None:
        lines.append(f"input {input_in_words(served.plan)}")
        lines.append(f"outputs {outputs_in_words(served.outputs)}")
        if served.classes:
            lines.append(f"{served.classes} classes")
        lines.append(f"at most {max(1, served.max_batch)} in one request")
    return lines


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
