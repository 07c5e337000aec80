"""What the members of a pool have counted, as totals that an endpoint which goes and comes back does not move."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway.adapters.triton_pool_member import Member, most_telling
from gateway.adapters.triton_pool_roster import Roster
from gateway.ports import ModelStatistics

NOTHING = ModelStatistics(success_count=0, queue_ns=0, compute_ns=0)


@dataclass(slots=True)
class _Totals:
    """Of one model: the sum, and what each member has said last, which is in it already."""

    sum: ModelStatistics = NOTHING
    last: dict[Member, ModelStatistics] = field(default_factory=dict)


class Statistics:
    """Sums what each member has counted since it was last asked: a sum of what they say would fall when one goes,
    and whoever takes differences would see its whole history when it is back."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._totals: dict[str, _Totals] = {}

    async def of(self, model: str) -> ModelStatistics:
        """Totals of all members; the memory is that of the member where the model takes most. Raises as the port."""
        placed = self._roster.placement.of_model(model)
        members = self._roster.here(placed) or placed
        asked = (member.server.statistics(model) for member in members)
        results = await asyncio.gather(*asked, return_exceptions=True)
        found = {each: now for each, now in zip(members, results, strict=True) if isinstance(now, ModelStatistics)}
        if not found:
            raise most_telling([each for each in results if isinstance(each, BaseException)])
        totals = self._totals.setdefault(model, _Totals())
        first = not totals.last
        for member, now in found.items():
            before = totals.last.get(member, NOTHING if first else now)  # the history of one that comes is no news
            totals.sum = _plus(totals.sum, now, before)
            totals.last[member] = now
        return ModelStatistics(
            success_count=totals.sum.success_count,
            queue_ns=totals.sum.queue_ns,
            compute_ns=totals.sum.compute_ns,
            memory_bytes=max(
                (each.memory_bytes for each in found.values() if each.memory_bytes is not None), default=None
            ),
            last_inference_at=max((each.last_inference_at or 0.0 for each in totals.last.values()), default=0.0)
            or None,
        )


def _plus(total: ModelStatistics, now: ModelStatistics, before: ModelStatistics) -> ModelStatistics:
    """The total and what has come since `before`; whoever says less than before has begun anew."""
    since = NOTHING if now.success_count < before.success_count else before
    return ModelStatistics(
        success_count=total.success_count + now.success_count - since.success_count,
        queue_ns=total.queue_ns + now.queue_ns - since.queue_ns,
        compute_ns=total.compute_ns + now.compute_ns - since.compute_ns,
    )
