"""Fuzzed messages at a whole gateway: each is answered or counted, and the next good snapshot is served."""

from __future__ import annotations

import tracemalloc
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.flow.builders import SNAPSHOT_TOPIC, jpeg, snapshot_json
from tests.fuzz.mutations import corpus, mutate
from tests.harness import Site, site, until

SEED = 11
MESSAGES = 600
EVERY_GOOD = 50
SENSOR_TOPIC = "edge-ai/bu/plant/gw/sensors/t-1"


def _served(place: Site, device: str) -> bool:
    return any(item["device_id"] == device for item in place.results)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow; in service pictures.py sees to that
async def test_every_fuzzed_message_gets_one_outcome_and_the_next_snapshot_is_served(tmp_path: Path) -> None:
    random = Random(SEED)
    jsons = [data.partition(b"\n")[2] for data in corpus("ingest").values()]
    kept = jsons + list(corpus("pictures").values())
    async with site(tmp_path, repeat_window_s=0) as place:
        good = 0
        for number in range(1, MESSAGES + 1):
            topic = SENSOR_TOPIC if number % 7 == 0 else SNAPSHOT_TOPIC
            place.snapshot(mutate(random, random.choice(kept), kept), topic, qos=number % 2)
            if number % EVERY_GOOD == 0:
                device = f"good-{number}"
                place.snapshot(snapshot_json(jpeg(), device_id=device))
                await until(partial(_served, place, device), device)
                good += 1
        sent = MESSAGES + good
        await until(lambda: place.received == sent and sum(place.outcomes().values()) == sent, f"{sent} outcomes")
        codes = {item["error"]["code"] for item in place.errors}
        assert "INTERNAL_ERROR" not in codes
        assert {"PAYLOAD_INVALID", "IMAGE_UNDECODABLE"} <= codes
        assert all(item["error"]["fix"] for item in place.errors)


@pytest.mark.parametrize("refused", [True, False])
async def test_nothing_keeps_a_large_message_after_its_turn(tmp_path: Path, refused: bool) -> None:
    size = 4_000_000
    padding = "m" * size
    async with site(tmp_path, repeat_window_s=0) as place:
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(1)
        tracemalloc.start()
        try:
            place.snapshot(snapshot_json(jpeg(), **{"model_name" if refused else "unknown_key": padding}))
            await place.answered(2)
            assert len(place.errors) == refused
            assert tracemalloc.get_traced_memory()[1] > size
            await until(lambda: tracemalloc.get_traced_memory()[0] < size / 2, "the memory of the message")
        finally:
            tracemalloc.stop()
