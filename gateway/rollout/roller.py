"""Runs the rollouts of all models while this gateway holds the lease; else follows the gateway that does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from gateway.errors import CommandRefused, ConfigError
from gateway.models.release import Release
from gateway.models.repository import LogicalModel, read_served
from gateway.rollout.caretaker import Caretaker
from gateway.rollout.commands import Command
from gateway.rollout.following import begin_anew, follow
from gateway.rollout.lease import Lease
from gateway.rollout.orders import execute
from gateway.rollout.releases import refuse_other_weights
from gateway.rollout.state import ModelState
from gateway.rollout.transaction import Tools
from gateway.rollout.turn import Turn, stays_away

log = structlog.get_logger(__name__)

FOLLOW_INTERVAL_S = 1.0
DECIDE_LIMIT_S = 2.0


class Roller:
    """All models of the repository, each with its caretaker; carries out commands (see `Commands`)."""

    def __init__(
        self, tools: Tools, lease: Lease, objection: Callable[[LogicalModel], ConfigError | None] | None = None
    ) -> None:
        self._tools = tools
        self._lease = lease
        self._caretakers: dict[str, Caretaker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._objection = objection
        self._watched = asyncio.Event()
        self._reading = asyncio.Lock()
        self._not_followed: set[str] = set()
        tools.loader.guard = self._refuse_changed
        self._asked = asyncio.Event()
        self._decided = asyncio.Event()
        self._turn = Turn()
        self.unreadable: tuple[str, ...] = ()
        """The models of which nothing serves, since their model.yaml cannot be read."""

    def begin(self, models: list[LogicalModel], errors: list[ConfigError]) -> None:
        """Let serve what served last, and announce the rest; blocking, before anything runs."""
        models, errors = self._without_objectionable(models, errors)
        for model in models:
            caretaker = self._caretakers[model.spec.name] = Caretaker(self._tools, model)
            caretaker.begin(caretaker.remembered(), from_start=True)
        self._note_unreadable(errors)

    @property
    def acting(self) -> bool:
        """Whether this gateway runs the rollouts: it holds the lease, or nobody can have it."""
        return self._turn.acting

    async def run(self) -> None:
        """Follow drops, lease and state, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hold_lease(group), name="rollouts: lease")
            group.create_task(self._watch(group), name="rollouts: drops")
            group.create_task(self._read_when_asked(group), name="rollouts: reread")

    # --- the models ---------------------------------------------------------------------------------

    async def _take_in(self, model: LogicalModel) -> None:
        caretaker = Caretaker(self._tools, model)
        release = await asyncio.to_thread(caretaker.remembered)
        self._caretakers[caretaker.name] = caretaker
        caretaker.begin(release, from_start=False)

    def _without_objectionable(
        self, models: list[LogicalModel], errors: list[ConfigError]
    ) -> tuple[list[LogicalModel], list[ConfigError]]:
        """Those that the gateway can serve as it is configured, and what is wrong with the others."""
        if self._objection is None:
            return models, errors
        objections = {model.spec.name: found for model in models if (found := self._objection(model))}
        return [model for model in models if model.spec.name not in objections], [*errors, *objections.values()]

    def _note_unreadable(self, errors: list[ConfigError]) -> None:
        """What cannot be read serves on as it did; what has never served is said to be unreadable."""
        serving = {str(each.path) for each in self._caretakers.values()}
        unreadable = []
        for error in errors:
            path = error.where.partition(":")[0]
            for caretaker in self._caretakers.values():
                if str(caretaker.path) == path:
                    caretaker.on_disk, caretaker.problem = None, error.message
            if path not in serving:
                unreadable.append(str(error))
                if str(error) not in self.unreadable:
                    log.error("A model.yaml is refused", where=error.where, reason=error.message, fix=error.fix)
        self.unreadable = tuple(unreadable)

    async def look_again(self, models: list[LogicalModel], errors: list[ConfigError], group: asyncio.TaskGroup) -> None:
        """Hold what lies on disk now against what was there: new models, changed ones, and those that are gone."""
        found = {model.spec.name: model for model in models}
        broken = {error.where.partition(":")[0] for error in errors}
        for name, model in found.items():
            known = self._caretakers.get(name)
            if known is None:
                log.info("A new model", model=name, model_yaml=str(model.path))
                await self._take_in(model)
                if self.acting:
                    self._start(name, group)
            else:
                known.on_disk, known.path = model, model.path
        for name in [name for name in self._caretakers if name not in found]:
            caretaker = self._caretakers[name]
            renamed = any(model.path == caretaker.path for model in found.values())
            if renamed or (str(caretaker.path) not in broken and not caretaker.path.exists()):
                await self._let_go(name)
        self._note_unreadable(errors)

    async def _let_go(self, name: str) -> None:
        log.warning("A model is gone from the repository and served no more", model=name)
        if task := self._tasks.pop(name, None):
            task.cancel()
        del self._caretakers[name]
        self._tools.fleet.remove(name)
        self._tools.ledger.say_changed()
        await self._tools.end_model(name)

    def _refuse_changed(self, release: Release) -> None:
        """Raise ConfigError when Triton would load other weights than those that served. Blocking."""
        state = self._tools.ledger.get(release.name)
        for record in (state.stable, state.previous):
            if record is not None and record.version == release.version:
                refuse_other_weights(release.name, record, self._tools.live.current.model_repository)

    # --- drops --------------------------------------------------------------------------------------

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        async with self._tools.watcher as watcher:
            self._watched.set()
            while True:
                await watcher.settled()
                await self._read_again(group)

    async def _read_when_asked(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self._read_again(group)

    async def _read_again(self, group: asyncio.TaskGroup) -> None:
        """Read the repository again, and let every caretaker look."""
        settings = self._tools.live.current
        async with self._reading:
            try:
                found = await asyncio.to_thread(read_served, settings.model_repository, settings.model_config_path)
            except ConfigError as error:
                log.error("The models cannot be read; what serves goes on", reason=str(error))
                return
            await self.look_again(*self._without_objectionable(*found), group)
        for caretaker in self._caretakers.values():
            caretaker.nudge()

    # --- the lease ----------------------------------------------------------------------------------

    async def _hold_lease(self, group: asyncio.TaskGroup) -> None:
        """Act while the lease is held, else follow.

        It is held only where Triton can be reached: without it no version can be tried, and all others would wait.
        """
        await self._watched.wait()  # until then nobody knows which files are at rest
        try:
            while True:
                await self._turn_to(await self._next_turn(), group)
                if not self.acting:
                    await self._follow()
                await self._pause(self._lease.interval_s if self.acting else FOLLOW_INTERVAL_S)
        finally:
            await self._lease.release()

    async def _next_turn(self) -> Turn:
        contends = not stays_away(self._tools.loader) if self.acting else self._has_triton
        held = contends and await self._lease.hold()
        return Turn(contends, held, acting=held or (contends and bool(self._lease.problem)))

    async def _turn_to(self, turn: Turn, group: asyncio.TaskGroup) -> None:
        if turn.acting and not self.acting:
            await self._follow()  # what the one before has written last
        before, self._turn = self._turn, turn
        if before.acting and not turn.contends:
            await self._give_way(group)
        elif turn.acting is not before.acting:
            self._change_sides(group)
        elif turn.held and not before.held:
            for caretaker in self._caretakers.values():
                caretaker.nudge()
        if turn.contends:
            self._decided.set()
        else:
            self._decided.clear()
        self._tools.metrics.roller.set(turn.held)

    @property
    def _has_triton(self) -> bool:
        return self._tools.loader.triton_ready

    async def _pause(self, seconds: float) -> None:
        """Until the lease is due again, or Triton has come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._has_triton or self.acting:
                    await asyncio.sleep(seconds)
                while not self._has_triton:
                    await self._tools.fleet.moved()

    async def _give_way(self, group: asyncio.TaskGroup) -> None:
        """Let a gateway run the rollouts whose Triton can be reached."""
        log.info("Triton is away: the rollouts are left to a gateway that can reach one")
        ending = list(self._tasks.values())
        self._change_sides(group)
        await asyncio.gather(*ending, return_exceptions=True)
        await self._lease.release()

    def _change_sides(self, group: asyncio.TaskGroup) -> None:
        for caretaker in self._caretakers.values():
            begin_anew(caretaker)
        if self.acting:
            for name in self._caretakers:
                self._start(name, group)
        else:
            for task in self._tasks.values():
                task.cancel()
            self._tasks.clear()
            self._not_followed = set(self._caretakers)

    def _start(self, name: str, group: asyncio.TaskGroup) -> None:
        self._tasks[name] = group.create_task(self._caretakers[name].run(), name=f"rollouts: {name}")

    async def _follow(self) -> None:
        changed = await asyncio.to_thread(self._tools.ledger.refresh)
        due, self._not_followed = changed | self._not_followed, set()
        for name, caretaker in list(self._caretakers.items()):
            if name in due or caretaker.stable is None:
                try:
                    followed = await follow(caretaker, self._lease.holder)
                except Exception:
                    log.exception("A defect of the gateway", model=name)
                    followed = False
                if not followed:
                    self._not_followed.add(name)
        if changed:
            self._tools.ledger.say_changed()

    # --- a configuration that is read again ---------------------------------------------------------

    @property
    def paths(self) -> set[str]:
        """Every model.yaml that is served."""
        return {str(caretaker.path) for caretaker in self._caretakers.values()}

    def folder(self, model: str) -> Path | None:
        """Where the model.yaml of a model lies, and its golden examples; None where it is not served."""
        caretaker = self._caretakers.get(model)
        return None if caretaker is None else caretaker.path.parent

    def take_over(self, models: list[LogicalModel]) -> list[str]:
        """Let each model that serves be served by its model.yaml as it reads now, where nothing else is to be done.

        Raises ConfigError when one does not fit what Triton has loaded; the rest is looked at as a drop is.
        """
        for model in models:
            if caretaker := self._caretakers.get(model.spec.name):
                caretaker.take_over(model)
        self._asked.set()
        return []

    # --- commands -----------------------------------------------------------------------------------

    @property
    def states(self) -> Mapping[str, ModelState]:
        """What is remembered of each model that is there."""
        return {name: self._tools.ledger.get(name) for name in self._caretakers}

    @property
    def problems(self) -> dict[str, str]:
        """What people should know of models although they serve."""
        return {name: caretaker.problem for name, caretaker in self._caretakers.items() if caretaker.problem}

    async def changed(self) -> None:
        """Return at the next change of `states`."""
        await self._tools.ledger.changed()

    async def execute(self, command: Command) -> str:
        """Carry a command out; raises CommandRefused."""
        caretaker = self._caretakers.get(command.model)
        if caretaker is None:
            known = ", ".join(sorted(self._caretakers)) or "none"
            raise CommandRefused("MODEL_UNKNOWN", f"no model '{command.model[:100]}' (known: {known})")
        await self._refuse_unless_roller()
        return await execute(caretaker, command)

    async def _refuse_unless_roller(self) -> None:
        """Raise CommandRefused; right after a start, or when Triton has just come, who is the roller shows first."""
        if not self.acting and not self._has_triton:
            raise CommandRefused(
                "NOT_THE_ROLLER",
                "this gateway runs no rollouts while it cannot reach Triton",
                fix="Bring Triton back, or send the command to a gateway that reaches one",
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DECIDE_LIMIT_S):
                await self._decided.wait()
        if not self.acting:
            raise CommandRefused(
                "NOT_THE_ROLLER",
                f"gateway '{self._lease.holder or 'unknown'}' runs the rollouts",
                fix="Send the command there",
            )
