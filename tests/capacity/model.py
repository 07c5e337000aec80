"""What a site of so many cameras needs, and what is full first. docs/capacity.md says where each figure is from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.capacity.queueing import mean_wait_s, servers_for

MIB = 2**20
MOST_USED = 0.6
"""Of anything that snapshots queue for: beyond it waits grow fast, and nothing is left for a part that is away."""
BURST_USED = 0.25
"""Of SNAPSHOT_DEADLINE_MS, until the last of a burst of all cameras has its answer."""
DEADLINE_S = 10.0
UNEVEN = 1.25
"""How many times its share of a burst one replica may get."""

# --- measured: docs/performance.md
LOOP_MS = 1.1
"""Of a snapshot's CPU in the gateway, what is not shared by its decoding threads."""
CORES_PER_REPLICA = 4
PROCESS_MB = 150
SERIES_PER_GATEWAY = 255
"""With one model of two variants."""
SERIES_PER_CAMERA = 2
CAMERAS_WITH_SERIES = 1024
"""MOST_CAMERAS of the gateway."""
ANSWER_BYTES = 2000

# --- measured: python -m tests.capacity.broker
BROKER_MS_PER_MESSAGE = 0.01
BROKER_MS_PER_MB = 0.5
"""In and out once, without TLS."""
BROKER_TLS_FACTOR = 2.2

# --- assumed
SCRAPE_S = 15
BYTES_PER_SAMPLE = 2.0
"""Prometheus' own documentation says 1 to 2."""
RETENTION_DAYS = 30


@dataclass(frozen=True, slots=True)
class Model:
    """What one snapshot of a model costs; times in milliseconds."""

    name: str
    gateway_ms: float
    """CPU, of a 1080p JPEG."""
    triton_ms: float
    """Of one instance."""
    tensor_bytes: int
    placed: str
    """Where Triton runs it, and whether its time is measured or assumed."""


# The times on the GPU are published ones of a Jetson Orin Nano (TensorRT, FP16), which has less of everything than an
# RTX A2000: a bound from above until somebody measures one.
SAMPLE = Model("sample, 448x256", 5.3, 5.0, 448 * 256 * 3 * 4, "CPU core, measured")
YOLO_N = Model("YOLOv8n, 640x640", 6.1, 7.3, 640 * 640 * 3 * 4, "RTX A2000, assumed")
YOLO_S = Model("YOLOv8s, 640x640", 6.1, 11.4, 640 * 640 * 3 * 4, "RTX A2000, assumed")
YOLO_M = Model("YOLOv8m, 640x640", 6.1, 23.6, 640 * 640 * 3 * 4, "RTX A2000, assumed")
MODELS = (SAMPLE, YOLO_N, YOLO_S, YOLO_M)


@dataclass(frozen=True, slots=True)
class Site:
    """One place with a broker of its own."""

    cameras: int
    rate_per_camera: float = 1.0
    """Snapshots a second."""
    picture_bytes: int = 200_000
    base64: bool = False
    """In JSON; else the bytes of the picture as they are."""
    tls: bool = True

    @property
    def rate(self) -> float:
        """Snapshots a second."""
        return self.cameras * self.rate_per_camera

    @property
    def message_bytes(self) -> int:
        """Of one snapshot on the network."""
        return math.ceil(self.picture_bytes * 4 / 3) + 300 if self.base64 else self.picture_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a site needs."""

    site: Site
    model: Model
    gateway_cores: float
    """Busy on average."""
    replicas: int
    """Of CORES_PER_REPLICA cores."""
    instances: int
    """Of the model in Triton: as many CPU cores, or GPUs."""
    max_in_flight: int
    """Of each replica, and so on for the next three."""
    shared_memory_bytes: int
    queue_messages: int
    queue_bytes: int
    memory_mb: int
    broker_cores: float
    broker_in_mbit: float
    tensors_mbit: float
    """Between gateway and Triton where they share no memory."""
    sessions: int
    series: int
    prometheus_gb: float

    @property
    def wait_s(self) -> float:
        """Mean wait for a decoder of one's replica, and for any instance of Triton, with arrivals at random."""
        of_one = self.site.rate / self.replicas
        return mean_wait_s(of_one, self.model.gateway_ms / 1000, CORES_PER_REPLICA) + mean_wait_s(
            self.site.rate, self.model.triton_ms / 1000, self.instances
        )


def plan(site: Site, model: Model) -> Plan:
    """The least that serves this site, with no more than MOST_USED of it busy on average."""
    gateway_cores = site.rate * model.gateway_ms / 1000
    by_cores = math.ceil(servers_for(site.rate, model.gateway_ms / 1000, most_used=MOST_USED) / CORES_PER_REPLICA)
    by_loop = servers_for(site.rate, LOOP_MS / 1000, most_used=MOST_USED)
    replicas = max(by_cores, by_loop)
    instances = servers_for(site.rate, model.triton_ms / 1000, most_used=MOST_USED)
    # A burst of all cameras at once has to be through in a part of the deadline.
    instances = max(instances, math.ceil(site.cameras * model.triton_ms / 1000 / (BURST_USED * DEADLINE_S)))
    # So many keep the instances busy while others are decoded; twice as many may be somewhere else, with their answers.
    places = math.ceil(instances / replicas * (1 + model.gateway_ms / model.triton_ms)) + 1
    in_flight = max(8, 2 * places)
    burst = math.ceil(UNEVEN * site.cameras / replicas)
    # What a Mosquitto hands over at once to a replica that comes back: docs/replicas.md.
    waiting = max(64 if replicas == 1 else 256, burst)
    queue_bytes = max(8, math.ceil((burst if replicas == 1 else waiting) * site.picture_bytes / MIB)) * MIB
    shared_memory = max(16, math.ceil(places * model.tensor_bytes / MIB)) * MIB
    per_message_ms = BROKER_MS_PER_MESSAGE + site.message_bytes / 1e6 * BROKER_MS_PER_MB
    series = replicas * (SERIES_PER_GATEWAY + SERIES_PER_CAMERA * min(site.cameras, CAMERAS_WITH_SERIES))
    samples = series * RETENTION_DAYS * 86400 / SCRAPE_S
    return Plan(
        site=site,
        model=model,
        gateway_cores=gateway_cores,
        replicas=replicas,
        instances=instances,
        max_in_flight=in_flight,
        shared_memory_bytes=shared_memory,
        queue_messages=waiting,
        queue_bytes=queue_bytes,
        memory_mb=math.ceil(PROCESS_MB + (queue_bytes - 8 * MIB + shared_memory - 16 * MIB) / 1e6),
        broker_cores=site.rate * per_message_ms / 1000 * (BROKER_TLS_FACTOR if site.tls else 1),
        broker_in_mbit=site.rate * site.message_bytes * 8 / 1e6,
        tensors_mbit=site.rate * model.tensor_bytes * 8 / 1e6,
        sessions=site.cameras + replicas,
        series=series,
        prometheus_gb=samples * BYTES_PER_SAMPLE / 1e9,
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine for everything, as a site begins."""

    cores: int = 8
    accelerators: int = 1
    """Instances of a model on a GPU that run at once; a model on the CPU takes cores."""
    network_mbit: float = 1000


def used(site: Site, model: Model, machine: Machine) -> dict[str, float]:
    """How much of each part of the machine is busy on average, 1 being all of it; the fullest first."""
    needed = plan(site, model)
    on_cpu = "CPU" in model.placed
    triton = site.rate * model.triton_ms / 1000
    parts = {
        "cores": (needed.gateway_cores + needed.broker_cores + (triton if on_cpu else 0)) / machine.cores,
        "event loop of one process": site.rate * LOOP_MS / 1000,
        "broker's thread": needed.broker_cores,
        "network into the broker": needed.broker_in_mbit / machine.network_mbit,
    }
    if not on_cpu:
        parts["GPU"] = triton / machine.accelerators
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def most_cameras(model: Model, machine: Machine, **site: float) -> tuple[int, str]:
    """Cameras of one machine until its fullest part is busy for MOST_USED of the time, and that part."""
    of_one = used(Site(cameras=1, **site), model, machine)  # type: ignore[arg-type]
    part, share = next(iter(of_one.items()))
    return int(MOST_USED / share), part
