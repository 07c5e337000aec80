"""How the workers stand together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.admin.report import Report
from gateway.ports import Broker
from gateway.workers.relay import LEAD, Seat


class Standing:
    """Ready when all workers are; once all have been, one that is away only degrades, since the others serve."""

    def __init__(self, seats: Sequence[Seat], broker: Broker) -> None:
        self._seats = seats
        self._broker = broker
        self.started = False
        self.stopping = False

    def report(self) -> Report:
        """The answer of /ready: each reason once, with the worker whose it is unless it is everybody's."""
        states = [seat.state for seat in self._seats]
        here = [state for state in states if state is not None]
        reasons = ["the gateway is shutting down"] if self.stopping else []
        if not self._broker.connected:
            trouble = self._broker.trouble
            reasons.append(f"the broker session is not up: {trouble}" if trouble else "the broker session is not up")
        away = [
            f"worker {seat.index + 1} of {len(states)} {seat.trouble}"
            for seat in self._seats
            if seat.state is None and not self.stopping
        ]
        degraded = self._named([state.degraded if state else None for state in states])
        if self.started and here:
            degraded = away + degraded
        else:
            reasons += away
        said = self._named([state.reasons if state else None for state in states])
        reasons += [each for each in said if not each.startswith("the broker session is not up")]
        ready = not reasons and bool(here) and all(state.ready for state in here)
        self.started = self.started or ready
        return Report(ready, tuple(reasons), tuple(degraded))

    def _named(self, said: Sequence[tuple[str, ...] | None]) -> list[str]:
        present = [index for index, texts in enumerate(said) if texts is not None]
        by_text: dict[str, list[int]] = {}
        for index in present:
            for text in said[index] or ():
                by_text.setdefault(text, []).append(index)
        return [
            text if len(by) == len(present) else f"worker {', '.join(str(index + 1) for index in by)}: {text}"
            for text, by in by_text.items()
        ]

    def serving(self) -> dict[str, dict[str, Any]]:
        """For each model the version of each variant, as the lead says, or another one while that is away."""
        seats = sorted(self._seats, key=lambda seat: seat.index != LEAD)
        return next((seat.state.serving for seat in seats if seat.state is not None), {})
