"""Two cameras that look at rendered scenes: one publishes JSON with base64, one the raw JPEG.

Run as a process of its own (`python -m gateway.local.camera`), so that rendering does not disturb what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import time

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.config import load_settings
from gateway.local.scenes import TEST_SEEDS, render_sequence
from gateway.messages import Publication
from gateway.terminal.send import json_snapshot
from gateway.topics import fill

FRAMES_PER_SCENE = 12
JPEG_QUALITY = 88
JSON_DEVICE = "camera-json"
RAW_DEVICE = "camera-raw"


def frame(seed: int, number: int) -> bytes:
    """One frame as the bytes of a 1920x1080 JPEG."""
    buffer = io.BytesIO()
    scene = render_sequence(seed + number // FRAMES_PER_SCENE, number % FRAMES_PER_SCENE)
    scene.image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def json_publication(image: bytes) -> Publication:
    """The frame as the first camera sends it."""
    topic = fill("edge-ai/{business_unit}/{facility}/{gateway_id}/camera/snapshots", load_settings().place)
    metadata = {"location": "assembly-line-3", "resolution": "1920x1080"}
    return Publication(topic, json_snapshot(image, JSON_DEVICE, metadata=metadata))


def raw_publication(image: bytes) -> Publication:
    """The frame as the Media Connector sends it."""
    return Publication(f"azure-iot-operations/data/{RAW_DEVICE}/snapshot", image)


async def run_cameras(broker: MqttBroker, rate: float) -> None:
    """Publish frames of both cameras in turn, `rate` of them a second, for ever."""
    async with asyncio.TaskGroup() as group:
        group.create_task(broker.run(), name="broker")
        started = time.monotonic()
        for number in itertools.count():
            json_camera = number % 2 == 0
            seed = TEST_SEEDS[0 if json_camera else len(TEST_SEEDS) // 2]
            image = await asyncio.to_thread(frame, seed, number // 2)
            await broker.publish(json_publication(image) if json_camera else raw_publication(image))
            await asyncio.sleep(max(0.0, started + (number + 1) / rate - time.monotonic()))


def main() -> None:
    """Command line of the camera process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--protocol", choices=("5", "3.1.1"), default="5")
    parser.add_argument("--rate", type=float, default=4.0, help="frames a second, both cameras together")
    given = parser.parse_args()
    settings = MqttSettings(
        client_id="demo-cameras", host=given.host, port=given.port, protocol=given.protocol, session_expiry_s=0
    )
    asyncio.run(run_cameras(MqttBroker(settings), given.rate))


if __name__ == "__main__":
    main()
