"""Keeps Triton in the state that is wanted: which versions of which models are loaded, and no others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from gateway.errors import BackendUnavailable, ConfigError, GatewayError, SnapshotError
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedVariant, State
from gateway.models.fleet import Fleet, Key
from gateway.models.memory import Memory
from gateway.models.release import Placement, Release
from gateway.models.signature import fit
from gateway.ports import InferenceServer

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 1.0
"""Between two looks at Triton; each is a cheap call a model."""
DESCRIBE_LIMIT_S = 2.0
"""For the signature of a model that has come into service; the looks wait for it."""
RETRY_REFUSED_S = 30.0
"""Until a refused variant is tried again: a file may have been mended, but Triton should not be kept busy."""
STRANGE_FOR_S = 4.0
"""Until a version is unloaded that this gateway never wanted: another one may, and its state come in a moment."""

AWAY = "Triton cannot be reached"


class Loader:
    """Sees what Triton serves, asks it to load what is missing, and to unload what nobody wants.

    Looking and loading are tasks of their own, because a load may take minutes: meanwhile the others are watched. Only
    the watch says that a variant serves; the load only asks Triton for it.
    """

    def __init__(
        self, server: InferenceServer, models: Models, fleet: Fleet, metrics: Metrics, memory: Memory | None = None
    ) -> None:
        self._server = server
        self._models = models
        self._fleet = fleet
        self._metrics = metrics
        self._memory = memory
        self.guard: Callable[[Release], None] | None = None
        """Raises ConfigError for a release whose files are not those that were verified; may block."""
        self._serving: dict[str, tuple[int, ...]] = {}
        """What Triton served of each of its models at the last look."""
        self._extras: dict[str, float] = {}
        """Since when a Triton model has had versions that nobody wants; those that were let go here, for ever."""
        self._unload_at: dict[str, float] = {}
        """When a Triton model is tried again whose extra versions could not be unloaded."""
        self._under_way: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._waiting = False
        self._reached_at = float("-inf")
        self.triton_ready = False
        self.triton_trouble = ""
        """Why Triton cannot be reached, where more is known than that."""
        self.outages = 0
        """How often Triton has gone away."""

    async def run(self) -> None:
        """Reconcile for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="models: watch")
            group.create_task(self._load_and_unload(group), name="models: load")

    @property
    def away_s(self) -> float:
        """Seconds for which Triton has not been reached: 0.0 while it is, infinite where it never was."""
        return 0.0 if self.triton_ready else time.monotonic() - self._reached_at

    @property
    def triton_degraded(self) -> tuple[str, ...]:
        """What is to be said of each of several Tritons that takes no requests, or not all."""
        away = (each for each in self._server.endpoints if each.state != "in service")
        return tuple(f"Triton at {each.address} is {each.state}: {each.reason}" for each in away)

    def serves(self, triton_model: str, version: int) -> bool:
        """Whether Triton served that version at the last look, whatever we make of it."""
        return version in self._serving.get(triton_model, ())

    async def gone(self, triton_model: str, version: int) -> None:
        """Return when Triton does not serve that version."""
        while self.serves(triton_model, version):
            await self._fleet.moved()

    # --- watch --------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        woken = self._models.woken
        while True:
            woken.clear()
            self._wake()
            await self._look()
            self._fleet.say_moved()
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await woken.wait()

    def _wake(self) -> None:
        for name in self._models.wanted & self._fleet.shelves.keys():
            if self._fleet.shelves[name].out is State.ASLEEP:
                log.info("A model is asked for and loaded again", model=name)
                self._fleet.bring_back(name)
        self._models.wanted.clear()

    async def _look(self) -> None:
        """Ask Triton how it is and what it serves, everything at once, so that one time limit bounds it all."""
        names = {placement.triton_model for _, placement in self._fleet.places()} | self._fleet.leaving
        live, answers = await asyncio.gather(
            self._server.is_ready(), asyncio.gather(*(self._versions(name) for name in sorted(names)))
        )
        # Frozen between its answer to the one call and to the others, Triton is as good as away.
        self._say_answering(live and (not answers or any(answer is not None for answer in answers)))
        if not self.triton_ready:
            self._all_unavailable()
            return
        known = {name: answer for name, answer in zip(sorted(names), answers, strict=True) if answer is not None}
        # Of several Tritons those that may have a model can be away while others answer; one alone answers for all.
        away = names - known.keys() if self._server.endpoints else set()
        self._serving = {name: has for name, has in (self._serving | known).items() if name in names - away}
        come = []
        for key, placement in self._fleet.places():
            versions = known.get(placement.triton_model)
            if versions is None:
                if placement.triton_model in away:
                    self._unavailable(key)
                continue
            if not (placement.version in versions if placement.version else versions):
                self._note_missing(key)
            elif self._fleet.variant(key).state is State.LOADING:
                come.append((key, placement))
        self._count_extras(known)
        await asyncio.gather(*(self._take_up(key, placement) for key, placement in come))

    async def _versions(self, triton_model: str) -> tuple[int, ...] | None:
        """What Triton says of one model; None when it says nothing, which must not pass for "gone"."""
        try:
            return await self._server.serving(triton_model)
        except BackendUnavailable:
            return None

    def _say_answering(self, answering: bool) -> None:
        self.outages += self.triton_ready and not answering
        self.triton_ready = answering
        self._metrics.triton_ready.set(answering)
        why, self.triton_trouble = self.triton_trouble, ""
        if answering:
            self._waiting, self._reached_at = False, time.monotonic()
            return
        trouble = self._server.trouble
        self.triton_trouble = trouble.message if trouble else ""
        if not self._waiting or self.triton_trouble not in ("", why):
            fix = trouble.fix if trouble else "Check that Triton runs and that TRITON_GRPC_URL names it"
            log.warning("Waiting for Triton", reason=self.triton_trouble or "it is not live", fix=fix)
        self._waiting = True

    def _all_unavailable(self) -> None:
        """Nothing is known of any variant now; a load that nobody answers would only hold up the next one."""
        if self._under_way is not None:
            self._under_way.cancel()
        self._serving.clear()
        self._extras.clear()
        for key, _ in self._fleet.places():
            self._unavailable(key)

    def _unavailable(self, key: Key) -> None:
        variant, watched = self._fleet.variant(key), self._fleet.watched(key)
        watched.missing, watched.retry_at, watched.load_s = False, 0.0, 0.0
        if (variant.state, variant.reason) != (State.LOADING, AWAY):
            self._fleet.put(key, replace(variant, state=State.LOADING, reason=AWAY))

    def _note_missing(self, key: Key) -> None:
        watched, variant = self._fleet.watched(key), self._fleet.variant(key)
        watched.missing = True
        if self._fleet.is_kept(key):
            if variant.state is State.READY:
                self._fleet.put(key, replace(variant, state=State.LOADING, reason="not loaded any more"))
        elif variant.state is State.READY:
            watched.losses += 1
            self._metrics.model_repairs.labels(key[0], "lost").inc()
            log.warning("A model is gone from Triton; loading it again", model=key[0], variant=key[2])
            self._fleet.put(key, replace(variant, state=State.LOADING, reason="gone from Triton, being loaded again"))
        elif variant.reason == AWAY:
            self._fleet.put(key, replace(variant, reason="not loaded yet"))

    async def _take_up(self, key: Key, placement: Placement) -> None:
        """Let a variant serve that Triton has, if it fits its model.yaml."""
        try:
            async with asyncio.timeout(DESCRIBE_LIMIT_S):
                signature = await self._server.describe(placement.triton_model, placement.version)
            release = self._fleet.release(key)
            if release is None:
                return  # not wanted any more
            variant, watched = self._fleet.variant(key), self._fleet.watched(key)
            ready = fit(signature, release.model, variant)
        except (BackendUnavailable, TimeoutError):
            return  # the next look tells why, or tries again
        except (ConfigError, SnapshotError) as error:
            if self._fleet.release(key) is not None:
                self._refuse(key, error)
            return
        log.info(
            "A model serves",
            model=key[0],
            variant=key[2],
            triton_model=variant.triton_model,
            version=ready.version,
            load_s=round(watched.load_s, 2),
        )
        watched.missing, watched.retry_at, watched.load_s, watched.refusal_said = False, 0.0, 0.0, ""
        watched.signature = signature
        self._fleet.put(key, ready)

    def _count_extras(self, known: Mapping[str, tuple[int, ...]]) -> None:
        wanted, now = self._fleet.wanted(), time.monotonic()
        for name, versions in known.items():
            here = wanted.get(name, {})
            if not versions:
                self._fleet.leaving.discard(name)
            extra = set(versions) - here.keys() if 0 not in here else set()
            if extra & self._fleet.let_go.get(name, set()) or (extra and name in self._fleet.leaving):
                self._extras[name] = 0.0
            elif extra:
                self._extras.setdefault(name, now)
            else:
                self._extras.pop(name, None)
                self._fleet.let_go.pop(name, None)

    # --- load and unload ----------------------------------------------------------------------------

    async def _load_and_unload(self, group: asyncio.TaskGroup) -> None:
        """One at a time, for each takes memory and slows the others down; what is next a fresh look tells."""
        while True:
            await self._looked.wait()
            self._looked.clear()
            if (key := self._most_needed()) is not None:
                work = group.create_task(self._load(key), name=f"models: load {key[0]}/{key[2]}")
            elif (name := self._most_in_the_way()) is not None:
                work = group.create_task(self._unload_extras(name), name=f"models: unload {name}")
            else:
                continue
            # A task of its own, so that the watch can end it; the group ignores that it was cancelled.
            self._under_way = work
            await asyncio.wait([work])
            self._under_way = None
            self._looked.clear()
            self._models.woken.set()

    def _most_needed(self) -> Key | None:
        """What to load next, so that every model answers as soon as possible; what was refused comes last."""
        now = time.monotonic()
        due = []
        for place, (key, _) in enumerate(self._fleet.places()):
            variant, watched = self._fleet.variant(key), self._fleet.watched(key)
            # Who tries a candidate decides himself whether it is tried again.
            again = variant.state is State.REFUSED and self._fleet.answers(key)
            if (
                now >= watched.retry_at
                and not self._fleet.is_kept(key)
                and (again or (variant.state is State.LOADING and watched.missing))
            ):
                due.append((again, *self._fleet.rank(key), place, key))
        return min(due)[-1] if due else None

    async def _load(self, key: Key) -> None:
        release = self._fleet.release(key)
        if release is None:
            return
        watched, variant, placement = self._fleet.watched(key), self._fleet.variant(key), release.placements[key[2]]
        if variant.state is State.LOADING:
            self._fleet.put(key, replace(variant, reason="being loaded"))
        started = time.monotonic()
        watched.missing = False  # until the next look
        try:
            if self._memory is not None:
                loaded = {name for name, versions in self._serving.items() if versions}
                if not self._memory.admit(key, release, loaded):
                    watched.retry_at = time.monotonic() + CHECK_INTERVAL_S  # others are unloaded first
                    return
            await self._refuse_changed(placement.triton_model, self._beside(placement))
            await self._server.load(
                placement.triton_model, self._beside(placement), release.configs.get(placement.triton_model)
            )
        except BackendUnavailable:
            watched.retry_at = time.monotonic() + CHECK_INTERVAL_S  # a look tells whether Triton is away
            return
        except (SnapshotError, ConfigError) as error:
            if self._fleet.release(key) is release:
                self._refuse(key, error)
            return
        watched.load_s = time.monotonic() - started
        # Should Triton not serve what it said to have loaded, it is not asked without end.
        watched.retry_at = time.monotonic() + RETRY_REFUSED_S
        if self._fleet.release(key) is release and self._fleet.variant(key).state is State.REFUSED:
            self._fleet.put(key, replace(variant, state=State.LOADING, reason="loaded, not checked yet"))

    async def _refuse_changed(self, triton_model: str, versions: tuple[int, ...]) -> None:
        """Triton loads whatever lies there now, also for a version that serves: hold it against what was verified."""
        wanted, guard = self._fleet.wanted().get(triton_model, {}), self.guard
        for version in versions:
            if guard is not None and version in wanted:
                await asyncio.to_thread(guard, wanted[version])

    def _beside(self, placement: Placement) -> tuple[int, ...]:
        """The versions to load: this one, and those that serve and shall go on."""
        if not placement.version:
            return ()
        name = placement.triton_model
        serving = self._fleet.wanted().get(name, {}).keys() & set(self._serving.get(name, ()))
        return tuple(sorted({placement.version, *serving}))

    def _most_in_the_way(self) -> str | None:
        """A Triton model of which versions are loaded that nobody wants."""
        now = time.monotonic()
        due = (name for name, since in self._extras.items() if now - since >= STRANGE_FOR_S)
        return next((name for name in due if now >= self._unload_at.get(name, 0.0)), None)

    async def _unload_extras(self, triton_model: str) -> None:
        wanted, serving = self._fleet.wanted().get(triton_model, {}), set(self._serving.get(triton_model, ()))
        left, extra = tuple(sorted(wanted.keys() & serving)), sorted(serving - wanted.keys())
        if self._extras.pop(triton_model, 0.0):
            owner = next((key[0] for key, place in self._fleet.places() if place.triton_model == triton_model), "")
            self._metrics.model_repairs.labels(owner, "strange").inc()
            log.warning("Somebody else has loaded versions", triton_model=triton_model, versions=extra)
        try:
            if left:
                await self._refuse_changed(triton_model, left)
                await self._server.load(triton_model, left, wanted[left[-1]].configs.get(triton_model))
            else:
                await self._server.unload(triton_model)
            self._unload_at.pop(triton_model, None)
        except GatewayError as error:
            self._unload_at[triton_model] = time.monotonic() + RETRY_REFUSED_S
            log.warning("A version cannot be unloaded", triton_model=triton_model, reason=error.message)
            return
        log.info("Versions that nobody wants are unloaded", triton_model=triton_model, versions=extra, left=list(left))

    def _refuse(self, key: Key, error: GatewayError) -> None:
        watched, variant = self._fleet.watched(key), self._fleet.variant(key)
        watched.retry_at = time.monotonic() + RETRY_REFUSED_S
        if variant.state is State.READY:
            return  # it has come into service meanwhile, or an older version of it still serves
        reason = _first_line(error.message)
        if reason != watched.refusal_said and not self._fleet.is_awaited(key):  # said once, not at every try
            log.error("A model is refused", model=key[0], variant=key[2], reason=reason, fix=error.fix)
            watched.refusal_said = reason
        self._fleet.put(key, _refused(variant, reason, error.fix))


def _refused(variant: ServedVariant, reason: str, fix: str) -> ServedVariant:
    return replace(variant, state=State.REFUSED, reason=reason, fix=fix)


def _first_line(reason: str) -> str:
    """A reason without the frames of Python that a backend appends."""
    return reason.split("\n\nAt:", maxsplit=1)[0].strip().partition("\n")[0].rstrip()
