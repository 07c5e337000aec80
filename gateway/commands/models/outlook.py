"""What would become of a drop: which version is tried, against which one, by which steps; or why it is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.commands.models.target import read_digests
from gateway.config import Settings
from gateway.errors import ConfigError
from gateway.models.drop import Drop, take_drop, versions_on_disk
from gateway.models.drop_files import SIGNATURE_FILE, SUMS_FILE
from gateway.models.manifest import incomplete, read_manifest
from gateway.models.repository import LogicalModel
from gateway.rollout.golden import read_golden
from gateway.rollout.state import ModelState
from gateway.rollout.steps import Ending, Step
from gateway.rollout.store import StateStore
from gateway.rollout.verify import Verified, are_others, weights_in

STATE_FOLDER = ".edge-gateway"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the gateway would do with one model as it lies there."""

    version: int
    """The highest on disk, which is the one that is tried."""
    stable: int | None = None
    """The version that serves; None where none does, or nothing is known."""
    missing: tuple[str, ...] = ()
    """Variants that the version does not bring."""
    steps: tuple[tuple[Step, str], ...] = ()
    """What it would go through, in words; empty where nothing would happen."""
    remarks: tuple[str, ...] = ()
    problem: ConfigError | None = None


def outlook(model: LogicalModel, root: Path, settings: Settings, meets: Path | None, *, quiet: bool) -> Outlook | None:
    """Of the drop in the repository `root`, if it came into the repository `meets`; None for one without versions.

    Without `meets` that is the one that it lies in. Reads all files of the version, with a bar unless `quiet`. Never
    raises.
    """
    versions = versions_on_disk(model, root)
    if not versions:
        return None
    version = max(versions)
    target = meets or root
    state = remembered(model.spec.name, target, settings)
    stable = state.stable.version if state.stable else None
    missing = tuple(name for name in model.spec.variants if name not in versions[version])
    try:
        drop = take_drop(model, root, version, settings.max_model_bytes)
        digests = read_digests(drop, quiet=quiet)
        _refuse_collision(drop, root, target)
        _refuse_used_number(drop, digests, state)
        complete = _completeness(drop, digests)
        signer = _signer(drop, digests, settings)
        golden = len(read_golden(model.path.parent))
    except ConfigError as error:
        return Outlook(version, stable, missing, problem=error)
    remarks = tuple(_remarks(model, state, version, missing))
    if stable is not None and version <= stable:
        return Outlook(version, stable, missing, remarks=remarks)
    steps = tuple(_steps(drop, stable, settings, complete, signer, golden))
    return Outlook(version, stable, missing, steps, remarks)


def remembered(name: str, repository: Path, settings: Settings) -> ModelState:
    """What the gateway of that repository remembers of a model; MODEL_STATE_DIR is of the one of MODEL_REPOSITORY."""
    own = settings.model_state_dir if _same(repository, settings.model_repository) else None
    return StateStore(own or repository / STATE_FOLDER).read(name) or ModelState(name)


def highest_version(model: LogicalModel, repository: Path, settings: Settings) -> int:
    """Of the versions on disk and of those that are remembered, whose numbers are used up too; 0 without any."""
    state = remembered(model.spec.name, repository, settings)
    records = (state.stable, state.previous, state.rollout, *state.refused)
    return max(
        [*versions_on_disk(model, repository), *(each.version for each in records if each is not None)], default=0
    )


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


# --- what would be refused ------------------------------------------------------------------------------


def _refuse_collision(drop: Drop, root: Path, target: Path) -> None:
    """Raise ConfigError when the repository that it shall go into has that version, or a higher one."""
    if _same(root, target):
        return
    highest = max(versions_on_disk(drop.model, target), default=0)
    if drop.version <= highest:
        raise ConfigError(
            f"{target} has version {highest} of '{drop.name}', so version {drop.version} would not be tried",
            where=str(drop.repository),
            fix=f"Count up: rename the version folders to {highest + 1}",
        )


def _refuse_used_number(drop: Drop, digests: Mapping[str, str], state: ModelState) -> None:
    """Raise ConfigError for a number that has stood for other weights, or that has been refused with these files."""
    seen = Verified(drop, digests, {})
    for record in (state.stable, state.previous):
        if record is not None and record.version == drop.version and are_others(weights_in(record), seen.weights):
            raise _count_up(drop, "has served with other weights")
    for refusal in state.refused:
        if refusal.version != drop.version:
            continue
        if are_others(refusal.weights, seen.weights):
            raise _count_up(drop, "has been loaded with other weights, and was refused")
        if refusal.digest == seen.digest:
            raise ConfigError(
                f"version {drop.version} has been refused at the step {refusal.step}: {refusal.reason}",
                where=str(drop.model.path),
                fix=refusal.fix or f"Mend the model, and put it into version {drop.version + 1}",
            )


def _count_up(drop: Drop, what: str) -> ConfigError:
    return ConfigError(
        f"version {drop.version} {what}, and Triton may still have those",
        where=str(drop.model.path),
        fix=f"Count up: put these weights into version {drop.version + 1}",
    )


# --- what would happen ----------------------------------------------------------------------------------


def _completeness(drop: Drop, digests: Mapping[str, str]) -> str:
    """How the gateway knows that nothing is missing; raises ConfigError when something is."""
    manifest = read_manifest(drop.model.path.parent)
    if manifest is None:
        return f"there is no {SUMS_FILE}"
    if why := incomplete(manifest, drop, digests):
        raise ConfigError(
            f"the drop is not complete: {why}",
            where=str(manifest.path),
            fix="Copy what is missing, or write it anew with `edge-gateway models manifest`",
        )
    return f"all files match {SUMS_FILE}"


def _signer(drop: Drop, digests: Mapping[str, str], settings: Settings) -> str:
    """Who has signed it; empty where no signature is asked for. Raises ConfigError for one that is not good."""
    key, certificate = settings.model_public_key_file, settings.model_certificate_file
    if key is None and certificate is None:
        return ""
    from gateway.adapters.signatures import SignatureVerifier

    return SignatureVerifier(key, certificate).verify(drop.model.path.parent / SIGNATURE_FILE, digests)


def _steps(
    drop: Drop, stable: int | None, settings: Settings, complete: str, signer: str, golden: int
) -> Iterator[tuple[Step, str]]:
    spec = drop.model.spec.rollout
    yield Step.STABLE_ON_DISK, f"no file changes for {settings.drop_quiet_s:g} s; {complete}"
    size = sum(stamp[3] for stamp in drop.files.values())
    yield Step.VERIFIED, f"{len(drop.files)} files, {size / 1e6:.1f} MB{f', signed by {signer}' if signer else ''}"
    beside = f" beside version {stable}" if stable is not None else ""
    yield Step.LOADED, f"{', '.join(drop.release.placements)}{beside}"
    yield Step.SIGNATURE, "inputs, outputs and labels against model.yaml"
    yield Step.WARMED, "every batch size is asked once"
    yield Step.GOLDEN, f"{golden} examples, with every variant" if golden else "left out, there are no golden examples"
    if stable is not None and spec.shadow:
        yield Step.SHADOW, f"{spec.shadow} snapshots are asked of both versions, version {stable} answers"
    if stable is not None and spec.canary:
        shares = ", ".join(f"{percent} %" for percent in spec.canary)
        yield Step.CANARY, f"{shares} of the cameras, {spec.hold:g} s and {spec.min_samples} answers each at least"
    yield Step.PROMOTED, f"version {drop.version} answers all cameras"
    if stable is not None:
        yield Step.DRAINED, f"version {stable} is unloaded {spec.keep:g} s later"


def _remarks(model: LogicalModel, state: ModelState, version: int, missing: tuple[str, ...]) -> Iterator[str]:
    if missing:
        yield f"version {version} brings no {' and no '.join(missing)}: the model is served without"
    if state.stable is not None and version < state.stable.version:
        yield f"version {state.stable.version} serves, and version {version} is lower: no rollout"
    under_way = state.rollout
    if under_way is not None and under_way.ending is Ending.UNDER_WAY and under_way.version != version:
        yield f"the rollout of version {under_way.version} is under way at the step {under_way.step}"
    if state.unloaded:
        yield f"the model was taken out of service: `edge-gateway models load {model.spec.name}` brings it back"


# --- in words -------------------------------------------------------------------------------------------


def outlook_in_words(found: Outlook) -> Iterator[str]:
    """The lines that a person reads."""
    against = f" against version {found.stable}, which serves," if found.stable not in (None, found.version) else ""
    if found.problem is not None:
        yield f"  version {found.version}{against} would be refused"
        yield f"    problem   {found.problem}"
    elif found.steps:
        yield f"  version {found.version}{against} would be tried"
    elif found.version == found.stable:
        yield f"  version {found.version} serves already"
    else:
        yield f"  version {found.version}{against} would not be tried"
    yield from (f"    remark    {text}" for text in found.remarks)
    yield from (f"    would     {step}: {text}" for step, text in found.steps)


def outlook_json(found: Outlook) -> dict[str, Any]:
    """The same as `--json` prints it."""
    problem = found.problem
    return {
        "version": found.version,
        "stable_version": found.stable,
        "missing_variants": list(found.missing),
        "steps": [{"step": step.value, "what": text} for step, text in found.steps],
        "remarks": list(found.remarks),
        "problem": problem and {"message": problem.message, "where": problem.where, "fix": problem.fix},
    }
