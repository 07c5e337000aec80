"""Two cameras that look at rendered scenes: one publishes JSON with base64, one the raw JPEG. And a thermometer.

Run as a process of its own (`python -m gateway.local.camera`), so that rendering does not disturb what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import time

import msgspec

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.config_reading import load_settings
from gateway.local.scenes import TEST_SEEDS, render_sequence
from gateway.local.thermometer import TEST_SEEDS as THERMOMETER_SEEDS
from gateway.local.thermometer import Thermometer
from gateway.messages import Publication
from gateway.terminal.send import json_snapshot
from gateway.topics import fill

FRAMES_PER_SCENE = 12
JPEG_QUALITY = 88
READINGS_A_SECOND = 8.0
"""Each stands for five minutes of a hall."""
FAULT_EVERY = 96
"""Healthy readings between two faults."""
JSON_DEVICE = "camera-json"
SENSOR_DEVICE = "thermometer-1"
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


def reading_publication(celsius: float) -> Publication:
    """One reading of the thermometer."""
    topic = "edge-ai/{business_unit}/{facility}/{gateway_id}/sensors/" + SENSOR_DEVICE
    body = {"sensor_id": SENSOR_DEVICE, "timestamp": round(time.time(), 3), "values": [celsius]}
    return Publication(fill(topic, load_settings().place), msgspec.json.encode(body))


async def run_thermometer(broker: MqttBroker) -> None:
    """Publish readings, a fault now and then, for ever."""
    thermometer = Thermometer(THERMOMETER_SEEDS[0], anomaly_every=FAULT_EVERY)
    while True:
        await broker.publish(reading_publication(thermometer.read()))
        await asyncio.sleep(1 / READINGS_A_SECOND)


async def run_cameras(broker: MqttBroker, rate: float, *, thermometer: bool) -> None:
    """Publish frames of both cameras in turn, `rate` of them a second, and readings if asked for, for ever."""
    async with asyncio.TaskGroup() as group:
        group.create_task(broker.run(), name="broker")
        if thermometer:
            group.create_task(run_thermometer(broker), name="thermometer")
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
    parser.add_argument("--thermometer", action="store_true", help="publish temperatures too")
    given = parser.parse_args()
    settings = MqttSettings(
        client_id="demo-cameras", host=given.host, port=given.port, protocol=given.protocol, session_expiry_s=0
    )
    asyncio.run(run_cameras(MqttBroker(settings), given.rate, thermometer=given.thermometer))


if __name__ == "__main__":
    main()
