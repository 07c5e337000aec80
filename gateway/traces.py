"""One trace for each snapshot that is sampled: its steps are measured on the way and handed on as spans at its end.

Nothing here knows OpenTelemetry. A snapshot that is not sampled has no span at all, and costs one question a step.
Times named `*_at` are seconds of `time.monotonic()`.
"""

from __future__ import annotations

import enum
import random
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import Outcome

if TYPE_CHECKING:
    from gateway.errors import SnapshotError
    from gateway.live import Live
    from gateway.messages import Origin
    from gateway.ports import SpanSink

Value = str | int | float | bool
Pairs = tuple[tuple[str, str], ...]
"""A W3C trace context: `traceparent`, and `tracestate` where there is one."""

PREFIX = "edge_gateway."
"""Of the attributes that are no convention of OpenTelemetry."""
SEVERAL = 1 << 64
"""Of so many trace ids, told apart by their lower half, the share is sampled; all samplers of a site agree on which."""
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\x20-\x7e]+")
"""A `tracestate` that may stand in the header of a request."""


class Kind(enum.Enum):
    """What a span has to do with others, as OpenTelemetry tells it."""

    CONSUMER = "consumer"
    SERVER = "server"
    CLIENT = "client"
    PRODUCER = "producer"
    INTERNAL = "internal"


class Span(NamedTuple):
    """One finished stretch of a snapshot's way; `error` is a code and a message."""

    trace_id: int
    span_id: int
    parent_id: int | None
    trace_state: str
    name: str
    kind: Kind
    started_at: float
    ended_at: float
    attributes: Mapping[str, Value]
    error: tuple[str, str] | None


class Parent(NamedTuple):
    """Who had the snapshot before."""

    trace_id: int
    span_id: int
    sampled: bool


class SnapshotSpan:
    """The whole way of one snapshot through the gateway, to which its steps are added."""

    __slots__ = ("_origin", "_parent", "_spans", "_traces", "kind", "span_id", "trace_id", "trace_state")

    def __init__(self, traces: Traces, origin: Origin, kind: Kind, parent: Parent | None, trace_id: int) -> None:
        self._traces = traces
        self._origin = origin
        self._parent = parent
        self._spans: list[Span] | None = []
        self.kind = kind
        self.trace_id = trace_id
        self.span_id = new_span_id()
        self.trace_state = "" if parent is None else _state_of(origin.trace)

    def context(self, span_id: int | None = None) -> Pairs:
        """The trace context that names this span, or the step with this id, to those who are asked or told next."""
        named = ("traceparent", f"00-{self.trace_id:032x}-{span_id or self.span_id:016x}-01")
        return (named, ("tracestate", self.trace_state)) if self.trace_state else (named,)

    def step(
        self,
        name: str,
        started_at: float,
        ended_at: float,
        *,
        kind: Kind = Kind.INTERNAL,
        span_id: int | None = None,
        error: SnapshotError | None = None,
        conventions: Mapping[str, Value] | None = None,
        **attributes: Value,
    ) -> None:
        """Add a step; one that ends after the snapshot itself has its answer is handed on by itself.

        The names of `attributes` are the gateway's own, those of `conventions` stand as they are.
        """
        named = {**{PREFIX + name: value for name, value in attributes.items()}, **(conventions or {})}
        span = self._span(name, kind, span_id or new_span_id(), self.span_id, started_at, ended_at, named, error)
        if self._spans is None:
            self._traces.hand_on([span])
        else:
            self._spans.append(span)

    def queued(self, until: float) -> None:
        """Add the time from its arrival, or since it was tried last, until now."""
        since = max((span.ended_at for span in self._spans or ()), default=self._origin.received_at)
        self.step("queued", min(since, until), until)

    def end(
        self, origin: Origin | None, outcome: Outcome, error: SnapshotError | None = None, **attributes: Value
    ) -> None:
        """Hand it on with all its steps; `origin` is what is known of the snapshot now."""
        if self._spans is None:
            return
        known, spans = origin or self._origin, self._spans
        self._spans = None
        named = {**self._about(known), PREFIX + "outcome": str(outcome)}
        named.update((PREFIX + name, value) for name, value in attributes.items())
        parent_id = None if self._parent is None else self._parent.span_id
        began, now = self._origin.received_at, time.monotonic()
        spans.append(self._span("process snapshot", self.kind, self.span_id, parent_id, began, now, named, error))
        self._traces.ended(self, spans)

    def _about(self, origin: Origin) -> dict[str, Value]:
        about: dict[str, Value] = {PREFIX + "result_id": origin.result_id, PREFIX + "device_id": origin.device_id}
        if origin.model_name is not None:
            about[PREFIX + "model"] = origin.model_name
        if self.kind is Kind.CONSUMER:
            about.update(messaging("process", "process", origin.topic, origin.payload_bytes))
        return about

    def _span(
        self,
        name: str,
        kind: Kind,
        span_id: int,
        parent_id: int | None,
        started_at: float,
        ended_at: float,
        attributes: dict[str, Value],
        error: SnapshotError | None,
    ) -> Span:
        said = None
        if error is not None:
            said = error.code, error.message  # the error itself would keep the frames it was raised in
            attributes["error.type"] = error.code
        state = self.trace_state
        return Span(self.trace_id, span_id, parent_id, state, name, kind, started_at, ended_at, attributes, said)


class Traces:
    """Begins a span for each snapshot that is sampled, and hands finished ones on.

    A trace context that the snapshot brings decides for it; of the others the share of OTEL_TRACES_SAMPLER_ARG is
    sampled.
    """

    def __init__(self, sink: SpanSink, live: Live) -> None:
        self._sink = sink
        self._live = live
        self._open: set[SnapshotSpan] = set()

    def begin(self, origin: Origin, *, asked_directly: bool) -> Origin:
        """The origin with its span, which its answers name then; as it is where it is not sampled."""
        parent = parent_of(origin.trace)
        trace_id = random.getrandbits(128) or 1 if parent is None else parent.trace_id
        if not self._sampled(parent, trace_id):
            return origin
        span = SnapshotSpan(self, origin, Kind.SERVER if asked_directly else Kind.CONSUMER, parent, trace_id)
        self._open.add(span)
        return replace(origin, trace=span.context(), span=span)

    def ended(self, span: SnapshotSpan, spans: list[Span]) -> None:
        """Hand on a snapshot's spans, its own the last."""
        self._open.discard(span)
        self.hand_on(spans)

    def hand_on(self, spans: list[Span]) -> None:
        """Hand on finished spans."""
        self._sink.take(spans)

    def abandon(self) -> None:
        """End what is under way: the gateway stops, and leaves these snapshots to the broker."""
        for span in list(self._open):
            span.end(None, Outcome.ABANDONED)

    def _sampled(self, parent: Parent | None, trace_id: int) -> bool:
        if parent is not None:
            return parent.sampled
        return trace_id % SEVERAL < round(self._live.current.otel_traces_sampler_arg * SEVERAL)


def parent_of(context: Pairs) -> Parent | None:
    """The span that a W3C trace context names; None where there is none, or none that can be read."""
    for name, value in context:
        if name == "traceparent" and (found := _TRACEPARENT.fullmatch(value)) is not None:
            version, trace_id, span_id, flags, more = found.groups()
            if version == "00" and more:
                return None
            return Parent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1))
    return None


def messaging(operation: str, kind: str, topic: str, size: int) -> dict[str, Value]:
    """The attributes of OpenTelemetry's conventions for messages."""
    return {
        "messaging.system": "mqtt",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": topic,
        "messaging.message.body.size": size,
    }


def new_span_id() -> int:
    """A number that names a span in its trace."""
    return random.getrandbits(64) or 1


def _state_of(context: Pairs) -> str:
    return next((value for name, value in context if name == "tracestate" and _STATE.fullmatch(value)), "")
