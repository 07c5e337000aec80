"""What each command means for a model, as it stands when the command comes."""

from __future__ import annotations

from gateway.errors import CommandRefused, GatewayError
from gateway.models.catalog import State
from gateway.models.drop import versions_on_disk
from gateway.rollout.caretaker import Caretaker
from gateway.rollout.commands import Action, Command
from gateway.rollout.returning import return_to
from gateway.rollout.state import ReleaseRecord
from gateway.rollout.steps import StepFailed


async def execute(caretaker: Caretaker, command: Command) -> str:
    """Carry a command out as far as it takes effect at once; returns what happens. Raises CommandRefused."""
    if caretaker.stable is not None and caretaker.stable.version == 0:
        raise CommandRefused(
            "NOTHING_TO_DO",
            f"Triton decides which version of '{command.model}' serves",
            fix="Put the model's folders into MODEL_REPOSITORY, where the gateway sees them too",
        )
    shelf = caretaker.tools.fleet.shelves.get(caretaker.name)
    if command.action in (Action.PROMOTE, Action.ROLLBACK) and shelf is not None and shelf.out is not None:
        await _put(caretaker, unloaded=False)
        caretaker.tools.fleet.bring_back(caretaker.name)
    return await _DO[command.action](caretaker, command)


async def _promote(caretaker: Caretaker, command: Command) -> str:
    transaction, version = caretaker.under_way, command.version
    if transaction is not None and version in (None, transaction.version):
        transaction.skip_trials.set()
        return f"version {transaction.version} serves as soon as it is loaded and its golden examples are right"
    if version is None:
        raise CommandRefused("NOTHING_TO_DO", "no version is being tried", fix="Name a version")
    _refuse_stable(caretaker, version)
    await _require_on_disk(caretaker, version)
    await caretaker.order(version, plain=True)
    return f"version {version} serves as soon as it is loaded and its golden examples are right"


async def _rollback(caretaker: Caretaker, command: Command) -> str:
    transaction, version = caretaker.under_way, command.version
    stable = caretaker.stable.version if caretaker.stable else None
    if transaction is not None and version in (None, stable):
        caretaker.end(StepFailed(f"rolled back by {command.by}"), commanded=True)
        return f"version {transaction.version} is given up, version {stable} serves"
    previous = caretaker.tools.ledger.get(caretaker.name).previous
    if version is None and previous is None:
        raise CommandRefused("NOTHING_TO_DO", "no version before this one is remembered", fix="Name a version")
    if version is not None and (previous is None or version != previous.version):
        _refuse_stable(caretaker, version)
        await _require_on_disk(caretaker, version)
        await caretaker.order(version, plain=True)
        return f"version {version} serves as soon as it is loaded and its golden examples are right"
    assert previous is not None
    return await _return_to(caretaker, previous, command.by)


async def _return_to(caretaker: Caretaker, previous: ReleaseRecord, by: str) -> str:
    known = caretaker.tools.fleet.served(caretaker.name, previous.version)
    if known is None or not known.ready:
        caretaker.return_soon(previous, by)
        return f"version {previous.version} is being loaded, and serves then"
    try:
        await return_to(caretaker, previous, by)
    except GatewayError as error:
        raise CommandRefused("COMMAND_FAILED", error.message, fix=error.fix, where=error.where) from error
    return f"version {previous.version} serves"


async def _load(caretaker: Caretaker, command: Command) -> str:
    name, version = caretaker.name, command.version
    if version is not None:
        _refuse_stable(caretaker, version)
        await _require_on_disk(caretaker, version)
        await _put(caretaker, unloaded=False)
        caretaker.tools.fleet.bring_back(name)
        await caretaker.order(version, plain=False)
        return f"version {version} is tried"
    shelf = caretaker.tools.fleet.shelves.get(name)
    if shelf is None or shelf.out is None:
        raise CommandRefused("NOTHING_TO_DO", "the model is not unloaded", fix="Name a version to try that one")
    await _put(caretaker, unloaded=False)
    caretaker.tools.fleet.bring_back(name)
    caretaker.nudge()
    return "the model is being loaded"


async def _unload(caretaker: Caretaker, command: Command) -> str:
    version, transaction = command.version, caretaker.under_way
    if version is None:
        await _put(caretaker, unloaded=True)
        caretaker.end(StepFailed(f"the model is unloaded by {command.by}"))
        caretaker.tools.fleet.take_out(caretaker.name, State.UNLOADED)
        return "the model is out of service"
    if transaction is not None and transaction.version == version:
        caretaker.end(StepFailed(f"unloaded by {command.by}"), commanded=True)
        return f"version {version} is given up"
    if caretaker.kept is not None and caretaker.kept.version == version:
        caretaker.end(StepFailed(f"unloaded by {command.by}"))
        return f"version {version} is unloaded"
    if caretaker.stable is not None and caretaker.stable.version == version:
        raise CommandRefused(
            "COMMAND_INVALID", f"version {version} serves", fix="Name no version to take the model out of service"
        )
    raise CommandRefused("NOTHING_TO_DO", f"version {version} is not loaded")


def _refuse_stable(caretaker: Caretaker, version: int) -> None:
    if caretaker.stable is not None and caretaker.stable.version == version:
        raise CommandRefused("NOTHING_TO_DO", f"version {version} serves already")


async def _require_on_disk(caretaker: Caretaker, version: int) -> None:
    model = caretaker.on_disk
    repository = caretaker.tools.live.current.model_repository
    known = versions_on_disk(model, repository) if model is not None else {}
    if version not in known:
        there = ", ".join(map(str, known)) or "none"
        raise CommandRefused("VERSION_UNKNOWN", f"there is no version {version} on disk (there is: {there})")


async def _put(caretaker: Caretaker, **changes: object) -> None:
    try:
        await caretaker.tools.ledger.put(caretaker.name, **changes)
    except GatewayError as error:
        raise CommandRefused("COMMAND_FAILED", error.message, fix=error.fix, where=error.where) from error


_DO = {Action.PROMOTE: _promote, Action.ROLLBACK: _rollback, Action.LOAD: _load, Action.UNLOAD: _unload}
