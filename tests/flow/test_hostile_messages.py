"""Topics and properties that are legal in MQTT and far too long: answered, and nobody else pays for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.messages import MessageProperties, Publication
from gateway.ports import MAX_PROPERTIES, MAX_PROPERTIES_BYTES
from gateway.testing import MemoryBroker
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import site, until

IMAGE = jpeg()
LEVEL = "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 30_000


@pytest.fixture(params=[False, True], ids=["memory", "spool"])
def waiting_place(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Where answers wait: settings of a gateway."""
    return {"spool_dir": tmp_path / "spool"} if request.param else {}


@pytest.mark.parametrize("topic", ["edge-ai/bu/{}/gw/camera/snapshots", "edge-ai/bu/fac/{}/camera/snapshots"])
async def test_a_long_topic_is_answered_on_a_short_one(tmp_path: Path, topic: str) -> None:
    async with site(tmp_path) as place:
        for level in (LEVEL, "%" * 60_000):
            place.snapshot(snapshot_json(IMAGE, device_id="long"), topic=topic.format(level))
            place.snapshot(b"nonsense", topic=topic.format(level))
        place.snapshot(snapshot_json(IMAGE, device_id="next"))
        await until(lambda: place.metrics.value("unacknowledged_messages") == 0 and place.received == 5)
        assert place.outcomes() == {"published": 3, "rejected": 2}
        for to, _, properties in place.seen:
            assert len(to.encode()) < 4096
            assert all(len(value) < 8192 for _, value in properties.user_properties)
        assert len(place.errors) == 2
        assert all(len(error["input"]["topic"]) == 1024 for error in place.errors)
        assert {error["error"]["code"] for error in place.errors} == {"PAYLOAD_INVALID"}


@pytest.mark.parametrize(
    "pairs", [(("a", ""),) * (MAX_PROPERTIES + 1), (("a", "x" * MAX_PROPERTIES_BYTES),)], ids=["many", "long"]
)
async def test_too_many_or_too_long_properties_are_answered_so(
    tmp_path: Path, pairs: tuple[tuple[str, str], ...]
) -> None:
    async with site(tmp_path) as place:
        place.snapshot(snapshot_json(IMAGE), properties=MessageProperties(user_properties=pairs))
        await place.answered(1)
        (error,) = place.errors
    assert error["error"]["code"] == "PAYLOAD_TOO_LARGE"
    assert "properties" in error["error"]["message"]
    assert str(MAX_PROPERTIES_BYTES) in error["error"]["fix"]
    assert place.outcomes() == {"rejected": 1}


async def test_a_defect_in_publishing_holds_back_no_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting_place: dict[str, Any]
) -> None:
    """Of a result, of an error and of a repeated answer."""
    accept, broken = MemoryBroker.accept, True

    def break_for_answers(broker: MemoryBroker, publication: Publication) -> None:
        if broken and b"ai_inference_" in publication.payload:
            raise RuntimeError("unforeseen")
        accept(broker, publication)

    again = snapshot_json(IMAGE, device_id="ok", metadata={"number": 1})
    async with site(tmp_path / "models", **waiting_place) as place:
        place.snapshot(again)
        await place.answered(1)
        monkeypatch.setattr(MemoryBroker, "accept", break_for_answers)
        place.snapshot(b"nonsense")
        place.snapshot(snapshot_json(IMAGE, device_id="other"))
        place.snapshot(again)
        await until(lambda: place.received == 4 and place.metrics.value("unacknowledged_messages") == 0)
        broken = False
        place.snapshot(snapshot_json(IMAGE, device_id="other", metadata={"number": 2}))
        await until(lambda: place.received == 5 and place.metrics.value("unacknowledged_messages") == 0)
        assert place.outcomes() == {"published": 3, "rejected": 1, "failed": 1}
