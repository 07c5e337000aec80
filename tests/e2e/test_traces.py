"""One trace through everything that is real: camera, broker, gateway, and Triton with its own spans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.bench.stub_model import write_stub
from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from tests.e2e.site import Client, RealSite, until
from tests.flow.builders import jpeg
from tests.otlp_receiver import Received, Receiver, receiver

pytestmark = pytest.mark.triton

CAMERA_ID = "00f067aa0ba902b7"
UNSAMPLED = "0" * 31 + "1"
STEPS = {"queued", "preprocess", "infer onnx", "infer torch", "postprocess", "compare", "publish"}
WITHIN_MS = 2.0
SPANS_OF_TRITON = 6
"""Three for each variant."""
TRIES = 25
"""Snapshots of which one has to be whole: Triton 2.51 reads the context of some requests beyond its end, and then does
not know it. At worst that was 7 of 40 requests, here it is 1 of 25. Were it one of three, the end of the 95 % interval
of those 7, then 55 % of the snapshots, of two requests each, were not whole; 25 in a row once in 3 million runs."""
SECRET = "not-to-be-said"


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def traced(shared_broker: EmbeddedBroker, there: Receiver, tmp_path: Path) -> Iterator[RealSite]:
    """A gateway that asks two variants, and a Triton, which both send their spans to the receiver."""
    models = tmp_path / "models"
    write_stub(models, 64)
    with (
        EmbeddedTriton(models, traces_to=there.endpoint) as triton,
        RealSite(
            shared_broker,
            triton,
            MODEL_REPOSITORY=str(models),
            MODEL_STATE_DIR=str(tmp_path / "state"),
            ENABLE_DUAL_BACKEND="true",
            FACILITY="plant",
            OTEL_EXPORTER_OTLP_ENDPOINT=there.endpoint,
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization={SECRET}",
        ) as site,
    ):
        site.start()
        site.wait_ready()
        yield site


@dataclass
class Trace:
    """What has come of one trace."""

    trace_id: str
    there: Receiver

    @property
    def gateway(self) -> dict[str, Received]:
        return {span.name: span for span in self._of("edge-gateway")}

    @property
    def triton(self) -> list[Received]:
        return self._of("triton-inference-server")

    @property
    def gateway_is_whole(self) -> bool:
        return {*STEPS, "process snapshot"} <= self.gateway.keys()

    @property
    def triton_is_whole(self) -> bool:
        return len(self.triton) == SPANS_OF_TRITON

    def _of(self, service: str) -> list[Received]:
        return [span for span in list(self.there.spans) if (span.service, span.trace_id) == (service, self.trace_id)]


def from_camera(trace_id: str, flags: str = "01") -> Properties:
    """What a camera that traces sends with its picture."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = ("traceparent", f"00-{trace_id}-{CAMERA_ID}-{flags}")
    return properties


def whole_trace(site: RealSite, there: Receiver) -> tuple[Trace, dict[str, Any]]:
    """Of many traces the first with all spans of both variants at Triton, and its result; see TRIES."""
    results: dict[str, dict[str, Any]] = {}
    for number in range(1, TRIES + 1):
        trace_id = f"{number:032x}".replace("0", "a", 1)
        site.send(jpeg(640, 480, seed=number), properties=from_camera(trace_id))
        site.wait_for(results=number + 1, errors=0)
        results[trace_id] = site.results[-1]
    traces = [Trace(trace_id, there) for trace_id in results]
    until(lambda: all(trace.gateway_is_whole for trace in traces), "all spans of the gateway")
    until(lambda: any(trace.triton_is_whole for trace in traces), "all spans of Triton of one trace")
    whole = next(trace for trace in traces if trace.triton_is_whole)
    return whole, results[whole.trace_id]


def test_the_trace_of_a_snapshot_goes_through_triton(traced: RealSite, there: Receiver) -> None:
    carried: dict[str, str] = {}

    def see(message: paho.MQTTMessage) -> None:
        user = dict(getattr(message.properties, "UserProperty", ()))
        if user.get("type") == "ai_inference_result":
            carried[user["traceparent"][3:35]] = user["traceparent"]

    watch = Client(traced.broker.port, f"edge-ai/{traced.unit}/+/+/ai/#", on_message=see)
    try:
        traced.send(jpeg(), properties=from_camera(UNSAMPLED, "00"))
        traced.answered(1)
        trace, result = whole_trace(traced, there)
        until(lambda: {UNSAMPLED, trace.trace_id} <= carried.keys(), "both results")
    finally:
        watch.close()
    spans, root = trace.gateway, trace.gateway["process snapshot"]

    assert (root.kind, root.parent_id) == ("CONSUMER", CAMERA_ID)
    assert {spans[name].parent_id for name in STEPS} == {root.span_id}
    assert carried[trace.trace_id] == f"00-{trace.trace_id}-{root.span_id}-01"
    assert carried[UNSAMPLED] == f"00-{UNSAMPLED}-{CAMERA_ID}-00"
    assert UNSAMPLED not in {span.trace_id for span in there.spans}
    assert (root.resource["edge_gateway.facility"], root.resource["service.instance.id"]) == ("plant", "gw")
    for variant in ("onnx", "torch"):
        _is_below(trace, spans[f"infer {variant}"], f"stub64-{variant}")
    _agrees(spans, result)
    assert any(headers.get("authorization") == SECRET for headers in there.headers)
    assert SECRET not in "\n".join(traced.process.log_tail(1000))


def _is_below(trace: Trace, asked: Received, model_name: str) -> None:
    """Triton's three spans hang under the variant's, and lie within it."""
    request = next(span for span in trace.triton if span.parent_id == asked.span_id)
    model = next(span for span in trace.triton if span.parent_id == request.span_id)
    compute = next(span for span in trace.triton if span.parent_id == model.span_id)
    assert (request.name, model.name, compute.name) == ("InferRequest", model_name, "compute")
    assert model.attributes["triton.request_id"] == trace.gateway["process snapshot"].attributes[
        "edge_gateway.result_id"
    ]  # fmt: skip
    for inner in (model, compute):
        assert asked.started_ms - WITHIN_MS <= inner.started_ms <= inner.ended_ms <= asked.ended_ms + WITHIN_MS


def _agrees(spans: dict[str, Received], result: dict[str, Any]) -> None:
    """The spans and the sum of them with `timings_ms`."""
    timings = result["metadata"]["timings_ms"]
    named = {name: name for name in ("queued", "preprocess", "postprocess")}
    for step, name in (named | {"infer": f"infer {result['backend_used']}"}).items():
        assert spans[name].ms == pytest.approx(timings[step], abs=WITHIN_MS), step
    variants = [spans["infer onnx"], spans["infer torch"]]
    asked_ms = max(each.ended_ms for each in variants) - min(each.started_ms for each in variants)
    together = asked_ms + sum(spans[name].ms for name in ("queued", "preprocess", "postprocess", "compare"))
    assert together == pytest.approx(timings["total"], abs=WITHIN_MS)
