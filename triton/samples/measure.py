"""Sends all test scenes through a running gateway, both variants compared, and writes the model cards: `make measure`.

Ends with 1 where a sample model is not as good as it has to be. The gateway runs with a lower confidence threshold than
the model.yaml says, because average precision is the area under the whole curve; precision, recall and the agreement of
the variants are given at the threshold of the model.yaml.
"""

import asyncio
import contextlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx
import numpy as np
import recipe
import yaml
from card import write_model_card
from dataset import encode
from decode import Detection
from evaluate import accuracy, detection_figures

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.flow.compare import agree
from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import LOOPBACK, ChildProcess, free_ports
from gateway.local.scenes import TEST_SEEDS, Scene, render_scene
from gateway.local.tritonserver import EmbeddedTriton
from gateway.messages import Prediction, Publication
from gateway.terminal.lines import parse_message
from gateway.terminal.send import json_snapshot

LOW_THRESHOLD = 0.01
MIN_MAP50 = 0.90
MIN_ACCURACY = 0.95
MIN_AGREEMENT = 0.99
IN_FLIGHT = 4
READY_TIMEOUT_S = 120.0
VARIANTS = ("onnx", "torch")
TOPIC = "edge-ai/measure/plant/gw/camera/snapshots"


@dataclass
class Seen:
    """What the gateway said of one model: per scene and variant the predictions, and all times in ms."""

    predictions: dict[int, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    variant_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    total_ms: list[float] = field(default_factory=list)


def main() -> int:
    seeds = list(TEST_SEEDS[: recipe.SCENES["test"]])
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(running_gateway())
        scenes, seen = asyncio.run(ask(broker, seeds))
    seconds = time.monotonic() - began
    measured = (
        f"Measured by `make measure` on {time.strftime('%Y-%m-%d')}: {len(seeds)} test scenes through the running "
        f"gateway, both variants compared, in {seconds:.0f} s on {os.cpu_count()} cores ({platform.machine()}), "
        "embedded Triton, no GPU."
    )
    problems = [*card_of_detector(scenes, seen[recipe.DETECTOR_NAME], measured)]
    problems += card_of_classifier(scenes, seen[recipe.CLASSIFIER_NAME], measured)
    for problem in problems:
        print(f"NOT GOOD ENOUGH: {problem}", file=sys.stderr)
    return 1 if problems else 0


@contextlib.contextmanager
def running_gateway() -> Iterator[EmbeddedBroker]:
    """Broker, Triton and a gateway process with the low threshold."""
    with EmbeddedBroker() as broker, EmbeddedTriton(recipe.REPOSITORY) as triton, tempfile.TemporaryDirectory() as name:
        models = Path(name)
        for logical in (recipe.DETECTOR_NAME, recipe.CLASSIFIER_NAME):
            shutil.copytree(recipe.REPOSITORY / logical, models / logical)
        path = models / recipe.DETECTOR_NAME / "model.yaml"
        spec = yaml.safe_load(path.read_text())
        spec["inference"]["confidence_threshold"] = LOW_THRESHOLD
        path.write_text(yaml.safe_dump(spec))
        port = free_ports(1)[0]
        environment = {
            **os.environ,
            "AIO_BROKER_HOSTNAME": broker.host,
            "AIO_BROKER_TCP_PORT": str(broker.port),
            "MQTT_PROTOCOL": broker.protocol,
            "TRITON_GRPC_URL": triton.grpc_url,
            "MODEL_REPOSITORY": name,
            "HTTP_HOST": LOOPBACK,
            "HTTP_PORT": str(port),
            "SNAPSHOT_DEADLINE_MS": "120000",
        }
        gateway = ChildProcess("the gateway", [sys.executable, "-m", "gateway", "serve"], env=environment)
        gateway.start()
        try:
            gateway.wait_ready(lambda: _complete(port), READY_TIMEOUT_S, fix="See its log")
            yield broker
        finally:
            gateway.stop(10.0)


def _complete(port: int) -> bool:
    """Whether the gateway is ready and no variant is missing."""
    try:
        report = httpx.get(f"http://{LOOPBACK}:{port}/ready", timeout=2.0, trust_env=False).json()
    except httpx.HTTPError:
        return False
    return report["status"] == "ready" and not report["degraded"]


async def ask(broker: EmbeddedBroker, seeds: list[int]) -> tuple[dict[int, Scene], dict[str, Seen]]:
    """Send every scene to both models, a few at a time; returns the scenes' truths and what came back."""
    topics = ("edge-ai/measure/+/+/ai/inference/#", "edge-ai/measure/+/+/ai/errors")
    settings = MqttSettings(
        client_id="measure",
        host=broker.host,
        port=broker.port,
        protocol=broker.protocol,
        session_expiry_s=0,
        subscriptions=topics,
    )
    client = MqttBroker(settings)
    free = asyncio.Semaphore(IN_FLIGHT)
    scenes: dict[int, Scene] = {}
    seen: dict[str, Seen] = defaultdict(Seen)

    async def read() -> None:
        async for message in client.messages():
            client.acknowledge(message)
            body = parse_message(message.payload) or {}
            if body["message_type"] == "ai_inference_error":
                raise RuntimeError(f"the gateway refused {body['device_id']}: {body['error']}")
            if note(seen[body["model_name"]], body):
                free.release()

    async with asyncio.TaskGroup() as group:
        session = group.create_task(client.run())
        reading = group.create_task(read())
        for number, seed in enumerate(seeds):
            scene = await asyncio.to_thread(render_scene, seed, recipe.CAMERA_SIZE)
            image = await asyncio.to_thread(encode, scene, seed)
            scenes[seed] = scene
            for model in (recipe.DETECTOR_NAME, recipe.CLASSIFIER_NAME):
                await free.acquire()
                payload = json_snapshot(image, str(seed), model_name=model, backend_preference="dual")
                await client.publish(Publication(TOPIC, payload))
            if (number + 1) % 100 == 0:
                print(f"{number + 1} of {len(seeds)} scenes", flush=True)
        for _ in range(IN_FLIGHT):
            await free.acquire()
        reading.cancel()
        await client.close()
        session.cancel()
    return scenes, seen


def note(seen: Seen, body: Mapping[str, Any]) -> bool:
    """Keep what one message says; True for a comparison, which is the last message of a snapshot."""
    if body["message_type"] == "ai_inference_result":
        seen.total_ms.append(body["metadata"]["timings_ms"]["total"])
        return False
    entries = body["backends"]
    seen.predictions[int(body["device_id"])] = {name: entries[name]["predictions"] for name in VARIANTS}
    for name in VARIANTS:
        seen.variant_ms[name].append(entries[name]["inference_time_ms"])
    return True


def card_of_detector(scenes: Mapping[int, Scene], seen: Seen, measured: str) -> list[str]:
    """Write the detector's card; returns what is not good enough."""
    ids = {label: class_id for class_id, label in enumerate(recipe.DETECTOR_LABELS)}
    truths = [[Detection(ids[o.class_name], 1.0, o.bbox) for o in scene.objects] for scene in scenes.values()]
    rows, problems = [], []
    for variant in VARIANTS:
        found = [
            [Detection(p["class_id"], p["confidence"], tuple(p["bbox"])) for p in seen.predictions[seed][variant]]
            for seed in scenes
        ]
        sure = [[p for p in picture if p.confidence > recipe.CONFIDENCE_THRESHOLD] for picture in found]
        whole = detection_figures(truths, found, recipe.DETECTOR_LABELS)
        applied = detection_figures(truths, sure, recipe.DETECTOR_LABELS)
        rows.append((f"{variant}: mAP50", f"{whole.map50:.4f}"))
        for label, figures in whole.classes.items():
            at = applied.classes[label]
            figure = f"AP50 {figures.average_precision:.4f}; at confidence {recipe.CONFIDENCE_THRESHOLD}: "
            figure += f"precision {at.precision:.3f}, recall {at.recall:.3f} ({at.objects} objects)"
            rows.append((f"{variant}: {label}", figure))
        if whole.map50 < MIN_MAP50:
            problems.append(f"mAP50 of {variant} is {whole.map50:.4f}, below {MIN_MAP50}")
    share = np.mean([_same(seen.predictions[seed]) for seed in scenes])
    rows.append(("scenes on which both variants predict the same", f"{100 * share:.1f} %"))
    if share < MIN_AGREEMENT:
        problems.append(f"the variants agree on {share:.3f} of the scenes, below {MIN_AGREEMENT}")
    _write(recipe.DETECTOR_NAME, measured, [*rows, *_times(seen)])
    return problems


def card_of_classifier(scenes: Mapping[int, Scene], seen: Seen, measured: str) -> list[str]:
    """Write the classifier's card; returns what is not good enough."""
    truths = [recipe.CLASSIFIER_LABELS.index(scene.walkway) for scene in scenes.values()]
    rows, problems = [], []
    named: dict[str, list[int]] = {}
    for variant in VARIANTS:
        named[variant] = [seen.predictions[seed][variant][0]["class_id"] for seed in scenes]
        share = accuracy(truths, named[variant])
        rows.append((f"{variant}: accuracy", f"{share:.4f}"))
        if share < MIN_ACCURACY:
            problems.append(f"accuracy of {variant} is {share:.4f}, below {MIN_ACCURACY}")
    same = accuracy(named["onnx"], named["torch"])
    rows.append(("scenes on which both variants predict the same", f"{100 * same:.1f} %"))
    _write(recipe.CLASSIFIER_NAME, measured, [*rows, *_times(seen)])
    return problems


def _same(entries: Mapping[str, list[dict[str, Any]]]) -> bool:
    """Whether the variants agree at the threshold of the model.yaml, as the gateway itself compares them."""
    first, second = (
        tuple(
            Prediction(p["class"], p["class_id"], p["confidence"], tuple(p["bbox"]))
            for p in entries[variant]
            if p["confidence"] > recipe.CONFIDENCE_THRESHOLD
        )
        for variant in VARIANTS
    )
    return agree(first, second, recipe.IOU_THRESHOLD).match


def _times(seen: Seen) -> list[tuple[str, str]]:
    rows = [(f"{name}: inference", _percentiles(times)) for name, times in seen.variant_ms.items()]
    return [*rows, ("snapshot to result, both variants asked", _percentiles(seen.total_ms))]


def _percentiles(values: list[float]) -> str:
    p50, p95 = np.percentile(values, [50, 95])
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, {IN_FLIGHT} snapshots in flight"


def _write(model: str, measured: str, rows: list[tuple[str, str]]) -> None:
    path = recipe.REPOSITORY / model / "MODEL_CARD.md"
    write_model_card(path, {"model": model, "measured": measured, "rows": rows})
    print(f"\n{model}")
    for what, figure in rows:
        print(f"  {what:<50} {figure}")


if __name__ == "__main__":
    sys.exit(main())
