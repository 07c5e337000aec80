"""An OpenTelemetry receiver: OTLP over HTTP, in protobuf as the gateway sends it and in JSON as Triton does."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import SpanKind

TIMEOUT_S = 30.0
KINDS = {number + 1: kind.name for number, kind in enumerate(SpanKind)}
"""The numbers of the protocol begin at 1."""


@dataclass(frozen=True, slots=True)
class Received:
    """One span as it came; times in ms since 1970, ids in hex, a root's `parent_id` empty."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    started_ms: float
    ended_ms: float
    attributes: Mapping[str, Any]
    failed: bool = False
    message: str = ""
    trace_state: str = ""
    resource: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        """How long it took."""
        return self.ended_ms - self.started_ms


class Receiver:
    """A running receiver on a port of its own, or on one that is given."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Received] = []
        self.headers: list[Mapping[str, str]] = []
        self.status = 200
        """What it answers."""
        self.hold = threading.Event()
        """While it is clear, no request is answered."""
        self.hold.set()
        self.asked = 0
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return self._server.server_port

    def named(self, name: str) -> list[Received]:
        """All spans of this name."""
        return [span for span in list(self.spans) if span.name == name]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Poll a condition; fails after the deadline, saying what has come."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            came = [(span.service, span.name) for span in list(self.spans)]
            assert time.monotonic() < deadline, f"waited in vain for {what}; came: {came}"
            time.sleep(0.01)

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked += 1
                receiver.headers.append(dict(self.headers))
                receiver.hold.wait(TIMEOUT_S)
                if receiver.status == http.HTTPStatus.OK and self.path == "/v1/traces":
                    decode = _from_json if "json" in self.headers["Content-Type"] else _from_protobuf
                    receiver.spans += decode(body)
                self.send_response(receiver.status if self.path == "/v1/traces" else http.HTTPStatus.NOT_FOUND)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    """A receiver for the time of a test."""
    running = Receiver(port)
    try:
        yield running
    finally:
        running.close()


def _from_protobuf(body: bytes) -> Iterator[Received]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {each.key: _plain(each.value) for each in group.resource.attributes}
        for span in (span for scope in group.scope_spans for span in scope.spans):
            yield Received(
                service=str(resource.get("service.name")),
                name=span.name,
                kind=KINDS[span.kind],
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                started_ms=span.start_time_unix_nano / 1e6,
                ended_ms=span.end_time_unix_nano / 1e6,
                attributes={each.key: _plain(each.value) for each in span.attributes},
                failed=span.status.code == span.status.STATUS_CODE_ERROR,
                message=span.status.message,
                trace_state=span.trace_state,
                resource=resource,
            )


def _from_json(body: bytes) -> Iterator[Received]:
    for group in json.loads(body)["resourceSpans"]:
        resource = {each["key"]: next(iter(each["value"].values())) for each in group["resource"]["attributes"]}
        for span in (span for scope in group["scopeSpans"] for span in scope["spans"]):
            yield Received(
                service=resource["service.name"],
                name=span["name"],
                kind=KINDS[span["kind"]],
                trace_id=span["traceId"],
                span_id=span["spanId"],
                parent_id=span.get("parentSpanId", ""),
                started_ms=int(span["startTimeUnixNano"]) / 1e6,
                ended_ms=int(span["endTimeUnixNano"]) / 1e6,
                attributes={each["key"]: next(iter(each["value"].values())) for each in span.get("attributes", [])},
                resource=resource,
            )


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
