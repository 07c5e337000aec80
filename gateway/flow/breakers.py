"""The circuit breakers of all variants that serve, and what one snapshot's questions tell them.

Only the version that serves has breakers; whether a new one fails is for its trial to say.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from gateway.errors import (
    BackendInvalidResponse,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    InternalError,
    ModelUnavailable,
    SnapshotError,
)
from gateway.flow.breaker import Breaker, BreakerState
from gateway.flow.concurrency import Came
from gateway.flow.limiter import Place
from gateway.layouts.boxes import NotFinite
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.models.catalog import Catalog, GivenUp, Models, ServedModel, State

log = structlog.get_logger(__name__)

FAIR_PART = 0.5
"""Of INFER_TIMEOUT_MS: who waited less in vain, since his own deadline was near, blames nobody."""
_AT_ONCE = (BackendTimeout, ModelUnavailable)
"""What is no picture's fault: it counts at once, before the snapshot has its answer from another variant."""


class Suspended(ModelUnavailable):
    """A variant that serves, but is not asked for now; `last` is how it has failed."""

    def __init__(self, message: str, last: SnapshotError | None) -> None:
        super().__init__(message)
        self.last = last


class Verdict(enum.Enum):
    """What one snapshot says of a variant that it has asked."""

    ANSWERED = enum.auto()
    AT_FAULT = enum.auto()
    UNCLEAR = enum.auto()
    """Nothing: it may be the picture's doing, or that of a Triton that is away."""


class Breakers:
    """One breaker for each variant of the versions that serve; follows the catalogue."""

    def __init__(
        self, live: Live, models: Models, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._live = live
        self._models = models
        self._metrics = metrics
        self._clock = clock
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._troubled: set[str] = set()
        """Models of which some variant may not be asked as usual: all others cost a look into this set."""

    def follow(self, catalog: Catalog) -> None:
        """Have a breaker for each variant of the catalogue, and none for others."""
        found = {
            (name, variant.name): (model.version, variant)
            for name, model in catalog.models.items()
            for variant in model.variants.values()
        }
        for key in self._breakers.keys() - found.keys():
            self._forget(key)
        for key, (version, variant) in found.items():
            before = self._breakers.get(key)
            if before is not None and before.variant is variant:
                continue
            if before is None or before.version != version:
                self._breakers[key] = Breaker(version, variant)
            else:
                self._breakers[key] = before.of_new_load(variant, self._clock())
            self._show(key)

    def withheld(self, model: ServedModel) -> Callable[[str], str] | None:
        """Why a variant is not asked as usual, "" where it is; None where nothing is wrong with any."""
        if model.spec.name not in self._troubled:
            return None

        def why(name: str) -> str:
            breaker = self.of(model, name)
            return "" if breaker is None or breaker.free else _why(breaker)

        return why

    def blocked(self, name: str) -> bool:
        """Whether a snapshot for this model had better wait, for every variant that serves is being given up."""
        if name not in self._troubled:
            return False
        model = self._models.current.models.get(name)
        # With a trial under way its cameras may be answered by the new version.
        return model is not None and model.trial is None and model.ready and not self._asks_any(model)

    def last_error(self, model: ServedModel) -> SnapshotError | None:
        """How the variants fail for which snapshots wait; None while some variant is asked as usual."""
        if model.spec.name not in self._troubled:
            return None
        serving = [self.of(model, each.name) for each in model.variants.values() if each.state is State.READY]
        if any(breaker is None or breaker.free for breaker in serving):
            return None
        last = next((each.last for each in serving if each is not None and each.last is not None), None)
        return last and last.copy()  # it is raised, again and again

    def due(self, model: ServedModel) -> tuple[str, ...]:
        """The variants that shall be tried, while another one answers."""
        if model.spec.name not in self._troubled:
            return ()
        now = self._clock()
        found = {name: breaker for name in model.variants if (breaker := self.of(model, name)) is not None}
        return tuple(name for name, breaker in found.items() if breaker.due(now))

    def of(self, model: ServedModel, name: str) -> Breaker | None:
        """The breaker of a variant of this very entry; None for an entry that is not the catalogue's now."""
        breaker = self._breakers.get((model.spec.name, name))
        return breaker if breaker is not None and breaker.variant is model.variants[name] else None

    def now(self) -> float:
        """The time by which breakers open."""
        return self._clock()

    def settle(
        self, model: ServedModel, name: str, asked: Asked, verdict: Verdict, error: SnapshotError | None
    ) -> None:
        """Note what a snapshot says of a variant; `error` is how it has failed."""
        breaker, now, settings = asked.breaker, self._clock(), self._live.current
        before, was_late = breaker.state, breaker.late
        breaker.end()
        if verdict is Verdict.ANSWERED:
            breaker.succeeded()
        elif verdict is Verdict.AT_FAULT and error is not None:
            late, limit = isinstance(error, BackendTimeout), settings.breaker_failures
            breaker.failed(error, now, limit, settings.breaker_open_s, late=late, probing=asked.probing)
        else:
            breaker.unclear(now, probing=asked.probing)
        if self.of(model, name) is not breaker:
            return  # loaded again meanwhile
        if breaker.state is not before or breaker.late or was_late:
            self._changed((model.spec.name, name), breaker, before)
            self._models.say_changed()  # a snapshot may wait for its turn to try

    def begun(self, model: ServedModel, name: str, breaker: Breaker) -> None:
        """A snapshot has begun to ask; says so where it is the one that tries the variant."""
        if breaker.state is BreakerState.HALF_OPEN:
            self._show((model.spec.name, name))

    def fair_s(self) -> float:
        """How long one has to have waited in vain, in seconds, for a variant to be at fault."""
        settings = self._live.current
        return FAIR_PART * min(settings.infer_timeout_ms, settings.snapshot_deadline_ms) / 1000

    def _asks_any(self, model: ServedModel) -> bool:
        """Whether a variant that serves would be asked, as usual or to be tried."""
        now = self._clock()
        serving = (self.of(model, each.name) for each in model.variants.values() if each.state is State.READY)
        return any(breaker is None or breaker.free or breaker.due(now) for breaker in serving)

    def _changed(self, key: tuple[str, str], breaker: Breaker, before: BreakerState) -> None:
        last = breaker.last
        if before is BreakerState.CLOSED and breaker.state is BreakerState.OPEN and last is not None:
            self._metrics.circuit_breaker_opened.labels(*key).inc()
            log.warning(
                "A variant fails again and again, it is not asked for now",
                model=key[0],
                variant=key[1],
                version=breaker.version,
                failures=breaker.failures,
                code=last.code,
                reason=last.message,
                fix=last.fix,
            )
        elif before is not BreakerState.CLOSED and breaker.state is BreakerState.CLOSED:
            open_s = round(self._clock() - breaker.opened_at, 2)
            log.info("A variant answers again", model=key[0], variant=key[1], version=breaker.version, open_s=open_s)
        self._show(key)
        if breaker.state is BreakerState.OPEN:
            wait_s = max(0.0, breaker.due_at - self._clock())
            asyncio.get_running_loop().call_later(wait_s, self._models.say_changed)

    def _show(self, key: tuple[str, str]) -> None:
        """Bring the metrics, the catalogue and whoever looks at it up to date."""
        breaker = self._breakers[key]
        for state in BreakerState:
            self._metrics.circuit_breaker_state.labels(*key, state.value).set(breaker.state is state)
        self._metrics.circuit_breaker_opened.labels(*key)
        self._count_troubled(key[0])
        closed = breaker.state is BreakerState.CLOSED
        self._models.give_up(key, None if closed else GivenUp(breaker.state.value, _why(breaker)))

    def _forget(self, key: tuple[str, str]) -> None:
        del self._breakers[key]
        for state in BreakerState:
            self._metrics.circuit_breaker_state.remove(*key, state.value)
        self._metrics.circuit_breaker_opened.remove(*key)
        self._count_troubled(key[0])
        self._models.give_up(key, None)

    def _count_troubled(self, name: str) -> None:
        each = [breaker for (model, _), breaker in self._breakers.items() if model == name]
        if any(breaker.late or breaker.state is not BreakerState.CLOSED for breaker in each):
            self._troubled.add(name)
        else:
            self._troubled.discard(name)


@dataclass(frozen=True, slots=True)
class Asked:
    """One variant that a snapshot is asking."""

    breaker: Breaker
    probing: bool
    """Whether this snapshot is the one that tries it while it is half open."""


class Attempt:
    """One snapshot's questions to the variants of one release, as a context; without breakers nothing is noted.

    What came of them counts at its end, when it is known whether another variant could answer the same snapshot; its
    `place` in flight is told at once.
    """

    __slots__ = ("_asked", "_breakers", "_came", "_model", "_place", "_sent_at")

    def __init__(self, breakers: Breakers | None, model: ServedModel, place: Place | None = None) -> None:
        self._breakers = breakers
        self._model = model
        self._place = place
        self._asked: dict[str, Asked] = {}
        self._sent_at: dict[str, float] = {}
        self._came: dict[str, SnapshotError | None] = {}

    def begin(self, name: str, *, needed: bool) -> None:
        """Ask a variant, whose answer is `needed` unless it is only compared; raises Suspended when it shall not be.

        Raises InternalError for one that has been asked: its breaker would wait for ever for the first question's end.
        """
        if self._breakers is not None and (breaker := self._breakers.of(self._model, name)) is not None:
            self._admit(self._breakers, breaker, name, needed=needed)
        if self._place is not None:
            self._place.ask(name)

    def _admit(self, breakers: Breakers, breaker: Breaker, name: str, *, needed: bool) -> None:
        if name in self._asked or name in self._came:
            raise InternalError(f"variant '{name}' was to be asked twice about one snapshot")
        failed = bool(self._came) and not self._answered
        if not breaker.begin(breakers.now(), needed=needed, last_resort=failed):
            raise Suspended(f"variant '{name}' is not asked: {_why(breaker)}", breaker.last)
        self._asked[name] = Asked(breaker, breaker.state is BreakerState.HALF_OPEN)
        breakers.begun(self._model, name, breaker)

    def sent(self, name: str) -> None:
        """A request to the variant goes out now."""
        if self._breakers is not None:
            self._sent_at[name] = self._breakers.now()

    def over(self, name: str, error: SnapshotError | None) -> None:
        """The variant has answered, or will not; whether its answer can be read is for `came`."""
        if self._place is None:
            return
        match error:
            case None:
                came = Came.ANSWER
            case BackendUnavailable():
                came = Came.OVERLOAD
            case BackendTimeout() if self._waited_fairly(name):
                came = Came.OVERLOAD
            case _:
                came = Came.NOTHING
        self._place.over(name, came)

    def came(self, name: str, error: SnapshotError | None) -> None:
        """What came of it, in the end: None for an answer that could be read."""
        self._came[name] = error
        if isinstance(error, _AT_ONCE) and name in self._asked:
            self._settle(name)

    @property
    def _answered(self) -> bool:
        return any(error is None for error in self._came.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in list(self._asked):
            self._settle(name)
        self._came.clear()  # the errors lead by their frames to this attempt, and to the picture

    def _settle(self, name: str) -> None:
        assert self._breakers is not None
        asked, error = self._asked.pop(name), self._came.get(name)
        if error is not None:
            verdict = Verdict.AT_FAULT if self._at_fault(name, asked, error) else Verdict.UNCLEAR
        else:
            verdict = Verdict.ANSWERED if name in self._came else Verdict.UNCLEAR
        self._breakers.settle(self._model, name, asked, verdict, error)

    def _at_fault(self, name: str, asked: Asked, error: SnapshotError) -> bool:
        assert self._breakers is not None
        match error:
            case BackendTimeout():
                return self._waited_fairly(name)
            case ModelUnavailable():
                return True
            case BackendInvalidResponse() if not self._may_be_the_senders(error):
                return True
            case BackendRejected() | BackendInvalidResponse():
                return asked.probing or self._answered
            case BackendUnavailable():
                return self._answered
        return False

    def _waited_fairly(self, name: str) -> bool:
        """Whether a time-out came after so long that the variant is at fault, and not a deadline that was near."""
        breakers = self._breakers
        return breakers is not None and breakers.now() - self._sent_at.get(name, float("inf")) >= breakers.fair_s()

    def _may_be_the_senders(self, garbage: BackendInvalidResponse) -> bool:
        """Whether a sound variant may answer so: pixels are within bounds that it knows, readings are not.

        A layout of the user's may fail on a picture, whichever variant it reads.
        """
        spec = self._model.spec
        return spec.layout.custom or (not spec.takes_pictures and isinstance(garbage, NotFinite))


def _why(breaker: Breaker) -> str:
    """Why a variant is not asked, in half a sentence; the texts of errors may be long and are said elsewhere."""
    if breaker.state is BreakerState.CLOSED:
        return "it did not answer in time, and one snapshot is trying it"
    code = f", the last time with {breaker.last.code}" if breaker.last is not None else ""
    return f"it has failed {breaker.failures} times in a row{code}"
