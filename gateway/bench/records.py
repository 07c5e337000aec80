"""What a run has found, as it is written to the JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.bench.plan import Case, Plan


@dataclass(frozen=True, slots=True)
class Spread:
    """The same thing measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class FrameSet:
    """The JPEGs of one resolution."""

    resolution: str
    width: int
    height: int
    quality: int
    mean_kb: float
    """Of a file, in 1000 bytes."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process and its descendants in MB, 10^6 bytes, as the kernel counts it."""

    resident: float = 0.0
    """All of the parts below, and what is mapped of files."""
    proportional: float = 0.0
    """The same, with what several processes hold divided among them."""
    anonymous: float = 0.0
    """Of its own: heap and stacks."""
    shared: float = 0.0
    """Shared memory, the slots of the tensors: only what was touched counts."""
    peak: float = 0.0
    """The most that was resident at any time since the start; of several processes the sum of that."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One side of a closed loop: answers a second, and CPU milliseconds a snapshot of every process involved."""

    rate: Spread
    cpu_ms: Spread
    """Of the contestant itself, with its children."""
    others_ms: Mapping[str, float]
    """Triton, the broker and the driver, medians."""
    memory: Memory
    """When its last closed loop ended."""
    snapshots: int
    errors: int
    unanswered: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """One case in a closed loop: the gateway and the script in turn, and what decoding alone takes."""

    case: Case
    contestants: Mapping[str, Contestant]
    ratio: Spread | None
    """Throughput of the gateway over that of the script, pair by pair."""
    decode_ms: float | None
    """CPU milliseconds of decoding these frames to the smallest size that is enough for the model's input."""
    gateway_decode_ms: float | None
    """The same to the size that the gateway decodes to, which may be the next larger eighth, for accuracy."""
    cpu_over_decode: float | None
    """CPU of the gateway a snapshot over `decode_ms`."""
    cpu_over_gateway_decode: float | None
    """CPU of the gateway a snapshot over `gateway_decode_ms`."""


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Latency of one contestant at a fixed rate, from the moment at which each snapshot was due; milliseconds."""

    contestant: str
    case: Case
    rate: float
    snapshots: int
    errors: int
    percentiles: Mapping[str, float]
    curve: Sequence[tuple[float, float]]
    own_percentiles: Mapping[str, float] | None
    """The gateway's own share: the total of its timings without the time in Triton."""
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class TritonAlone:
    """Requests with a finished tensor by tritonclient, at each concurrency."""

    model: str
    transport: str
    rates: Mapping[int, float]
    best_concurrency: int
    best_rate: float
    triton_ms: float
    """CPU of Triton a request at the best concurrency."""
    client_ms: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """CPU milliseconds of decoding one JPEG."""

    resolution: str
    size: int
    width: int
    height: int
    """Of the part of the model's input that the picture fills."""
    full_ms: float
    smallest_ms: float
    """To the smallest size that libjpeg offers and that is enough."""
    gateway_ms: float
    """To the size that the gateway decodes to."""


@dataclass(frozen=True, slots=True)
class Dual:
    """CPU a snapshot of the gateway and of Triton at the same rate, for one variant and for both."""

    case: Case
    rate: float
    gateway_single_ms: Spread
    gateway_dual_ms: Spread
    triton_single_ms: float
    triton_dual_ms: float
    inferences_single: float
    """Inferences that Triton counted for a snapshot."""
    inferences_dual: float
    added: Spread
    """What dual adds to the gateway's CPU, as a share: 0.3 is 30 % more."""


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process to ready, with Triton up and the models loaded; memory then."""

    seconds: Spread
    memory: Memory


@dataclass(frozen=True, slots=True)
class Steady:
    """Memory of a gateway of its own after a closed loop with one model. Minutes at most: not an hour."""

    case: Case
    seconds: float
    snapshots: int
    memory: Memory


@dataclass(frozen=True, slots=True)
class Pinned:
    """The sample model behind the gateway and alone, snapshots a second, and the one over the other."""

    placement: str
    """Who ran on which cores."""
    apart: bool
    """Whether the gateway and Triton had a core each and nothing else ran on Triton's."""
    gateway_rate: Spread
    triton_rate: Spread
    share: Spread
    triton_ms: float
    """CPU of Triton an inference behind the gateway."""
    triton_alone_ms: float
    """The same where Triton is asked directly."""
    busy: Mapping[str, float]
    """Cores that each process kept busy behind the gateway; 1 is a whole core."""
    triton_alone_busy: float


@dataclass(frozen=True, slots=True)
class Batching:
    """50 cameras in a closed loop on the sample model, with and without Triton's dynamic batching."""

    dynamic: bool
    max_queue_delay_us: int | None
    """None: the configuration names none."""
    max_in_flight: str
    """MAX_IN_FLIGHT of the gateway: with the usual 8 no batch of 8 can wait while another is executed."""
    rate: Spread
    mean_batch: float
    triton_ms: float
    failed: int
    """Snapshots that were answered with an error; they count in neither rate nor CPU."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Mean average precision over the classes, 0 to 1."""

    map50: float
    map50_95: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What the sample detector finds with scaled decoding, as it is served, and with full decoding."""

    scenes: int
    scaled: Precision
    full: Precision

    @property
    def difference(self) -> Precision:
        """What scaled decoding gains; below zero: loses."""
        return Precision(self.scaled.map50 - self.full.map50, self.scaled.map50_95 - self.full.map50_95)

    @property
    def largest_difference(self) -> float:
        """Of the two figures, whichever way."""
        return max(abs(self.difference.map50), abs(self.difference.map50_95))


@dataclass(frozen=True, slots=True)
class Target:
    """One figure to reach."""

    what: str
    target: str
    measured: str
    reached: bool | None
    """None: not measured in this run."""


@dataclass(slots=True)
class Report:
    """All of it; what was not measured is empty."""

    machine: Mapping[str, object]
    plan: Plan
    frames: list[FrameSet] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    open_loop: list[OpenLoop] = field(default_factory=list)
    triton: list[TritonAlone] = field(default_factory=list)
    decoder: list[Decoding] = field(default_factory=list)
    dual: Dual | None = None
    start: Start | None = None
    memory: list[Steady] = field(default_factory=list)
    pinned: list[Pinned] = field(default_factory=list)
    batching: list[Batching] = field(default_factory=list)
    accuracy: Accuracy | None = None
    not_measured: list[str] = field(default_factory=list)
    """What was asked for and could not be measured, with the reason."""
    failed: list[str] = field(default_factory=list)
    """Steps that ended in an error."""
    interrupted: bool = False
    seconds: float = 0.0
    targets: list[Target] = field(default_factory=list)
