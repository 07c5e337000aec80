"""One rollout: the order of its steps, each remembered before it begins, and what each of them asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from gateway.errors import BackendUnavailable, GatewayError, ModelCrashed, ModelUnavailable
from gateway.flow.answering import Answering
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import ServedModel, State
from gateway.models.drop import Drop
from gateway.models.fleet import Fleet
from gateway.models.loader import Loader
from gateway.models.release import Release
from gateway.models.rollout_spec import RolloutSpec
from gateway.models.watcher import DropWatcher
from gateway.ports import InferenceServer
from gateway.rollout.golden import check_golden, read_golden
from gateway.rollout.ledger import Ledger
from gateway.rollout.releases import keep
from gateway.rollout.state import ReleaseRecord, RolloutRecord, StepRecord
from gateway.rollout.steps import Ending, Step, StepFailed
from gateway.rollout.trials import LOSSES, run_trial
from gateway.rollout.verify import Checks, Verified, are_others, read_drop, refuse_without_room, verify
from gateway.rollout.warm import warm

log = structlog.get_logger(__name__)

WARM_LIMIT_S = 120.0
DRAIN_LIMIT_S = 30.0
GONE_LIMIT_S = 30.0
POLL_S = 0.05
FOLLOWERS_S = 2.0
"""Until other gateways on the volume have read that a version is not to be asked any more."""


@dataclass(frozen=True, slots=True, eq=False)
class Tools:
    """What a rollout works with."""

    live: Live
    server: InferenceServer
    fleet: Fleet
    loader: Loader
    ledger: Ledger
    metrics: Metrics
    checks: Checks
    answering: Answering
    """Asks a version as a snapshot would, uncounted."""
    in_flight: Callable[[str, int], int]
    """Snapshots of a model that a version is asked about now."""
    watcher: DropWatcher
    end_model: Callable[[str], Awaitable[None]]
    """Ends what is open of a model that is gone."""

    def read_drop(self, path: Path, version: int, known: ReleaseRecord | None = None) -> tuple[Drop, dict[str, str]]:
        """That version of the model whose model.yaml lies at `path`; as verify.read_drop. Blocking."""
        settings = self.live.current
        return read_drop(path, settings.model_repository, version, settings.max_model_bytes, known)


@dataclass(slots=True, eq=False)
class Transaction:
    """A version on its way into service. `run` returns when it serves, or raises why it shall not."""

    tools: Tools
    name: str
    path: Path
    """Of model.yaml."""
    version: int
    record: RolloutRecord
    stable: Release | None
    loaded_before: Mapping[str, str] = field(default_factory=dict)
    """The digests of the weights that Triton has had under this number in an earlier rollout."""
    verified: Verified | None = None
    was_loaded: bool = False
    skip_trials: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: GatewayError | None = None
    """Why somebody has ended it from outside."""
    commanded: bool = False
    """Whether that was a person who does not want the version."""

    async def run(self) -> None:
        """All steps up to PROMOTED; raises GatewayError, with `record.step` the step that said no."""
        await self._step(Step.VERIFIED, self._verify)
        await self._step(Step.LOADED, self._load)
        await self._step(Step.SIGNATURE, self._compare_signature)
        await self._step(Step.WARMED, self._warm)
        await self._once(Step.GOLDEN, self._golden)
        if not self.record.plain and self.stable is not None:
            if self._spec.shadow:
                await self._once(Step.SHADOW, self._shadow)
            if self._spec.canary:
                await self._step(Step.CANARY, self._canary)
        await self._step(Step.PROMOTED, self._promote)

    async def drain(self, old: Release) -> None:
        """After the promotion: wait until nobody uses the version before, then unload it."""
        await self._step(Step.DRAINED, lambda: self._drain(old))

    @property
    def release(self) -> Release:
        """The version, once it is verified."""
        assert self.verified is not None
        return self.verified.drop.release

    @property
    def _spec(self) -> RolloutSpec:
        return self.release.model.spec.rollout

    @property
    def _candidate(self) -> ServedModel:
        served = self.tools.fleet.served(self.name, self.version)
        if served is None:
            raise StepFailed("it is not wanted any more")
        return served

    # --- the frame of each step ---------------------------------------------------------------------

    async def _step(self, step: Step, work: Callable[[], Awaitable[str]]) -> None:
        """Remember that it begins, do it, and remember what it found."""
        await self.save(step=step, progress="")
        started = time.monotonic()
        note = await self._patiently(work)
        seconds = time.monotonic() - started
        done = StepRecord(step, round(seconds, 3), note)
        self.record = msgspec.structs.replace(
            self.record, steps=(*(each for each in self.record.steps if each.step is not step), done), progress=""
        )
        self.tools.metrics.rollout_step_duration_seconds.labels(self.name, step).observe(seconds)
        log.info(
            "A step of a rollout is done", model=self.name, version=self.version, step=step.value, took_s=done.seconds,
            note=note,
        )  # fmt: skip

    async def _once(self, step: Step, work: Callable[[], Awaitable[str]]) -> None:
        """A step that need not be repeated after the gateway has been killed."""
        if step not in {each.step for each in self.record.steps}:
            await self._step(step, work)

    async def _patiently(self, work: Callable[[], Awaitable[str]]) -> str:
        """Begin a step again that Triton's absence has broken off."""
        while True:
            try:
                return await work()
            except (BackendUnavailable, ModelUnavailable) as error:
                if isinstance(error, ModelCrashed):
                    raise
                if self.tools.fleet.losses(self.name, self.version) >= LOSSES:
                    raise
                self.tools.ledger.progress(self.name, "waits for Triton")
                await self.tools.fleet.moved()
                await self._loaded()

    async def save(self, **changes: object) -> None:
        """Remember where it stands; raises StateNotKept unless nothing serves yet, when it goes on all the same."""
        self.record = msgspec.structs.replace(self.record, **changes)
        if self.stable is None:
            await self.tools.ledger.note(self.name, rollout=self.record)
        else:
            await self.tools.ledger.put(self.name, rollout=self.record)

    # --- the steps ----------------------------------------------------------------------------------

    async def look(self) -> Verified:
        """Read the files, of which the record of a refusal tells; raises ConfigError."""
        before = self.tools.ledger.get(self.name)
        known = before.stable if before.stable and before.stable.version == self.version else None
        drop, digests = await asyncio.to_thread(self.tools.read_drop, self.path, self.version, known)
        self.verified = Verified(drop, digests, {})
        return self.verified

    async def _verify(self) -> str:
        seen = await self.look()
        drop, digests = seen.drop, seen.digests
        if are_others(self.record.weights, seen.weights) or are_others(self.loaded_before, seen.weights):
            raise StepFailed(
                f"version {self.version} has been tried with other weights, and Triton may still have those",
                fix=f"Count up: drop these as version {self.version + 1}",
            )
        self.verified = await asyncio.to_thread(verify, drop, digests, self.tools.checks, tolerant=self.stable is None)
        await refuse_without_room(drop, self.tools.server)
        self.record = msgspec.structs.replace(self.record, weights=self.verified.weights)
        signed = ", signed" if self.tools.checks.verify_signature else ""
        missing = "".join(f"; {why}" for why in drop.release.missing.values())
        return f"{len(digests)} files{signed}{missing}"

    async def _load(self) -> str:
        shelf = self.tools.fleet.shelves.get(self.name)
        if shelf is not None and shelf.out is State.ASLEEP:
            self.tools.fleet.bring_back(self.name)
        self.tools.fleet.also(self.release)
        await self._loaded()
        await asyncio.to_thread(self._refuse_changed)
        return ", ".join(
            f"{variant.name} {'serves' if variant.state is State.READY else variant.state.value}"
            for variant in self._candidate.variants.values()
        )

    async def _loaded(self) -> None:
        """Wait until every variant serves; of a model of which nothing serves yet, until one does."""
        if self.tools.fleet.served(self.name, self.version) is None:
            return  # broken off before it was asked for
        model = await self.tools.fleet.settled(self.name, self.version)
        refused = [variant for variant in model.variants.values() if variant.state is State.REFUSED]
        loaded = self.tools.loader.serves
        self.was_loaded = any(loaded(variant.triton_model, self.version) for variant in model.variants.values())
        fails = bool(refused) and (self.stable is not None or not model.ready)
        for variant in refused[fails:]:  # the first is why the rollout fails, which is said as its reason
            log.error(
                "A model is refused", model=self.name, variant=variant.name, reason=variant.reason, fix=variant.fix
            )
        if fails:
            if loaded(refused[0].triton_model, self.version):  # Triton took it; what it says of it does not fit
                await self.save(step=Step.SIGNATURE)
            raise StepFailed(f"{refused[0].name}: {refused[0].reason}", fix=refused[0].fix)

    def _refuse_changed(self) -> None:
        """What was verified is what Triton has loaded only if nobody has written into it meanwhile. Blocking."""
        assert self.verified is not None
        again, _ = self.tools.read_drop(self.path, self.version, self.verified.record(0.0))
        if again.files != self.verified.drop.files:
            raise StepFailed(
                "its files have changed while it was loaded", fix=f"Drop them as version {self.version + 1}"
            )

    async def _compare_signature(self) -> str:
        """The loader has held what Triton says against model.yaml; here the words for it."""
        candidate = self._candidate
        before = self.stable.model.spec if self.stable else candidate.spec
        if before.takes_pictures is not candidate.spec.takes_pictures:
            raise StepFailed(
                f"it is a model of another kind ({candidate.spec.model_type} after {before.model_type})",
                fix="Give it a name of its own",
            )
        return f"{len(candidate.labels)} labels" if candidate.labels else "no labels"

    async def _warm(self) -> str:
        # Of a model of which nothing serves yet, snapshots wait: the sizes that may come of joining are left for later.
        join = self.stable is not None
        count = await warm(self._candidate, self.tools.server, WARM_LIMIT_S, join=join)
        return f"{count} requests"

    async def _golden(self) -> str:
        examples = await asyncio.to_thread(read_golden, self.path.parent)
        if not examples:
            return "left out: there are no golden examples"
        report = await check_golden(examples, self._candidate, self.tools.answering)
        if not report.passed:
            raise StepFailed(report.failure, fix=report.fix)
        return f"{len(examples)} examples"

    async def _shadow(self) -> str:
        return await run_trial(self, Step.SHADOW, percent=0, hold_s=0.0)

    async def _canary(self) -> str:
        notes = []
        for percent in self._spec.canary:
            if percent < self.record.percent:
                continue  # done before the gateway was killed
            share = max(self.record.share, percent / 100)
            await self.save(percent=percent, share=share)
            self.tools.metrics.rollout_percent.labels(self.name).set(percent)
            note = await run_trial(self, Step.CANARY, percent, self._spec.hold)
            notes.append(f"{percent} %: {note}")
        return "; ".join(notes)

    async def _promote(self) -> str:
        assert self.verified is not None
        ledger, record = self.tools.ledger, self.verified.record(round(time.time(), 3))
        before = ledger.get(self.name)
        self.record = msgspec.structs.replace(self.record, ending=Ending.PROMOTED, progress="")
        previous = before.stable if before.stable and before.stable.version != self.version else before.previous
        refused = tuple(each for each in before.refused if each.version != self.version)
        changes = {
            "stable": record, "previous": previous, "rollout": self.record, "refused": refused, "unloaded": False
        }  # fmt: skip
        if self.stable is None:
            await ledger.note(self.name, **changes)
            await asyncio.to_thread(self._keep_if_possible)
        else:
            await asyncio.to_thread(keep, ledger.store, self.verified.drop)
            await ledger.put(self.name, **changes)
        self.tools.fleet.serve(self.release, self.stable)
        return f"version {self.version} serves"

    def _keep_if_possible(self) -> None:
        assert self.verified is not None
        try:
            keep(self.tools.ledger.store, self.verified.drop)
        except GatewayError as error:
            log.error("Not remembered", model=self.name, reason=error.message, fix=error.fix)

    async def _drain(self, old: Release) -> str:
        await asyncio.sleep(self._spec.keep)
        return await unload(self.tools, self.name, old)


def failure_of(work: asyncio.Task[None], transaction: Transaction) -> GatewayError | None:
    """Why a rollout, or its drain, has ended before its time; None when it has not."""
    if work.cancelled():
        return transaction.given_up or StepFailed("it was broken off")
    error = work.exception()
    if error is None or isinstance(error, GatewayError):
        return error
    log.error("A defect of the gateway ends a rollout", model=transaction.name, exc_info=error)
    return StepFailed(f"a defect of the gateway: {type(error).__name__}", fix="Report it with the log of the gateway")


async def unload(tools: Tools, name: str, release: Release) -> str:
    """Let a version go once no snapshot uses it, and wait until Triton has let it go."""
    await asyncio.sleep(FOLLOWERS_S)
    await _wait(lambda: not tools.in_flight(name, release.version), DRAIN_LIMIT_S)
    tools.fleet.drop(name, release.version)
    try:
        async with asyncio.timeout(GONE_LIMIT_S):
            for placement in release.placements.values():
                await tools.loader.gone(placement.triton_model, placement.version)
    except TimeoutError:
        return f"version {release.version} is still loaded after {GONE_LIMIT_S:.0f} s"
    return f"version {release.version} is unloaded"


async def _wait(condition: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
