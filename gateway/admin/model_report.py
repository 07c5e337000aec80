"""How a model stands, in one shape for `ai/models`, the API and `models list --json`, and in lines for people."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.models.catalog import GivenUp, Models, ServedModel, State
from gateway.rollout.commands import Commands
from gateway.rollout.state import ModelState, RefusalRecord, RolloutRecord
from gateway.rollout.steps import Ending
from gateway.topics import safe_text

MAX_TEXT = 1000
"""Characters of one reason, fix or note; Triton's reasons can be whole tracebacks."""


class Status(enum.StrEnum):
    """How a model stands, in one word."""

    SERVING = "serving"
    ROLLING_OUT = "rolling_out"
    """The version under way is the subject; the stable one, if there is one, goes on serving."""
    NOT_SERVING = "not_serving"
    ASLEEP = "asleep"
    """Unloaded to save memory; the next snapshot brings it back."""
    UNLOADED = "unloaded"
    """Taken out of service by command."""
    REMOVED = "removed"
    """Nothing is left of it."""


CLOSED = GivenUp("closed", "")


def model_report(
    name: str,
    state: ModelState | None,
    served: ServedModel | None,
    given_up: Mapping[tuple[str, str], GivenUp] | None = None,
) -> dict[str, Any]:
    """What is known of a model, ready for JSON.

    Without `served` nobody has looked at what serves, and the report tells what is remembered: the status is what
    should be, and `state` and `breaker` of each variant are None. `given_up` has the variants whose circuit breaker is
    not closed, by model and variant. Times are seconds since 1970, durations seconds. Nothing known at all is a removed
    model.
    """
    stable = state.stable if state else None
    previous = state.previous if state else None
    return {
        "model_name": _clean(name),
        "status": _status(state, served).value,
        "version": (served.version if served else 0) or (stable.version if stable else None),
        "previous_version": previous.version if previous else None,
        "variants": _variants(state, served, given_up or {}),
        "rollout": _rollout(state.rollout) if state and state.rollout else None,
        "refused": [_refusal(refusal) for refusal in state.refused] if state else [],
        "roller": _clean(state.roller) if state else "",
    }


def live_reports(models: Models, commands: Commands) -> dict[str, dict[str, Any]]:
    """The report of every model that a running gateway serves or remembers, by name in alphabetical order."""
    return {name: live_report(name, models, commands) for name in sorted(known_models(models, commands))}


def live_report(name: str, models: Models, commands: Commands) -> dict[str, Any]:
    """The report of one model; what is not in the catalogue does not serve, whatever is remembered."""
    served = models.current.models.get(name)
    report = model_report(name, commands.states.get(name), served, models.given_up)
    if served is None and report["status"] == Status.SERVING:
        report["status"] = Status.NOT_SERVING.value
    return report


def known_models(models: Models, commands: Commands) -> set[str]:
    """The names of all models that are served or remembered."""
    return {*models.current.models, *commands.states}


def _status(state: ModelState | None, served: ServedModel | None) -> Status:
    if state is None and served is None:
        return Status.REMOVED
    if state and state.rollout and state.rollout.ending is Ending.UNDER_WAY:
        return Status.ROLLING_OUT
    if is_unloaded(state, served):
        return Status.UNLOADED
    if served is None:
        return Status.SERVING if state and state.stable else Status.NOT_SERVING
    if served.asleep:
        return Status.ASLEEP
    return Status.SERVING if served.ready else Status.NOT_SERVING


def is_unloaded(state: ModelState | None, served: ServedModel | None) -> bool:
    """Whether a command has taken the model out of service; another gateway may have carried it out."""
    if state and state.unloaded:
        return True
    return (
        served is not None
        and not served.ready
        and any(variant.state is State.UNLOADED for variant in served.variants.values())
    )


def failure_in_words(state: ModelState | None) -> str:
    """How the last rollout failed, until the next one begins, in one line; empty when it did not."""
    rollout = state.rollout if state else None
    if state is None or rollout is None or rollout.ending not in (Ending.REFUSED, Ending.ROLLED_BACK):
        return ""
    if state.stable and state.stable.version == rollout.version:  # a command has promoted it all the same
        return ""
    return rollout_in_words(_rollout(rollout))


def _variants(
    state: ModelState | None, served: ServedModel | None, given_up: Mapping[tuple[str, str], GivenUp]
) -> dict[str, dict[str, Any]]:
    if served is not None:
        return {
            name: {
                "triton_model": variant.triton_model,
                "state": variant.state.value,
                "reason": _clean(variant.reason),
                "fix": _clean(variant.fix),
                "version": variant.version,
                "breaker": given_up.get((served.spec.name, name), CLOSED).state,
            }
            for name, variant in served.variants.items()
        }
    stable = state.stable if state else None
    return {
        _clean(name): {
            "triton_model": _clean(triton_model),
            "state": None,
            "reason": "",
            "fix": "",
            "version": str(version),
            "breaker": None,
        }
        for name, (triton_model, version) in (stable.placements if stable else {}).items()
    }


def _rollout(rollout: RolloutRecord) -> dict[str, Any]:
    return {
        "version": rollout.version,
        "step": rollout.step.value,
        "ending": rollout.ending.value,
        "percent": rollout.percent,
        "progress": _clean(rollout.progress),
        "reason": _clean(rollout.reason),
        "fix": _clean(rollout.fix),
        "started_at": round(rollout.started_at, 3),
        "ended_at": None if rollout.ended_at is None else round(rollout.ended_at, 3),
        "steps": [
            {"step": done.step.value, "seconds": round(done.seconds, 3), "note": _clean(done.note)}
            for done in rollout.steps
        ],
    }


def _refusal(refusal: RefusalRecord) -> dict[str, Any]:
    return {
        "version": refusal.version,
        "step": refusal.step.value,
        "reason": _clean(refusal.reason),
        "fix": _clean(refusal.fix),
        "at": round(refusal.at, 3),
    }


def _clean(text: str) -> str:
    """What JSON, a broker and a terminal take; names of files, which can be any bytes, stand in such texts."""
    return safe_text(text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "...")


# --- for people -----------------------------------------------------------------------------------------


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """A report as a few indented lines for a terminal."""
    yield _line("version", _version_in_words(report))
    rollout = report["rollout"]
    if rollout is not None:
        yield _line("rollout", rollout_in_words(rollout))
        if rollout["steps"]:
            yield _line("", ", ".join(step_in_words(step) for step in rollout["steps"]))
    told = rollout["version"] if rollout is not None and rollout["ending"] == Ending.REFUSED else None
    for refusal in report["refused"]:
        if refusal["version"] != told:
            text = f"version {refusal['version']} at {refusal['step']}: {sentence(refusal['reason'], refusal['fix'])}"
            yield _line("refused", text)


def _line(head: str, text: str) -> str:
    return f"  {head:<8} {printable(text)}"


def printable(text: str) -> str:
    """The text without characters that steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def sentence(reason: str, fix: str) -> str:
    """A reason and how to mend it."""
    return f"{reason}. {fix}" if fix else reason


def _version_in_words(report: dict[str, Any]) -> str:
    version, previous = report["version"], report["previous_version"]
    text = f"{version} is the stable one" if version else "none has been promoted yet"
    if previous:
        text += f", {previous} the one before"
    if report["status"] in (Status.UNLOADED, Status.ASLEEP):
        text += f"; {report['status']}"
    return text


def step_in_words(step: dict[str, Any]) -> str:
    """A step that is done, such as `golden 0.8 s (12 examples)`."""
    return f"{step['step']} {step['seconds']:.1f} s" + (f" ({step['note']})" if step["note"] else "")


def rollout_in_words(rollout: dict[str, Any]) -> str:
    """Where a rollout stands, or how it came out, such as `version 4 is in canary (25 %): 120 of 200 answers`."""
    version, step = f"version {rollout['version']}", rollout["step"]
    why = sentence(rollout["reason"], rollout["fix"])
    match rollout["ending"]:
        case Ending.PROMOTED:
            return f"{version} was promoted"
        case Ending.REFUSED:
            return f"{version} was refused at {step}: {why}"
        case Ending.ROLLED_BACK:
            return f"{version} was rolled back at {step}: {why}"
    share = f" ({rollout['percent']} %)" if rollout["percent"] else ""
    progress = f": {rollout['progress']}" if rollout["progress"] else ""
    return f"{version} is at {step}{share}{progress}"
