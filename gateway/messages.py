"""What travels: frozen records that change type from step to step.

Message -> Snapshot -> Job -> Prepared -> Answered -> Predicted -> Publications
A sensor's first steps are others: Message -> Reading -> (joins a window) -> Window -> Job.
Times named `*_at` are seconds of `time.monotonic()`; times named `*_ms` are durations in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gateway.errors import SnapshotError
    from gateway.models.catalog import ServedModel
    from gateway.traces import SnapshotSpan

Timestamp = int | float | str
"""A capture time exactly as the camera wrote it: epoch seconds, epoch milliseconds or RFC 3339."""

JSON_TYPE = "application/json"
"""The content type of everything that the gateway publishes."""


# --- at the broker -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageProperties:
    """The MQTT 5 properties that the gateway reads; all empty on MQTT 3.1.1."""

    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    message_expiry_s: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Oversize:
    """What is known of a message that was not kept."""

    size: int
    sha256: str
    properties: bool = False
    """Whether its MQTT properties were too many or too long; they are counted in `size` then, and not kept either."""


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message as the broker delivered it; `delivery` is the broker adapter's own handle for the ack.

    A message above the adapter's size limit arrives with `payload` empty and its true size and SHA-256 in `oversize`:
    it costs no memory and can be answered. `within_topic_limit` is None until RATE_LIMIT_PER_TOPIC is looked at.
    """

    topic: str
    payload: bytes
    received_at: float
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    properties: MessageProperties = field(default_factory=MessageProperties)
    delivery: object = None
    oversize: Oversize | None = None
    within_topic_limit: bool | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to publish."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    content_type: str | None = None
    correlation_data: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()


# --- the way of a snapshot ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a snapshot comes from: the named parts of its topic, the rest from the configuration."""

    business_unit: str
    facility: str
    gateway_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Which message this is about: enough to answer it, even when nothing in it can be read.

    `result_id` is also the handle of its acknowledgement. `trace` holds the W3C trace context of the message and
    `attributes` what it says as a CloudEvent beside the things that its answers say of themselves; both are carried on.
    Where the snapshot is traced, `span` is its own, and `trace` names that.
    """

    result_id: str
    device_id: str
    timestamp: Timestamp
    topic: str
    payload_bytes: int
    payload_sha256: str
    received_at: float
    place: Place
    model_name: str | None = None
    correlation_data: bytes | None = None
    response_topic: str | None = None
    trace: tuple[tuple[str, str], ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    span: SnapshotSpan | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Asked:
    """What a message asks for, whatever it carries."""

    origin: Origin
    metadata: Mapping[str, Any] = field(default_factory=dict)
    backend_preference: str | None = None
    priority: int = 0
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Snapshot(Asked):
    """One picture of one camera, still encoded."""

    image: bytes

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.image)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reading(Asked):
    """One measurement of one sensor: a value per channel, in the sensor's own unit."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Window(Asked):
    """The last readings of one sensor, (window, channels) float64, oldest first; `origin` is that of the newest."""

    readings: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self.readings.nbytes


@dataclass(frozen=True, slots=True)
class ReplyTopics:
    """Where the answers to one snapshot go; `response` is the topic that the message itself asked for."""

    result: str
    comparison: str
    error: str
    alert: str = ""
    response: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A snapshot, or a window of readings, with the model that shall answer it, by when, and where the answer goes."""

    snapshot: Snapshot | Window
    model: ServedModel
    deadline_at: float
    topics: ReplyTopics

    @property
    def size(self) -> int:
        """Bytes that this job holds while it waits."""
        return self.snapshot.size


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the picture, upright and whole, lies in the model's input: input = picture * scale + offset, in pixels."""

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    box: tuple[float, float, float, float] | None = None
    """The tile that the input shows, [x1, y1, x2, y2] in pixels of the picture; None: all of it."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedInput:
    """The input tensors of one variant by name, with an entry for each tile; readings have no `geometries`."""

    tensors: Mapping[str, NDArray[Any]]
    geometries: tuple[Geometry, ...] = ()

    @property
    def count(self) -> int:
        """How many pictures, or windows, the model is asked about."""
        return len(next(iter(self.tensors.values())))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A job with the input of every variant that may be asked; equal inputs are one object."""

    job: Job
    inputs: Mapping[str, PreparedInput]
    queued_ms: float
    preprocess_ms: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Which variant answers and why; `compared` are asked for the comparison only."""

    policy: str
    reason: str
    primary: str
    fallback: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    passed_over: bool = False
    """Whether another variant was meant, which is not asked: it does not serve, or fails again and again."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What one variant said: for each tile its output tensors by role, without the batch axis; or its error."""

    variant: str
    infer_ms: float
    model_version: str = ""
    outputs: tuple[Mapping[str, NDArray[Any]], ...] = ()
    error: SnapshotError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A job with the answer of every variant that was asked; `selection.primary` names one without error."""

    job: Job
    inputs: Mapping[str, PreparedInput]
    selection: Selection
    answers: Mapping[str, Answer]
    queued_ms: float
    preprocess_ms: float


@dataclass(frozen=True, slots=True)
class Outline:
    """The shape of one object: closed polygons of [x, y] corners, in pixels of the original picture."""

    polygons: tuple[tuple[tuple[float, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Rle:
    """The shape of one object as COCO's compressed run-length encoding of a (height, width) mask of the picture."""

    height: int
    width: int
    counts: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One detection or class; `bbox` is (x1, y1, x2, y2) in pixels of the original picture."""

    class_name: str
    class_id: int
    confidence: float
    bbox: tuple[float, float, float, float] | None = None
    mask: Outline | Rle | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VariantResult:
    """What one variant sees, or why it could not say."""

    variant: str
    model_version: str
    infer_ms: float
    predictions: tuple[Prediction, ...] = ()
    score: float | None = None
    """How unusual the whole is, 0..1, as a model for anomalies says; above 0.5 is unusual."""
    values: tuple[float, ...] | None = None
    """The numbers of a regression."""
    error: SnapshotError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """A job with the predictions of every variant that was asked; `picture` is its width and height, if it has one."""

    job: Job
    picture: tuple[int, int] | None
    selection: Selection
    results: Mapping[str, VariantResult]
    queued_ms: float
    preprocess_ms: float
    postprocess_ms: float

    @property
    def primary(self) -> VariantResult:
        """The result that is published as the answer."""
        return self.results[self.selection.primary]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two variants see the same; counts of detections, IoU and confidence in 0..1."""

    matched: int
    only_first: int
    only_second: int
    class_flips: int
    mean_iou: float | None
    max_confidence_delta: float | None
    same_values: bool = True

    @property
    def match(self) -> bool:
        """True when each detection of the one has its counterpart, of the same class, in the other."""
        return self.same_values and not (self.only_first or self.only_second or self.class_flips)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two variants on the same snapshot; `agreement` is None when one of them failed."""

    first: VariantResult
    second: VariantResult
    agreement: Agreement | None


# --- at Triton ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model as Triton describes it; -1 is a free dimension, batch included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """What a loaded model takes and gives; `max_batch_size` 0 means that shapes have no batch axis."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    on_gpu: bool | None = None
    """Whether Triton runs it on a GPU; None where it does not say."""


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """One question to one model; `version` empty means the highest that is ready.

    `trace` is the W3C trace context that the server's own spans belong under; where it is empty it makes none.
    `tenant` is the business unit that asks, which may decide who of several servers answers; all do to a `warm_up`.
    """

    model: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
    timeout_s: float
    version: str = ""
    request_id: str = ""
    trace: tuple[tuple[str, str], ...] = ()
    tenant: str = ""
    warm_up: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class InferResponse:
    """The answer: arrays by output name, in the shapes that the model gave."""

    outputs: Mapping[str, NDArray[Any]]
    model_version: str
