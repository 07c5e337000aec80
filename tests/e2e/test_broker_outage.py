"""A real Mosquitto that dies, and a gateway that dies while it is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.local.camera import frame
from gateway.local.scenes import TEST_SEEDS
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import RealSite, until

COUNT = 40
ROOMY = {"SNAPSHOT_DEADLINE_MS": "60000", "QUEUE_MAX_BYTES": str(64 * 2**20)}
"""So that every snapshot gets a result, however slow this machine is."""


def outcomes(site: RealSite) -> float:
    return site.metric("edge_gateway_snapshots_total")


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_broker_and_gateway_killed_in_one_outage_lose_nothing(
    shared_triton: EmbeddedTriton, tmp_path: Path, spool: bool
) -> None:
    """With a spool that holds for QoS 0 as well, once the answers are on disk."""
    images = [frame(TEST_SEEDS[10 + number], 0) for number in range(4)]
    with EmbeddedBroker(kind="mosquitto", save_each_change=True) as broker:
        settings = {"SPOOL_DIR": str(tmp_path / "spool")} if spool else {}
        with RealSite(broker, shared_triton, **ROOMY, **settings) as site:
            site.start()
            site.wait_ready()
            for number in range(COUNT):
                qos = 0 if spool and number % 2 else 1
                image = images[number % len(images)]
                site.send(json_snapshot(image, f"camera-{number % 5}", number=number), qos=qos)
            until(lambda: site.metric("edge_gateway_snapshots_received_total") >= COUNT, "all snapshots")
            broker.kill()
            if spool:
                waits = "edge_gateway_spool_messages"
                until(lambda: site.metric(waits) + outcomes(site) >= COUNT, "all other answers on disk")
                assert site.metric(waits) > 0, "the test needs answers that wait"
            # What the broker had taken, and not handed on to the viewer when it was killed, the viewer never sees.
            not_handed_on = max(0, int(outcomes(site)) - len(site.answers))
            site.process.kill()
            broker.start()
            site.connect()
            site.start()
            site.answered(COUNT - not_handed_on)
            until(lambda: site.metric("edge_gateway_spool_messages") == 0, "an empty spool")
            until(lambda: site.metric("edge_gateway_unacknowledged_messages") == 0, "the last acknowledgement")
        assert not site.errors
        assert any("resent" in result for result in site.results) == spool
