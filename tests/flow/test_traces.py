"""The trace of a snapshot as the flow measures it: what belongs under what, and what it costs not to be sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BackendRejected
from gateway.messages import MessageProperties
from gateway.testing import MemoryTriton
from gateway.traces import Kind, Span, parent_of
from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, sensor_spec, signature, snapshot_json
from tests.flow.trial_site import INSIDE, Witness, flow, on_trial, release
from tests.harness import HELMET, Site, sees, site, until, write_model

CAMERA = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = CAMERA[:-1] + "0"
TRACE_ID, CAMERA_ID = int(CAMERA[3:35], 16), int(CAMERA[36:52], 16)
WITHIN_MS = 2.0


class Spans:
    """The `SpanSink` port as a list."""

    def __init__(self) -> None:
        self.all: list[Span] = []

    def take(self, spans: Sequence[Span]) -> None:
        self.all += spans

    async def close(self) -> None:
        """There is nothing to send."""

    def __getitem__(self, name: str) -> Span:
        found = [span for span in self.all if span.name == name]
        assert len(found) == 1, f"{len(found)} of '{name}': {self.names}"
        return found[0]

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]


def ms(span: Span) -> float:
    return (span.ended_at - span.started_at) * 1000


def carrying(*pairs: tuple[str, str]) -> MessageProperties:
    return MessageProperties(user_properties=pairs)


def named_by(place: Site, kind: str) -> str | None:
    """The traceparent of the first message of a kind."""
    properties = next(properties for _, body, properties in place.seen if body["message_type"] == kind)
    return dict(properties.user_properties).get("traceparent")


def traceparent(span: Span) -> str:
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-01"


async def test_a_dual_snapshot_is_one_trace_from_the_camera_to_triton(tmp_path: Path) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans, enable_dual_backend=True) as place:
        place.snapshot(jpeg(), properties=carrying(("traceparent", CAMERA), ("tracestate", "vendor=1")))
        await until(lambda: bool(place.results and place.of("dual_backend_comparison")))
        await until(lambda: "process snapshot" in spans.names)
        result = place.results[0]
        root = spans["process snapshot"]
        named = named_by(place, "ai_inference_result"), named_by(place, "dual_backend_comparison")
        asked = {request.model: dict(request.trace) for request in place.triton.requests}

    steps = ["queued", "preprocess", "infer onnx", "infer torch", "postprocess", "compare", "publish"]
    assert sorted(spans.names) == sorted([*steps, "process snapshot"])
    assert (root.trace_id, root.parent_id, root.kind, root.error) == (TRACE_ID, CAMERA_ID, Kind.CONSUMER, None)
    assert {spans[name].parent_id for name in steps} == {root.span_id}
    assert {span.trace_id for span in spans.all} == {TRACE_ID}
    assert len({span.span_id for span in spans.all}) == len(spans.all)
    assert root.attributes["messaging.destination.name"] == SNAPSHOT_TOPIC
    assert root.attributes["edge_gateway.outcome"] == "published"
    assert root.attributes["edge_gateway.result_id"] == result["result_id"]
    assert named == (traceparent(root), traceparent(root))
    for variant in ("onnx", "torch"):
        span = spans[f"infer {variant}"]
        assert asked[f"detector-{variant}"] == {"traceparent": traceparent(span), "tracestate": "vendor=1"}
        assert (span.kind, span.attributes["edge_gateway.model"]) == (Kind.CLIENT, "detector")
        assert span.attributes["edge_gateway.version"] == "1"
    assert spans["publish"].kind is Kind.PRODUCER


async def test_the_spans_agree_with_the_timings_of_the_result(tmp_path: Path) -> None:
    triton, spans = MemoryTriton(), Spans()
    for variant, latency_s in (("onnx", 0.03), ("torch", 0.06)):
        triton.add_model(signature(f"detector-{variant}"), sees(HELMET), latency_s=latency_s)
    async with site(tmp_path, triton=triton, spans=spans, enable_dual_backend=True) as place:
        place.snapshot(jpeg(640, 480))
        await until(lambda: "process snapshot" in spans.names)
        timings = place.results[0]["metadata"]["timings_ms"]
    primary = f"infer {place.results[0]['backend_used']}"
    for step, name in (("queued",) * 2, ("preprocess",) * 2, ("infer", primary), ("postprocess",) * 2):
        assert ms(spans[name]) == pytest.approx(timings[step], abs=WITHIN_MS), step
    asked = max(spans["infer onnx"].ended_at, spans["infer torch"].ended_at) - spans["infer onnx"].started_at
    by_hand = sum(ms(spans[name]) for name in ("queued", "preprocess", "postprocess", "compare")) + asked * 1000
    assert by_hand == pytest.approx(timings["total"], abs=WITHIN_MS)
    assert ms(spans["process snapshot"]) >= timings["total"]


@pytest.mark.parametrize(
    ("share", "given", "carried"), [(1, UNSAMPLED, UNSAMPLED), (0, None, None), (0, "garbage", "garbage")]
)
async def test_what_is_not_sampled_has_no_span_and_triton_is_told_nothing(
    tmp_path: Path, share: int, given: str | None, carried: str | None
) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans, otel_traces_sampler_arg=share) as place:
        place.snapshot(jpeg(), properties=carrying(*([("traceparent", given)] if given else [])))
        await place.answered(1)
        assert not any(request.trace for request in place.triton.requests)
        assert named_by(place, "ai_inference_result") == carried
    assert not spans.all


@pytest.mark.parametrize("given", [None, "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff" + CAMERA[2:], "é"])
async def test_without_a_context_that_can_be_read_a_new_trace_begins(tmp_path: Path, given: str | None) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans) as place:
        pairs = [("traceparent", given), ("tracestate", "vendor=1")] if given else []
        place.snapshot(jpeg(), properties=carrying(*pairs))
        await until(lambda: "process snapshot" in spans.names)
        root = spans["process snapshot"]
        assert named_by(place, "ai_inference_result") == traceparent(root)
    assert (root.parent_id, root.trace_state) == (None, "")


async def test_a_share_of_those_that_say_nothing_is_sampled(tmp_path: Path) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans, otel_traces_sampler_arg=0.5) as place:
        for number in range(60):
            place.snapshot(snapshot_json(jpeg(seed=number % 3)))
        await place.answered(60)
        await until(lambda: place.outcomes() == {"published": 60})
    assert 10 < spans.names.count("process snapshot") < 50


async def test_a_picture_that_cannot_be_read_has_its_code_on_the_step_and_on_the_whole(tmp_path: Path) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans) as place:
        place.snapshot(jpeg()[:400])
        await until(lambda: "process snapshot" in spans.names)
        error = place.errors[0]["error"]
        assert named_by(place, "ai_inference_error") == traceparent(spans["process snapshot"])
    for name in ("preprocess", "process snapshot"):
        assert spans[name].error == ("IMAGE_UNDECODABLE", error["message"])
        assert spans[name].attributes["error.type"] == "IMAGE_UNDECODABLE"
    assert spans["process snapshot"].attributes["edge_gateway.outcome"] == "rejected"


async def test_a_variant_that_fails_stands_beside_the_one_that_answers(tmp_path: Path) -> None:
    spans, triton = Spans(), MemoryTriton()
    for variant in ("onnx", "torch"):
        triton.add_model(signature(f"detector-{variant}"), sees(HELMET))
    async with site(tmp_path, triton=triton, spans=spans) as place:
        triton.fail("detector-onnx", BackendRejected("out of memory"))
        place.snapshot(jpeg())
        await until(lambda: "process snapshot" in spans.names)
    assert spans["infer onnx"].error == ("BACKEND_REJECTED", "out of memory")
    assert spans["infer torch"].error is None
    assert spans["infer torch"].attributes["edge_gateway.policy"] == "fallback"
    assert spans["process snapshot"].error is None
    assert spans["process snapshot"].attributes["edge_gateway.variant"] == "torch"


async def test_a_snapshot_that_is_dropped_says_how_long_it_waited(tmp_path: Path) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans, snapshot_deadline_ms=300, max_in_flight=1) as place:
        for variant in ("onnx", "torch"):
            place.triton.hold(f"detector-{variant}")
        for number in range(2):
            place.snapshot(jpeg(seed=number), properties=carrying(("time", f"2026-01-01T00:00:0{number}Z")))
        await until(lambda: spans.names.count("process snapshot") == 2)
    whole = next(span for span in spans.all if span.attributes.get("edge_gateway.outcome") == "dropped_stale")
    assert whole.error is not None
    assert whole.error[0] == "DEADLINE_EXCEEDED"
    queued = [span for span in spans.all if span.name == "queued" and span.parent_id == whole.span_id]
    assert ms(queued[0]) == pytest.approx(ms(whole), abs=100)


async def test_what_is_left_to_the_broker_at_the_end_is_said_too(tmp_path: Path) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans, drain_timeout_s=0) as place:
        for variant in ("onnx", "torch"):
            place.triton.hold(f"detector-{variant}")
        place.snapshot(jpeg())
        await until(lambda: bool(place.triton.requests))
        await place.stop()
    assert spans["process snapshot"].attributes["edge_gateway.outcome"] == "abandoned"


async def test_who_asks_over_http_is_served_and_nothing_is_published(tmp_path: Path) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans) as place, httpx.AsyncClient(trust_env=False) as client:
        address = f"http://127.0.0.1:{place.gateway.http_port}/v1/infer"
        answer = await client.post(address, content=jpeg(), headers={"traceparent": CAMERA})
        assert answer.status_code == httpx.codes.OK
        await until(lambda: "process snapshot" in spans.names)
    root = spans["process snapshot"]
    assert (root.kind, root.parent_id) == (Kind.SERVER, CAMERA_ID)
    assert spans["publish"].kind is Kind.INTERNAL
    assert not any(name.startswith("messaging.") for span in spans.all for name in span.attributes)


async def test_a_repeated_answer_is_the_trace_of_its_own_snapshot(tmp_path: Path) -> None:
    spans = Spans()
    async with site(tmp_path, spans=spans) as place:
        payload = snapshot_json(jpeg())
        for _ in range(2):
            place.snapshot(payload)
            await until(lambda: spans.names.count("process snapshot") == len(place.results) > 0)
        await until(lambda: spans.names.count("process snapshot") == 2)
    first, second = (span for span in spans.all if span.name == "process snapshot")
    assert "edge_gateway.repeated" not in first.attributes
    assert second.attributes["edge_gateway.repeated"] is True


async def test_what_is_asked_in_shadow_is_added_to_the_trace() -> None:
    spans = Spans()
    async with flow(1, 2, spans=spans) as place:
        place.models.put(on_trial(release(1), release(2), Witness(pairs=1)))
        place.send(INSIDE)
        await until(lambda: any(span.attributes.get("edge_gateway.policy") == "shadow" for span in spans.all))
    root = spans["process snapshot"]
    asked = [span for span in spans.all if span.attributes.get("edge_gateway.policy") == "shadow"]
    assert {span.parent_id for span in asked} == {root.span_id}


async def test_a_reading_that_waits_in_its_window_is_a_trace_too(tmp_path: Path) -> None:
    write_model(tmp_path, **sensor_spec().model_dump(mode="json", exclude_unset=True))
    spans = Spans()
    async with site(tmp_path, spans=spans, wait=False) as place:
        place.snapshot(b"21.5", "edge-ai/bu/plant/gw/sensors/t-1")
        await until(lambda: "process snapshot" in spans.names)
    assert spans["process snapshot"].attributes["edge_gateway.outcome"] == "windowed"


@given(st.one_of(st.text(), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", fullmatch=True)))
def test_a_context_is_read_whole_or_not_at_all(text: str) -> None:
    parent = parent_of((("traceparent", text),))
    if parent is not None:
        assert text.split("-")[1:3] == [f"{parent.trace_id:032x}", f"{parent.span_id:016x}"]
        assert parent.trace_id
        assert parent.span_id
