"""Spans at a real OpenTelemetry receiver, and what becomes of them while there is none."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.adapters import otlp
from gateway.adapters.otlp import MAX_WAITING, OtlpSpans
from gateway.local.processes import free_ports
from gateway.traces import Kind, Span
from tests.harness import until
from tests.otlp_receiver import Receiver, receiver

ROOT = Path(__file__).parents[2]
TRACE_ID, SPAN_ID, PARENT_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0xF067AA0BA902B7, 7
ABOUT = {"service.name": "edge-gateway", "service.version": "1.2.3", "edge_gateway.facility": "plant"}


def span(**changes: Any) -> Span:
    """Half a second that ended now."""
    now = time.monotonic()
    plain = Span(TRACE_ID, SPAN_ID, None, "", "queued", Kind.INTERNAL, now - 0.5, now, {}, None)
    return plain._replace(**changes)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver, and a sink that does not wait long before it sends."""
    monkeypatch.setattr(otlp, "EVERY_S", 0.02)
    with receiver() as running:
        yield running


class Counts(Counter[str]):
    """What the sink says of its spans."""

    def add(self, outcome: str, number: int) -> None:
        self[outcome] += number

    def has(self, outcome: str, number: int) -> bool:
        return self[outcome] == number


async def test_a_span_arrives_as_it_was(there: Receiver) -> None:
    counts = Counts()
    sink = OtlpSpans(there.endpoint + "/", ABOUT, counts.add)
    failed = span(
        name="infer onnx", kind=Kind.CLIENT, parent_id=PARENT_ID, trace_state="vendor=1",
        attributes={"edge_gateway.variant": "onnx", "messaging.message.body.size": 12}, error=("X", "it broke"),
    )  # fmt: skip
    sink.take([failed, span()])
    await until(lambda: len(there.spans) == 2)
    await sink.close()
    came, root = there.spans
    assert (came.trace_id, came.span_id, came.parent_id) == (f"{TRACE_ID:032x}", f"{SPAN_ID:016x}", f"{PARENT_ID:016x}")
    assert (came.name, came.kind, came.trace_state) == ("infer onnx", "CLIENT", "vendor=1")
    assert came.attributes == {"edge_gateway.variant": "onnx", "messaging.message.body.size": 12}
    assert (came.failed, came.message) == (True, "it broke")
    assert came.ms == pytest.approx(500, abs=0.01)
    assert came.ended_ms == pytest.approx(time.time() * 1000, abs=60_000)
    assert (root.parent_id, root.failed) == ("", False)
    assert {name: came.resource[name] for name in ABOUT} == ABOUT
    assert counts == {"sent": 2}


@pytest.mark.parametrize("kind", Kind)
async def test_every_kind_is_known_there(there: Receiver, kind: Kind) -> None:
    sink = OtlpSpans(there.endpoint, ABOUT, lambda *_: None)
    sink.take([span(kind=kind)])
    await sink.close()
    assert there.spans[0].kind == kind.name


async def test_the_variables_of_opentelemetry_hold(there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "line-4")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,edge_gateway.facility=other")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret-one")
    with capture_logs() as lines:
        sink = OtlpSpans(there.endpoint, ABOUT, lambda *_: None)
        sink.take([span()])
        there.status = 401
        await until(lambda: there.asked > 0)
        there.status = 200
        sink.take([span()])
        await sink.close()
    assert there.spans[0].service == "line-4"
    assert there.spans[0].resource["deployment.environment.name"] == "test"
    assert there.spans[0].resource["edge_gateway.facility"] == "other"
    assert there.headers[0]["authorization"] == "Bearer secret-one"
    assert "401" in lines[0]["reason"]
    assert "secret" not in str(lines)


async def test_a_token_that_cannot_be_sent_is_not_logged(there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=1,authorization=Bearer%20secret%0Aone")
    counts = Counts()
    with capture_logs() as lines:
        sink = OtlpSpans(there.endpoint, ABOUT, counts.add)
        sink.take([span()])
        await until(partial(counts.has, "dropped", 1))
        await sink.close()
    assert "header value: '***'" in lines[0]["reason"]
    assert "secret" not in str(lines)


async def test_a_receiver_that_is_away_costs_spans_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(otlp, "EVERY_S", 0.02)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    port, counts = free_ports(1)[0], Counts()
    with capture_logs() as lines:
        sink = OtlpSpans(f"http://user:secret@127.0.0.1:{port}", ABOUT, counts.add)
        for dropped in range(1, 4):
            sink.take([span()])
            await until(partial(counts.has, "dropped", dropped))
        with receiver(port) as back:
            sink.take([span()])
            await until(lambda: len(back.spans) == 1)
            await sink.close()
    said = [line["event"] for line in lines]
    assert said == ["Traces cannot be sent, they are dropped", "Traces are sent again"]
    assert lines[0]["reason"]
    assert lines[0]["endpoint"] == f"http://***@127.0.0.1:{port}"
    assert "secret" not in str(lines)
    assert counts == {"dropped": 3, "sent": 1}
    assert not caplog.records, "what OpenTelemetry says itself is not in the log"


async def test_what_is_too_much_is_dropped_and_the_end_comes_soon(
    there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "CLOSE_LIMIT_S", 0.2)
    there.hold.clear()
    counts = Counts()
    with capture_logs() as lines:
        sink = OtlpSpans(there.endpoint, ABOUT, counts.add)
        sink.take([span()])
        await until(lambda: there.asked == 1)
        for _ in range(MAX_WAITING + 10):
            sink.take([span()])
        assert counts == {"dropped": 10}
        async with asyncio.timeout(5):
            await sink.close()
    assert counts["dropped"] == MAX_WAITING + 10
    assert [line["event"] for line in lines] == ["More spans come than can be sent, further ones are dropped"]
    sink.take([span()])
    assert counts["dropped"] == MAX_WAITING + 11


def has_asked(there: Receiver, times: int) -> bool:
    return there.asked == times


async def test_each_time_that_too_much_comes_is_said(there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MAX_WAITING", 10)
    counts = Counts()
    with capture_logs() as lines:
        sink = OtlpSpans(there.endpoint, ABOUT, counts.add)
        for number in range(1, 4):
            there.hold.clear()
            sink.take([span()])
            await until(partial(has_asked, there, 2 * number - 1))
            sink.take([span()] * 10)
            for _ in range(20):
                sink.take([span()])
            assert counts["dropped"] == 20 * number
            there.hold.set()
            await until(partial(counts.has, "sent", 11 * number))
        there.hold.clear()
        sink.take([span()])
        await until(partial(has_asked, there, 7))
        there.hold.set()
        await sink.close()
        sink.take([span()])
    assert [line["event"] for line in lines] == ["More spans come than can be sent, further ones are dropped"] * 3


def test_without_the_extra_serve_says_what_to_install(tmp_path: Path) -> None:
    missing = tmp_path / "opentelemetry" / "__init__.py"
    missing.parent.mkdir()
    missing.write_text("raise ModuleNotFoundError(\"No module named 'opentelemetry'\")")
    (tmp_path / "models").mkdir()
    given = {
        "PYTHONPATH": str(tmp_path),
        "MODEL_REPOSITORY": str(tmp_path / "models"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
        "HTTP_PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve"], cwd=ROOT, env={**os.environ, **given},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "OpenTelemetry" in line]
    assert len(said) == 1
    assert said[0] == (
        "edge-gateway: OTEL_EXPORTER_OTLP_ENDPOINT: traces need OpenTelemetry, which is not installed "
        "(No module named 'opentelemetry'). In the gateway's environment: pip install 'triton-edge-gateway[tracing]'"
    )
    assert "Traceback" not in done.stderr
