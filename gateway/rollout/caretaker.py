"""Looks after one logical model: which of its versions is tried next, what becomes of it, and what people ask for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import replace

import msgspec
import structlog

from gateway.errors import ConfigError, GatewayError
from gateway.models.catalog import State
from gateway.models.drop import versions_on_disk
from gateway.models.drop_files import SUMS_FILE
from gateway.models.release import Placement, Release
from gateway.models.repository import LogicalModel
from gateway.rollout.candidates import newest, rest_in_s
from gateway.rollout.refreshing import refresh
from gateway.rollout.refusals import RETRY_S, note_refusal, now, refusal_of, said
from gateway.rollout.releases import forget_old, kept_release
from gateway.rollout.returning import return_to
from gateway.rollout.state import ReleaseRecord, RolloutRecord
from gateway.rollout.steps import Ending, Step, StepFailed
from gateway.rollout.store import StateNotKept
from gateway.rollout.transaction import Tools, Transaction, failure_of, unload
from gateway.rollout.turn import stays_away

log = structlog.get_logger(__name__)

ATTEMPTS = 3
"""How often a rollout is begun again that the death of the gateway, or of its Triton, has broken off."""
BEGIN_LIMIT_S = 5.0
"""For a rollout by command to begin; one that is under way has to be undone before."""


class Caretaker:
    """One model. `run` does one thing at a time; commands that take effect at once interrupt it."""

    def __init__(self, tools: Tools, model: LogicalModel) -> None:
        self.tools = tools
        self.name = model.spec.name
        self.on_disk: LogicalModel | None = model
        """As model.yaml reads now; None when it cannot be read."""
        self.path = model.path
        self.stable: Release | None = None
        self.kept: Release | None = None
        """The version before, while it is still loaded."""
        self.problem = ""
        """What people should know although the model serves."""
        self.said = ""
        """Why nothing serves, as this gateway has said it while another one runs the rollouts."""
        self._may_be_unmanaged = False
        self.returning = False  # to a version that served before; then nothing else is begun
        self._order: tuple[int, bool] | None = None
        self._return: tuple[ReleaseRecord, str] | None = None
        self._begun = asyncio.Event()
        self._nudged = asyncio.Event()
        self._transaction: Transaction | None = None
        self._work: asyncio.Task[None] | None = None
        self._retry_at = float("inf")

    # --- at the start -------------------------------------------------------------------------------

    def remembered(self) -> Release | None:
        """The version that served last, or the one before it, as far as they can serve again. Blocking."""
        state = self.tools.ledger.get(self.name)
        for record in (state.stable, state.previous):
            if record is None:
                continue
            try:
                return self.kept_release(record)
            except ConfigError as error:
                log.error("A version cannot serve again", model=self.name, reason=str(error))
                self.problem = error.message
        return None

    def begin(self, release: Release | None, *, from_start: bool) -> None:
        """Let that release serve; without one announce the model, or leave it to Triton which version serves.

        The latter only `from_start`: of a model that has just come its versions may still be on their way.
        """
        model, self._may_be_unmanaged = self.on_disk, from_start
        if release is not None:
            self.stable = release
            self.tools.fleet.serve(release)
            if self.tools.ledger.get(self.name).unloaded:
                self.tools.fleet.take_out(self.name, State.UNLOADED)
        elif model is not None and self._may_be_left(model):
            self._serve_unmanaged(model)
        elif model is not None:
            self.tools.fleet.announce(model, "being checked")

    def kept_release(self, record: ReleaseRecord) -> Release:
        """The release of a record, as it served. Blocking; raises ConfigError."""
        tools = self.tools
        return kept_release(
            tools.ledger.store, self.name, record, self.path, tools.live.current.model_repository, tools.checks
        )

    def _managed(self, model: LogicalModel) -> bool:
        """Whether its versions can be seen from here, so that it is for us to say which of them serves."""
        repository = self.tools.live.current.model_repository
        inside = model.path.name == "model.yaml" and model.path.parent.parent.absolute() == repository.absolute()
        return inside and bool(versions_on_disk(model, repository))

    def _may_be_left(self, model: LogicalModel) -> bool:
        """Whether it may be left to Triton which version serves, since none can be seen from here."""
        return not self._managed(model) and self._may_be_unmanaged and self.tools.checks.verify_signature is None

    @property
    def _restless(self) -> bool:
        """Whether files of the model are still being written."""
        model = self.on_disk
        folders = {self.path.parent.name, *(model.spec.variants.values() if model else ())}
        return bool(folders & self.tools.watcher.restless.keys())

    def _serve_unmanaged(self, model: LogicalModel) -> None:
        placements = {name: Placement(triton_model, 0) for name, triton_model in model.spec.variants.items()}
        self.stable = Release(0, model, placements)
        self.tools.fleet.serve(self.stable)

    def take_over(self, model: LogicalModel) -> None:
        """Serve by a changed model.yaml at once, where nothing has to be checked before.

        Raises ConfigError, and changes nothing, when it does not fit what Triton has loaded.
        """
        self.on_disk = model
        stable, checks = self.stable, self.tools.checks
        if stable is None or stable.model == model or self._transaction is not None:
            return
        if stable.version == 0 and self._may_be_left(model):
            self._serve_unmanaged(model)
            return
        highest = max(versions_on_disk(model, self.tools.live.current.model_repository), default=0)
        listed = (model.path.parent / SUMS_FILE).exists()
        if highest == stable.version and not listed and checks.verify_signature is None and self.tools.ledger.writable:
            changed = replace(stable, model=model)
            self.tools.fleet.serve(changed, self.kept)
            self.stable = changed

    # --- for ever -----------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Something has changed: look again."""
        self._nudged.set()

    async def run(self) -> None:
        """Roll out what is new, one version at a time, for ever."""
        while True:
            self._nudged.clear()
            if time.monotonic() >= self._retry_at:
                self._retry_at = float("inf")
            again = await self._safely()
            if not again:
                with contextlib.suppress(TimeoutError):
                    wait_s = self._retry_at - time.monotonic()
                    async with asyncio.timeout(None if wait_s == float("inf") else max(0.0, wait_s)):
                        await self._nudged.wait()

    async def _safely(self) -> bool:
        """Look after the model; a defect on one drop must not end the gateway."""
        try:
            return await self._look_after()
        except Exception as error:
            log.exception("A defect of the gateway", model=self.name)
            self.problem = f"a defect of the gateway: {type(error).__name__}; see its log"
            self._retry_at = time.monotonic() + RETRY_S
            return False

    async def _look_after(self) -> bool:
        """Do what is most urgent; True when there may be more to do at once."""
        model, state = self.on_disk, self.tools.ledger.get(self.name)
        if self.returning:
            return False
        await self._tidy_up()
        if self._return is not None:
            await self._return_now()
            return True
        if model is None or (state.unloaded and self._order is None) or self._restless:
            return False  # it is looked at again when the files are at rest
        if not self._managed(model) and (self.stable is None or self.stable.version == 0):
            if self._may_be_left(model) and (self.stable is None or self.stable.model != model):
                self._serve_unmanaged(model)
            elif self.stable is None:
                self.tools.fleet.announce(model, "no version of it is there yet")
            return False
        record = await self._next(model)
        if record is None:
            await refresh(self, model)
            return False
        await self._roll_out(record)
        return True

    async def _tidy_up(self) -> None:
        """Finish what a gateway before this one has left half done after a promotion."""
        rollout = self.tools.ledger.get(self.name).rollout
        if rollout is not None and rollout.ending is Ending.PROMOTED and rollout.ended_at is None:
            ended = msgspec.structs.replace(rollout, ended_at=now())
            await self.tools.ledger.note(self.name, rollout=ended)
        if (kept := self.kept) is not None:
            await unload(self.tools, self.name, kept)
            if self.kept is kept:
                self.kept = None

    async def _return_now(self) -> None:
        assert self._return is not None
        (record, by), self._return = self._return, None
        try:
            await return_to(self, record, by)
        except GatewayError as error:
            log.error("Not rolled back", model=self.name, reason=error.message, fix=error.fix)
            self.problem = f"not rolled back to version {record.version}: {error.message}"

    async def _next(self, model: LogicalModel) -> RolloutRecord | None:
        """The rollout to begin, or to go on with; None when there is nothing to do."""
        state = self.tools.ledger.get(self.name)
        if self._order is not None:
            (version, plain), self._order = self._order, None
            refused = tuple(each for each in state.refused if each.version != version)
            record = RolloutRecord(version, Step.STABLE_ON_DISK, now(), plain=plain or self.stable is None)
            floor = state.floor
            if self.stable is not None and version < self.stable.version:
                floor = max(versions_on_disk(model, self.tools.live.current.model_repository), default=version)
            await self.tools.ledger.note(self.name, refused=refused, rollout=record, floor=floor)
            self._begun.set()
            return record
        if self.stable is not None and not self.tools.ledger.writable:
            self.problem = self.tools.ledger.why_not_writable
            return None
        rollout = state.rollout
        if rollout is not None and rollout.ending is Ending.UNDER_WAY:
            return msgspec.structs.replace(rollout, attempts=rollout.attempts + 1)
        version = await asyncio.to_thread(newest, self.tools, self.path, model, self.stable)
        if version and (rest_s := await asyncio.to_thread(rest_in_s, self.tools, model, version)):
            self._retry_at = min(self._retry_at, time.monotonic() + rest_s)
            return None
        return RolloutRecord(version, Step.STABLE_ON_DISK, now(), plain=self.stable is None) if version else None

    # --- a rollout ----------------------------------------------------------------------------------

    async def _roll_out(self, record: RolloutRecord) -> None:
        refused = {each.version: each.weights for each in self.tools.ledger.get(self.name).refused}
        weights = refused.get(record.version) or record.weights
        transaction = Transaction(self.tools, self.name, self.path, record.version, record, self.stable, weights)
        log.info("A rollout begins", model=self.name, version=record.version, attempt=record.attempts)
        failure: GatewayError | None = None
        if record.attempts > ATTEMPTS:
            with contextlib.suppress(ConfigError):
                await transaction.look()
            transaction.was_loaded = True  # most likely
            failure = StepFailed(
                f"the gateway or its Triton has gone away {ATTEMPTS} times in the middle of its rollout",
                fix="See their logs and the machine's memory; then drop it as the next version",
            )
        else:
            failure = await self._carried_out(transaction, transaction.run())
        if failure is None:
            await self._settle_in(transaction)
        elif self.stable is None or self.tools.ledger.writable or transaction.given_up:
            await self._refuse(transaction, failure)
        else:  # another gateway has taken over and goes on with it, or this one does when it can write again
            self.tools.fleet.end_trial(self.name)

    async def _carried_out(self, transaction: Transaction, work: Coroutine[None, None, None]) -> GatewayError | None:
        """Run it until it ends, or somebody ends it; returns why it failed."""
        self._transaction = transaction
        self._work = asyncio.create_task(work, name=f"rollout {self.name}")
        try:
            while not self._work.done():
                nudged = asyncio.create_task(self._nudged.wait(), name="nudged")
                await asyncio.wait((self._work, nudged), return_when=asyncio.FIRST_COMPLETED)
                nudged.cancel()
                if self._nudged.is_set():
                    self._nudged.clear()
                    await self._give_way(transaction)
            return failure_of(self._work, transaction)
        except asyncio.CancelledError:
            # An orderly stop, after which the rollout goes on, is no death in the middle, even while Triton restarts.
            # Giving way without Triton is: a version that ends one after the other must not go round for ever.
            attempts = transaction.record.attempts - (not stays_away(self.tools.loader))
            ended = msgspec.structs.replace(transaction.record, attempts=max(0, attempts))
            self.tools.ledger.write_now(self.name, rollout=ended)
            raise
        finally:
            self._work.cancel()
            self._transaction = self._work = None

    async def _give_way(self, transaction: Transaction) -> None:
        """End a rollout whose files have changed, or that a newer version has overtaken."""
        model, verified = self.on_disk, transaction.verified
        if verified is None or model is None or transaction.record.ending is Ending.PROMOTED:
            return
        highest = await asyncio.to_thread(newest, self.tools, self.path, model, self.stable)
        if highest > transaction.version and not transaction.record.plain:
            self.end(StepFailed(f"version {highest} has been dropped meanwhile", fix="Nothing: that one is tried"))
            return
        try:
            again, _ = await asyncio.to_thread(
                self.tools.read_drop, self.path, transaction.version, verified.record(0.0)
            )
        except ConfigError as error:
            self.end(error)
            return
        if again.files != verified.drop.files:
            self.end(StepFailed("its files have changed in the middle", fix="Leave a drop alone while it is tried"))

    async def _settle_in(self, transaction: Transaction) -> None:
        """The version serves: remember that, and let the one before go."""
        promoted = self.tools.ledger.get(self.name).stable
        if promoted is not None and promoted.version != transaction.version:
            return  # rolled back before it had settled in
        old, self.stable = self.stable, transaction.release
        self.problem = ""
        self.tools.metrics.rollouts.labels(self.name, Ending.PROMOTED).inc()
        self.tools.metrics.rollout_percent.labels(self.name).set(0)
        log.info("A version serves", model=self.name, version=transaction.version)
        if old is not None and old.version != transaction.version:
            self.kept = old
            failure = await self._carried_out(transaction, transaction.drain(old))
            if self.stable is not transaction.release or self.returning:
                return  # rolled back meanwhile
            if failure is not None:
                log.warning("The version before is not drained", model=self.name, reason=failure.message)
                await unload(self.tools, self.name, old)
            self.kept = None
        await self.tools.ledger.note(
            self.name, rollout=msgspec.structs.replace(transaction.record, ended_at=now(), progress="")
        )
        await asyncio.to_thread(forget_old, self.tools.ledger.store, self.tools.ledger.get(self.name))

    async def _refuse(self, transaction: Transaction, failure: GatewayError) -> None:
        """The stable version alone goes on; the candidate is unloaded, and what is wrong with it remembered."""
        tools, record = self.tools, transaction.record
        tools.fleet.end_trial(self.name)
        if transaction.verified is None:
            with contextlib.suppress(ConfigError):
                await transaction.look()
        rolled_back = record.step in (Step.CANARY, Step.PROMOTED)
        ending = Ending.ROLLED_BACK if rolled_back else Ending.REFUSED
        stable = self.stable.version if self.stable else None
        if rolled_back:
            log.error(
                "A rollout is rolled back", model=self.name, version=transaction.version, step=record.step.value,
                reason=failure.message, where=failure.where, fix=failure.fix, stable=stable,
            )  # fmt: skip
        else:
            log.error(
                "A version is refused", model=self.name, version=transaction.version, step=record.step.value,
                reason=failure.message, where=failure.where, fix=failure.fix, stable=stable,
            )  # fmt: skip
        release = transaction.verified.drop.release if transaction.verified else None
        if self.stable is None and self.on_disk is not None:
            tools.fleet.announce(self.on_disk, failure.message, refused=True)
        record = msgspec.structs.replace(
            record, ending=ending, reason=said(failure), fix=failure.fix, ended_at=now(), progress="", share=0.0
        )
        first = self.stable is None and not transaction.was_loaded
        refusal = refusal_of(transaction, record, again=first or isinstance(failure, StateNotKept))
        if not refusal.digest:
            self._retry_at = time.monotonic() + RETRY_S
        await note_refusal(tools.ledger, self.name, refusal, rollout=record)
        tools.metrics.rollouts.labels(self.name, ending).inc()
        tools.metrics.rollout_percent.labels(self.name).set(0)
        if release is not None:
            await unload(tools, self.name, release)

    # --- what commands do ---------------------------------------------------------------------------

    @property
    def under_way(self) -> Transaction | None:
        """The rollout whose version does not serve yet."""
        transaction = self._transaction
        return transaction if transaction and transaction.record.ending is Ending.UNDER_WAY else None

    def end(self, why: GatewayError, *, commanded: bool = False) -> None:
        """Give up what is under way, rollout or drain; `commanded`: for a person does not want that version."""
        if self._transaction is not None and self._work is not None:
            self._transaction.given_up, self._transaction.commanded = why, commanded
            self._work.cancel()

    async def order(self, version: int, *, plain: bool) -> None:
        """Let this version be rolled out next, also when it has been refused; returns when that has begun."""
        self._order, self._begun = (version, plain), asyncio.Event()
        self.end(StepFailed(f"version {version} is to serve by command"))
        self.nudge()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEGIN_LIMIT_S):
                await self._begun.wait()

    def return_soon(self, record: ReleaseRecord, by: str) -> None:
        """Serve that release again once it is loaded."""
        self._return = (record, by)
        self.nudge()
