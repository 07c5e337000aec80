"""Who may be in flight: each variant has a limit of its own, and no model takes the places of all others.

A place is taken together with its snapshot from the queue, so that what has no room waits there, encoded and fresh. Its
variants have room again as soon as each has answered; the place itself is free when the snapshot is done.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gateway.errors import ModelUnavailable
from gateway.flow.concurrency import Came, Limit
from gateway.flow.lanes import Service, lane_of
from gateway.flow.variants import choose_for
from gateway.live import Live
from gateway.messages import Job
from gateway.metrics import Metrics
from gateway.models.catalog import Catalog, Models, ServedModel, State
from gateway.models.input_plan import InputPlan
from gateway.models.signature import input_bytes

IN_SIGHT_S = 5.0
"""A variant that was asked within so many seconds has its share of the places kept free; any other one place."""

Withheld = Callable[[ServedModel], Callable[[str], str] | None]
Key = tuple[str, str]
"""A model and a variant."""


@dataclass(slots=True, eq=False)
class _Variant:
    """One variant of one release; `held` counts the snapshots that it is the first to be asked about."""

    key: Key
    version: int
    limit: Limit
    held: int = 0
    sought_at: float = float("-inf")
    """When a snapshot for it was last taken from the queue, or would have been."""


@dataclass(slots=True, eq=False)
class _Memory:
    """Of one model: how many snapshots may have tensors while no other model is asked, and how many have some."""

    most: int
    others: int
    """Variants that serve beside the one that is asked; each is left something."""
    held: int = 0


Begun = tuple[_Variant, float]
"""A variant that is asked, and since when."""


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """What counts a place: the variant that its snapshot asks first, and its model's memory; None where not known."""

    first: _Variant | None
    memory: _Memory | None


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What a service asks, as long as neither the entry of its model nor the settings change."""

    model: ServedModel
    settings: object
    variants: tuple[_Variant, ...]


class Limiter:
    """Has a limit for each variant, and the places that all of them share."""

    def __init__(
        self,
        live: Live,
        models: Models,
        metrics: Metrics,
        withheld: Withheld = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`withheld` as `Breakers` has it: which variants are not asked for now."""
        self._live = live
        self._models = models
        self._metrics = metrics
        self._withheld = withheld
        self._clock = clock
        self._places = live.current.max_in_flight
        self._held = 0
        self._variants: dict[Key, _Variant] = {}
        self._memory: dict[str, _Memory] = {}
        self._asked: dict[Service, _Asked] = {}
        self._in_sight: OrderedDict[Key, _Variant] = OrderedDict()
        """Those that are asked these days, the one sought last at the end."""
        self._models_in_sight = 1
        """They share the memory for tensors evenly."""
        self._serving: set[Key] = set()
        self._needs: dict[Key, int] = {}
        """What each variant in sight would still need for its share."""
        self._needed = 0
        """What all of them would need, and those that are not in sight."""
        self._share = self._places
        self._counted = False
        """Whether these three hold."""
        self.room_made: Callable[[], None] = lambda: None
        """Called when one more may have room."""

    # --- the catalogue ------------------------------------------------------------------------------

    def follow(self, catalog: Catalog) -> None:
        """Have a limit for each variant of the catalogue, and none for others."""
        found = {(name, variant): model for name, model in catalog.models.items() for variant in model.variants}
        for key in self._variants.keys() - found.keys():
            self._forget(key)
        for key, model in found.items():
            self._variant(key, model.version)
        self._serving = {key for key, model in found.items() if model.variants[key[1]].state is State.READY}
        self._memory = {name: self._memory_of(model) for name, model in catalog.models.items()}
        self._asked, self._counted = {}, False

    def _memory_of(self, model: ServedModel) -> _Memory:
        plans = {each.plan for each in model.variants.values() if isinstance(each.plan, InputPlan)}
        size = sum(input_bytes(plan, model.spec.preprocessing) for plan in plans)
        most = max(1, self._live.current.shared_memory_max_bytes // size) if size else self._places
        others = max(0, sum(each.state is State.READY for each in model.variants.values()) - 1)
        memory = self._memory.get(model.spec.name) or _Memory(most, others)
        memory.most, memory.others = most, others
        return memory

    def _variant(self, key: Key, version: int | None = None) -> _Variant:
        """The variant of that release, which begins anew: what the one before has not answered takes no room from it.

        Without a release that which is there.
        """
        variant = self._variants.get(key)
        if variant is None or version not in (None, variant.version):
            variant = self._variants[key] = _Variant(key, version or 0, Limit(self._places))
            self._metrics.inference_in_flight.labels(*key).set_function(lambda: variant.limit.in_flight)
            self._metrics.inference_concurrency_limit.labels(*key).set_function(lambda: self._bound(variant))
        return variant

    def _forget(self, key: Key) -> None:
        del self._variants[key]
        self._in_sight.pop(key, None)
        self._metrics.inference_in_flight.remove(*key)
        self._metrics.inference_concurrency_limit.remove(*key)

    # --- room ---------------------------------------------------------------------------------------

    def room(self, service: Service) -> bool:
        """Whether one more snapshot may ask what is meant: room at its variants, for its tensors, and for others."""
        asked = self._variants_asked(service)
        if not asked:
            return True  # nobody to ask: it gets its error
        self._see(asked[0], self._clock())
        memory = self._memory.get(service[0])
        if memory is not None:
            most = max(1, memory.most // self._models_in_sight)
            if memory.held >= most or asked[0].held >= max(1, most - memory.others):
                return False
        return all(each.limit.in_flight < self._limit(each) for each in asked) and self._leaves_enough(asked[0])

    def enter(self, job: Job) -> Place:
        """Take a place for a snapshot that has just left the queue."""
        now, model = self._clock(), job.model.spec.name
        asked = self._variants_asked(lane_of(job)[1:])
        memory = self._memory.get(model)
        if memory is not None:
            memory.held += 1
        if asked:
            asked[0].held += 1
            self._see(asked[0], now)
        self._held += 1
        self._counted = False
        for each in asked:
            each.limit.enter(now)
        return Place(
            self, model, _Held(asked[0] if asked else None, memory), {each.key[1]: (each, now) for each in asked}
        )

    def beside(self, model: str) -> Place:
        """For what is asked beside a snapshot: counted in flight, but not among the places."""
        return Place(self, model, None, {})

    def _variants_asked(self, service: Service) -> tuple[_Variant, ...]:
        """The variants that would be asked at once now; () where the model is gone, or none of them serves."""
        name, settings = service[0], self._live.current
        model = self._models.current.models.get(name)
        if model is None:
            return ()
        withheld = self._withheld(model)
        known = self._asked.get(service)
        if known is not None and withheld is None and known.model is model and known.settings is settings:
            return known.variants
        try:
            selection = choose_for(service[1] or None, model, settings, withheld)
        except ModelUnavailable:
            return ()
        compared = (
            each
            for each in selection.compared
            if model.variants[each].state is State.READY and (withheld is None or not withheld(each))
        )
        variants = tuple(self._variant((name, each), model.version) for each in (selection.primary, *compared))
        if withheld is None:
            self._asked[service] = _Asked(model, settings, variants)
        return variants

    def _limit(self, variant: _Variant) -> int:
        fixed = self._live.current.infer_concurrency
        return variant.limit.limit if fixed == "auto" else fixed

    def _bound(self, variant: _Variant) -> int:
        """What may be in flight for a variant: its limit, or less where the memory for its tensors ends before."""
        limit, memory = self._limit(variant), self._memory.get(variant.key[0])
        if memory is None:
            return limit
        return min(limit, max(1, memory.most // self._models_in_sight - memory.others))

    # --- sharing ------------------------------------------------------------------------------------

    def _see(self, variant: _Variant, now: float) -> None:
        before = len(self._in_sight)
        entered = variant.sought_at <= now - IN_SIGHT_S or variant.key not in self._in_sight
        variant.sought_at = now
        self._in_sight[variant.key] = variant
        self._in_sight.move_to_end(variant.key)
        while (first := next(iter(self._in_sight.values()))).sought_at <= now - IN_SIGHT_S:
            del self._in_sight[first.key]
        if entered or len(self._in_sight) != before:
            self._counted = False
            self._models_in_sight = len({model for model, _ in self._in_sight})

    def _leaves_enough(self, variant: _Variant) -> bool:
        """Whether the others still find what is theirs when this variant takes one more place.

        Each that is in sight has an even share, as far as its limit goes, and each other one place; but no more than
        half of all is kept free, or many models that are seldom asked would leave none to those that are.
        """
        free, kept = self._places - self._held, self._places // 2
        if free > kept:
            return True
        if not self._counted:
            self._count_needs(kept)
        if variant.held < self._share:
            return True
        return free > min(kept, self._needed - self._needs.get(variant.key, 0))

    def _count_needs(self, kept: int) -> None:
        unseen = self._serving - self._in_sight.keys()
        self._share = max(1, (self._places - min(kept, len(unseen))) // max(1, len(self._in_sight)))
        self._needs = {
            key: max(0, min(self._share, self._limit(each)) - each.held) for key, each in self._in_sight.items()
        }
        self._counted = True
        self._needed = sum(self._needs.values()) + sum(not self._variant(key).held for key in unseen)

    def free(self, held: _Held) -> None:
        """A snapshot has left its place."""
        self._held -= 1
        self._counted = False
        if held.first is not None:
            held.first.held -= 1
        if held.memory is not None:
            held.memory.held -= 1
        self.room_made()

    def begin(self, key: Key) -> Begun:
        """One more asks a variant, whether or not there is room."""
        variant, now = self._variant(key), self._clock()
        variant.limit.enter(now)
        return variant, now

    def end(self, begun: Begun, came: Came) -> None:
        """What came of it."""
        variant, entered_at = begun
        variant.limit.leave(self._clock(), entered_at, came)
        self.room_made()


class Place:
    """What one snapshot holds in flight, as a context."""

    __slots__ = ("_asked", "_held", "_limiter", "_model")

    def __init__(self, limiter: Limiter, model: str, held: _Held | None, asked: dict[str, Begun]) -> None:
        self._limiter = limiter
        self._model = model
        self._held = held
        self._asked = asked

    def ask(self, name: str) -> None:
        """A variant is asked; one that was not reckoned with, such as a fallback, needs no room."""
        if name not in self._asked:
            self._asked[name] = self._limiter.begin((self._model, name))

    def over(self, name: str, came: Came) -> None:
        """It is not asked any more."""
        if (begun := self._asked.pop(name, None)) is not None:
            self._limiter.end(begun, came)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in tuple(self._asked):
            self.over(name, Came.NOTHING)
        if self._held is not None:
            self._limiter.free(self._held)
            self._held = None
