"""Spans to an OpenTelemetry receiver by OTLP over HTTP, with OpenTelemetry's own exporter; needs the extra `tracing`.

Finished spans wait in a bounded queue for a thread of its own, which makes OpenTelemetry's records of them and sends
them in batches: the flow waits for nothing here, and a receiver that is away costs spans and a line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from urllib.parse import unquote

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gateway import __version__
from gateway.adapters.otlp_session import bounded_session
from gateway.addresses import shown
from gateway.traces import Kind, Span

log = structlog.get_logger(__name__)

PATH = "/v1/traces"
EVERY_S = 1.0
BATCH = 256
"""Spans in one request."""
MAX_WAITING = 8192
"""Spans, about 6 MB of them; those of three seconds at 300 snapshots a second."""
CLOSE_LIMIT_S = 2.0
MAX_REASON = 300
HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
SHORTEST_SECRET = 8
"""Characters; shorter values of headers are no secrets but the number of a tenant, say."""
FIX = "Check OTEL_EXPORTER_OTLP_ENDPOINT and the receiver; the gateway goes on without traces until it answers"
_KINDS = {
    Kind.CONSUMER: SpanKind.CONSUMER,
    Kind.SERVER: SpanKind.SERVER,
    Kind.CLIENT: SpanKind.CLIENT,
    Kind.PRODUCER: SpanKind.PRODUCER,
    Kind.INTERNAL: SpanKind.INTERNAL,
}
_SCOPE = InstrumentationScope("gateway", __version__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OK = Status(StatusCode.UNSET)

Counted = Callable[[str, int], None]
"""Is told of spans: "sent" or "dropped", and how many; called in threads."""


class OtlpSpans:
    """The `SpanSink` port: spans go to the receiver at `endpoint`, a URL without the path of the traces.

    `attributes` say which gateway it is; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES add to them and win. The
    exporter reads its other variables (OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE, _TIMEOUT, _COMPRESSION) itself.
    """

    def __init__(self, endpoint: str, attributes: Mapping[str, str], counted: Counted) -> None:
        self._endpoint = shown(endpoint)
        self._counted = counted
        self._said = _keep_what_is_said()
        self._secrets = _secrets()
        self._exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + PATH, session=bounded_session())
        self._resource = Resource.create().merge(Resource(attributes)).merge(OTELResourceDetector().detect())
        self._lock = threading.Lock()
        self._waiting: deque[tuple[float, Span]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._away = False
        self._full = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def take(self, spans: Sequence[Span]) -> None:
        """Take the spans of one trace; never waits: what is too much is dropped and counted."""
        since_epoch = time.time() - time.monotonic()
        with self._lock:
            room = not self._closing and len(self._waiting) + len(spans) <= MAX_WAITING
            if room:
                self._waiting.extend((since_epoch, span) for span in spans)
            many = len(self._waiting) >= BATCH
        if not room:
            self._drop(len(spans))
            return
        self._full = False
        if many:
            self._wake.set()

    async def close(self) -> None:
        """Send what waits, for a few seconds at most; what is left then is dropped."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_LIMIT_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call] # ends the pause before a further attempt
        with self._lock:
            left = len(self._waiting)
            self._waiting.clear()
        if left:
            self._counted("dropped", left)

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            while batch := self._next():
                self._send(batch)
            if self._closing:
                return

    def _next(self) -> list[tuple[float, Span]]:
        with self._lock:
            batch = list(islice(self._waiting, BATCH))
            for _ in batch:
                self._waiting.popleft()
        return batch

    def _send(self, batch: list[tuple[float, Span]]) -> None:
        self._said.text = ""
        try:
            records = [self._record(span, since_epoch) for since_epoch, span in batch]
            sent = self._exporter.export(records) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread has to go on with the next
            sent, self._said.text = False, f"{type(error).__name__}: {error}"
        self._counted("sent" if sent else "dropped", len(batch))
        if sent and self._away:
            log.info("Traces are sent again", endpoint=self._endpoint)
        elif not sent and not self._away:
            reason = self._without_secrets(self._said.text)[:MAX_REASON] or "no answer"
            log.warning("Traces cannot be sent, they are dropped", endpoint=self._endpoint, reason=reason, fix=FIX)
        self._away = not sent

    def _drop(self, count: int) -> None:
        self._counted("dropped", count)
        if not (self._full or self._away or self._closing):
            self._full = True
            fix = "Lower OTEL_TRACES_SAMPLER_ARG; see trace_spans_total"
            log.warning("More spans come than can be sent, further ones are dropped", endpoint=self._endpoint, fix=fix)

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _record(self, span: Span, since_epoch: float) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=_context(span, span.span_id),
            parent=None if span.parent_id is None else _context(span, span.parent_id),
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS[span.kind],
            instrumentation_scope=_SCOPE,
            status=_OK if span.error is None else Status(StatusCode.ERROR, span.error[1]),
            start_time=round((span.started_at + since_epoch) * 1e9),
            end_time=round((span.ended_at + since_epoch) * 1e9),
        )


def _context(span: Span, span_id: int) -> SpanContext:
    state = TraceState.from_header([span.trace_state]) if span.trace_state else None
    return SpanContext(span.trace_id, span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state)


def _secrets() -> list[str]:
    """The values of headers, in the forms in which an error repeats them: requests names one that it cannot send."""
    given = ",".join(os.environ.get(name, "") for name in HEADERS)
    values = [unquote(pair.partition("=")[2]).strip() for pair in given.split(",")]
    return [form for value in values if len(value) >= SHORTEST_SECRET for form in (value, repr(value)[1:-1])]


class _FirstSaid(logging.Handler):
    """Keeps the first line of OpenTelemetry's log on a batch, which says why it is not sent; the last names a limit."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line, unless there is one."""
        self.text = self.text or record.getMessage()


def _keep_what_is_said() -> _FirstSaid:
    """Take OpenTelemetry's log, which would say a line for each batch, out of the gateway's."""
    logger = logging.getLogger("opentelemetry")
    logger.propagate = False
    handler = _FirstSaid()
    logger.handlers = [handler]
    logging.getLogger("urllib3").setLevel(logging.WARNING)  # below, it has a line for each request
    return handler
