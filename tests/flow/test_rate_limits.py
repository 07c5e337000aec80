"""Neither a device nor a topic brings more than it may; what is refused is answered, and a redelivery is not lost."""

from __future__ import annotations

from pathlib import Path

import httpx
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RateLimited
from gateway.flow.rate_limits import BURST_S, RateLimits
from gateway.live import Live
from gateway.messages import Message
from gateway.testing import MemoryBroker
from tests.flow.builders import jpeg, origin, settings, snapshot_json
from tests.harness import site, until

TOPIC = "edge-ai/bu/plant/gw/camera/snapshots"
OTHER_TOPIC = "edge-ai/bu/plant/other/camera/snapshots"


def passes(limits: RateLimits, at: float, topic: str = TOPIC, device: str = "a", *, duplicate: bool = False) -> bool:
    message = Message(topic, b"", at, qos=1, duplicate=duplicate)
    try:
        limits.check_topic(message)
        limits.check_device(message, origin(device_id=device))
    except RateLimited:
        return False
    return True


@given(st.floats(0.1, 50), st.lists(st.floats(0, 3), max_size=200))
def test_never_more_than_the_rate_and_its_burst(rate: float, gaps: list[float]) -> None:
    limits = RateLimits(Live(settings(rate_limit_per_device=rate)))
    now, passed = 0.0, 0
    for gap in gaps:
        now += gap
        passed += passes(limits, now)
        assert passed <= max(1, rate * BURST_S) + rate * now + 1e-6


@given(st.floats(0.1, 1000), st.integers(1, 300))
def test_who_keeps_to_the_rate_is_never_refused(rate: float, messages: int) -> None:
    limits = RateLimits(Live(settings(rate_limit_per_topic=rate)))
    assert all(passes(limits, number / rate * 1.0001) for number in range(messages))


def test_devices_and_topics_are_counted_each_for_itself() -> None:
    limits = RateLimits(Live(settings(rate_limit_per_device=1, rate_limit_per_topic=2)))
    assert [passes(limits, 0, device=name) for name in "aaabbb"] == [True, True, False, True, False, False]
    assert passes(limits, 0, OTHER_TOPIC, "c")


def test_a_message_that_is_delivered_again_is_neither_counted_nor_refused() -> None:
    limits = RateLimits(Live(settings(rate_limit_per_device=0.5)))
    assert all(passes(limits, 0, duplicate=True) for _ in range(10))
    assert passes(limits, 0)
    assert not passes(limits, 0)
    assert passes(limits, 0, duplicate=True)


def test_limits_may_change_and_vanish_while_the_gateway_runs() -> None:
    live = Live(settings(rate_limit_per_device=0.5))
    limits = RateLimits(live)
    assert [passes(limits, 0), passes(limits, 0)] == [True, False]
    live.replace(settings(rate_limit_per_device=100))
    assert not passes(limits, 0)
    assert passes(limits, 0.01)
    live.replace(settings())
    assert all(passes(limits, 0.01) for _ in range(1000))
    assert len(limits) == 0


def test_invented_ids_and_topics_take_no_memory() -> None:
    limits = RateLimits(Live(settings(rate_limit_per_device=1, rate_limit_per_topic=1)), remembered=50)
    for number in range(20_000):
        passes(limits, number / 1000, f"topic-{number}", f"device-{number}")
    assert len(limits) == 100


async def test_what_is_beyond_the_limit_is_answered_and_the_rest_has_results(tmp_path: Path) -> None:
    async with site(tmp_path, rate_limit_per_device=1) as place:
        for number in range(5):
            place.snapshot(snapshot_json(jpeg(), device_id="busy", timestamp=number))
        place.snapshot(snapshot_json(jpeg(), device_id="calm"))
        await place.answered(6)
    assert [error["timestamp"] for error in place.errors] == [2, 3, 4]
    error = place.errors[0]["error"]
    assert (error["code"], error["retryable"]) == ("RATE_LIMITED", True)
    assert place.errors[0]["device_id"] == "busy"
    assert place.outcomes() == {"published": 3, "dropped_limited": 3}


async def test_a_topic_is_limited_before_its_payload_is_read(tmp_path: Path) -> None:
    async with site(tmp_path, rate_limit_per_topic=1) as place:
        for number in range(5):
            place.snapshot(b"no snapshot %d" % number, TOPIC)
        place.snapshot(snapshot_json(jpeg()), OTHER_TOPIC)
        await place.answered(6)
    codes = sorted(error["error"]["code"] for error in place.errors)
    assert codes == ["PAYLOAD_INVALID"] * 2 + ["RATE_LIMITED"] * 3
    assert len(place.results) == 1


async def test_what_the_broker_delivers_again_after_a_restart_is_answered_whole(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with site(tmp_path, broker=broker, drain_timeout_s=0, rate_limit_per_device=100) as place:
        place.triton.hold("detector-onnx")
        for number in range(6):
            place.snapshot(snapshot_json(jpeg(), timestamp=number))
        await until(lambda: place.received == 6)
    async with site(tmp_path, broker=broker, rate_limit_per_device=0.5) as place:
        await place.answered(6)
        assert place.outcomes() == {"published": 6}
        place.snapshot(snapshot_json(jpeg(), timestamp=6))
        place.snapshot(snapshot_json(jpeg(), timestamp=7))
        await until(lambda: place.outcomes().get("dropped_limited") == 1)


async def test_http_counts_as_a_topic_of_its_own(tmp_path: Path) -> None:
    async with (
        site(tmp_path, rate_limit_per_topic=0.5) as place,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.gateway.http_port}") as client,
    ):
        place.snapshot(snapshot_json(jpeg()))
        answers = [await client.post("/v1/infer", content=jpeg()) for _ in range(2)]
        await place.answered(1)
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["error"]["code"] == "RATE_LIMITED"
    assert int(answers[1].headers["Retry-After"]) >= 1
