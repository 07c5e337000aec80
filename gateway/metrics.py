"""Every metric of the gateway: name, help, and the remedy when it looks wrong; docs/metrics.md is made from it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

from gateway.camera_counts import CameraCounts
from gateway.errors import Outcome

PREFIX = "edge_gateway_"
LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_OF_HISTOGRAM = ("_bucket", "_count", "_sum")


@dataclass(frozen=True, slots=True)
class Meaning:
    """One entry of the catalogue."""

    name: str
    kind: str
    help: str
    remedy: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = _SECONDS
    values: tuple[str, ...] = ()
    """All values of the last label, where they are known: their samples are there from the start, those with `model`
    as soon as the model is known. Prometheus' increase() does not see the first event of one that begins with it."""
    of_camera: bool = False
    """Whether `CameraCounts` makes its samples, which are bounded in number."""


CATALOGUE = (
    Meaning("snapshots_received_total", "counter", "Snapshots that arrived from the broker.",
            "Zero: check MQTT_INPUT_TOPICS against what the cameras publish."),
    Meaning("snapshots_total", "counter", "Snapshots by outcome; their sum is snapshots_received_total when idle.",
            "Growing dropped_*: too many frames for Triton. rejected or failed: see snapshot_errors_total.",
            ("outcome",), values=tuple(Outcome)),
    Meaning("snapshot_errors_total", "counter", "Error messages by their stable code.",
            "Look the code up in docs/errors.md.", ("code",)),
    Meaning("camera_snapshots_total", "counter",
            "Snapshots of each camera by outcome, those that it has had; of a camera beyond 1024 as `other`.",
            "Not published: the outcome says why, the log has the device_id. `other` growing: somebody invents device "
            "ids, or there are more cameras than are told apart.", ("device_id", "outcome"), of_camera=True),
    Meaning("camera_last_snapshot_timestamp_seconds", "gauge",
            "When the last snapshot of a camera arrived that has its answer; forgotten after a day of silence.",
            "Long ago: the camera, its connector or its network is down, or it publishes elsewhere.",
            ("device_id",), of_camera=True),
    Meaning("ignored_messages_total", "counter", "Messages that are not answered, by reason.",
            "retained: a camera publishes with the retain flag; switch it off there. worker_away: sent with QoS 0 "
            "while the worker of its camera was away or hung; send with QoS 1 what may not be lost.", ("reason",),
            values=("retained", "worker_away")),
    Meaning("repeats_total", "counter", "Snapshots that came again and were answered as before.",
            "Growing steadily: a camera sends the same frame again, or acknowledgements get lost on the way."),
    Meaning("dead_letters_total", "counter",
            "Payloads for DEAD_LETTER_TOPIC; outcome is sent, limited, refused or late.",
            "limited: more failed than DEAD_LETTERS_PER_MINUTE lets through. refused, late: the log says why.",
            ("outcome",), values=("sent", "limited", "refused", "late")),
    Meaning("step_duration_seconds", "histogram", "Time a snapshot spends in each step of the flow.",
            "queued high: Triton is the bottleneck. preprocess high: large pictures. publish high: a slow broker.",
            ("step",)),
    Meaning("snapshot_duration_seconds", "histogram", "From arrival to the acknowledged result.",
            "Compare with step_duration_seconds to see which step takes it.", ("model",)),
    Meaning("inference_duration_seconds", "histogram", "Time until a variant answered, as the gateway sees it.",
            "Compare with nv_inference_compute_infer_duration_us of Triton.", ("model", "variant")),
    Meaning("inference_errors_total", "counter", "Variants that failed on a snapshot, by code.",
            "See Triton's log for the model.", ("model", "variant", "code")),
    Meaning("inference_in_flight", "gauge", "Snapshots that are being decoded for a variant, or answered by it.",
            "At inference_concurrency_limit: the variant is the bottleneck. Below it although snapshots wait: other "
            "models hold the places; raise MAX_IN_FLIGHT.", ("model", "variant")),
    Meaning("inference_concurrency_limit", "gauge",
            "Snapshots that may be in flight for a variant at once, as far as there is memory for its tensors.",
            "1 for long: it times out again and again, or SHARED_MEMORY_MAX_BYTES holds no more of its inputs. 2: more "
            "at once bring nothing; give it more instances or a faster GPU. At MAX_IN_FLIGHT: raise that.",
            ("model", "variant")),
    Meaning("tensor_transfers_total", "counter", "Requests to Triton by the way of their tensors.",
            "bytes for large tensors: shared_memory_fallbacks_total says why.", ("transport",),
            values=("shared_memory", "bytes")),
    Meaning("shared_memory_fallbacks_total", "counter",
            "Tensors that went in the request instead of through shared memory: unavailable, unproven, full, lost.",
            "unavailable: Triton does not see /dev/shm of the gateway; the log says why. full: raise "
            "SHARED_MEMORY_MAX_BYTES, or give /dev/shm more room. unproven, lost: a few after each start of Triton are "
            "usual.", ("reason",),
            values=("unavailable", "unproven", "full", "lost")),
    Meaning("shared_memory_slots", "gauge", "Pieces of shared memory for tensors: free, leased or quarantined.",
            "Many quarantined: requests time out, and Triton may still read their tensors.", ("state",),
            values=("free", "leased", "quarantined")),
    Meaning("shared_memory_bytes", "gauge", "Size of all pieces of shared memory for tensors.",
            "Near SHARED_MEMORY_MAX_BYTES: further tensors go in the request."),
    Meaning("fallbacks_total", "counter",
            "Snapshots answered by another variant than the chosen one, which failed or did not serve.",
            "See model_ready and inference_errors_total of the variant that was to answer.", ("model", "variant")),
    Meaning("circuit_breaker_state", "gauge", "1 for the state that the breaker of a variant is in, 0 for the others.",
            "open: the variant fails again and again; see inference_errors_total and Triton's log.",
            ("model", "variant", "state")),
    Meaning("circuit_breaker_opened_total", "counter", "How often a variant was given up for a while.",
            "Growing: the variant comes and goes; look at Triton's log and memory.", ("model", "variant")),
    Meaning("comparisons_total", "counter", "Comparisons of two variants; match is true, false or unknown.",
            "false growing: the variants disagree; look at the comparison topic.", ("model", "match"),
            values=("true", "false", "unknown")),
    Meaning("predictions_total", "counter", "Predictions published, by class.",
            "Zero for long: check confidence_threshold and the camera's view.", ("model", "class")),
    Meaning("alerts_total", "counter", "Alerts that were published; event is start or end.",
            "Many for one event: raise alerts.hold_off_s or alerts.after_frames in model.yaml.", ("model", "event")),
    Meaning("forgotten_total", "counter", "What was given up to make room: a sensor's window, or an open alert.",
            "Growing: more sensors or alerting cameras than are kept, or somebody invents device ids.", ("what",),
            values=("window", "alert")),
    Meaning("queue_messages", "gauge", "Snapshots waiting for room at their variant, or a free place in flight.",
            "Near QUEUE_MAX_MESSAGES: more frames arrive than Triton answers."),
    Meaning("queue_bytes", "gauge", "Encoded bytes that wait in the queue.",
            "Near QUEUE_MAX_BYTES: send smaller pictures or fewer."),
    Meaning("unacknowledged_messages", "gauge", "Messages held unacknowledged until their answer is published.",
            "Stuck above zero without traffic: the broker does not acknowledge results."),
    Meaning("outbox_bytes", "gauge", "Bytes of answers in memory that wait for the broker.",
            "Growing: the broker is away or slow; see broker_connected, spool_events_total and the log."),
    Meaning("spool_messages", "gauge", "Answers on disk that wait for the broker.",
            "Not falling while the broker is connected: see the log; the disk may be full or read-only."),
    Meaning("spool_bytes", "gauge", "Size of the answers on disk.",
            "Near SPOOL_MAX_BYTES: the broker is away too long."),
    Meaning("spool_events_total", "counter",
            "What happened to answers on disk: stored, resent, refused, full, failed; or to all of them: damaged.",
            "full: raise SPOOL_MAX_BYTES. failed: the disk is full or broken; the log says what. damaged: its file was "
            "set aside, what was in it is not sent; see docs/runbook.md.", ("event",),
            values=("stored", "resent", "refused", "full", "failed", "damaged")),
    Meaning("broker_connected", "gauge", "1 while the broker session is up and subscribed.",
            "0: see the log for the broker's reason."),
    Meaning("broker_events_total", "counter", "What happened to the broker session.",
            "session_lost: the broker forgot the session; raise its persistence and AIO_MQTT_SESSION_EXPIRY. "
            "credentials_renewed, asked_again: no remedy is needed.",
            ("event",),
            values=("connected", "lost", "session_lost", "unreachable", "connect_refused", "subscribe_refused",
                    "taken_over", "credentials_renewed", "asked_again", "inbox_full")),
    Meaning("certificate_expiry_timestamp_seconds", "gauge",
            "When the first certificate in the file of a setting ends; NaN if it cannot be read.",
            "Within days: renew the file in place; no restart is needed.", ("setting",)),
    Meaning("triton_ready", "gauge", "1 while Triton can be reached and is live.",
            "0: check that Triton runs and that TRITON_GRPC_URL names it."),
    Meaning("triton_endpoint_up", "gauge",
            "1 while an endpoint takes requests for all its models; of several Tritons alone.",
            "0: it is away or catching up; /ready and the log say which and why.", ("endpoint",)),
    Meaning("triton_endpoint_outstanding", "gauge", "Requests under way at an endpoint; of several Tritons alone.",
            "Much higher at one: it is slower than the others, or hangs.", ("endpoint",)),
    Meaning("triton_endpoint_requests_total", "counter",
            "Requests to an endpoint by outcome; of several Tritons alone. One repeated elsewhere counts at both.",
            "unavailable: it cannot be reached. not_served: it has lost a model. timeout: it is overloaded or hangs.",
            ("endpoint", "outcome")),
    Meaning("triton_endpoint_ejections_total", "counter",
            "How often an endpoint was given up until it answers again; of several Tritons alone.",
            "Growing: it comes and goes; the log says why, see also Triton's own log and the network.", ("endpoint",)),
    Meaning("model_ready", "gauge", "1 while the variant of the model answers.",
            "0: /ready gives the reason.", ("model", "variant")),
    Meaning("model_version", "gauge", "The version of the model that serves; 0 where Triton decides which one.",
            "Not the one you dropped: `edge-gateway models list` says where it stands.", ("model",)),
    Meaning("model_repairs_total", "counter",
            "What was put right at Triton: lost, it served it no more; strange, nobody here had loaded it.",
            "Growing: somebody else loads and unloads models there, or a model crashes.", ("model", "what"),
            values=("lost", "strange")),
    Meaning("rollouts_total", "counter", "Rollouts by ending: promoted, refused or rolled_back.",
            "refused or rolled_back: `edge-gateway models list` gives the reason.", ("model", "ending"),
            values=("promoted", "refused", "rolled_back")),
    Meaning("rollout_step_duration_seconds", "histogram", "Time that each step of a rollout took.",
            "loaded high: large models, or engines being built. canary high: few snapshots.", ("model", "step"), LONG),
    Meaning("rollout_percent", "gauge", "Percentage of the cameras that a new version answers; 0 without a canary.",
            "Above 0 for long: too few snapshots for a verdict; `edge-gateway models promote` ends it.", ("model",)),
    Meaning("trial_answers_total", "counter", "Answers of versions that were tried, in shadow or as canary.",
            "No remedy is needed; errors are counted in trial_errors_total.", ("model",)),
    Meaning("trial_errors_total", "counter", "Answers of versions that were tried and failed, by code.",
            "The new version is at fault; the stable one has answered in its place.", ("model", "code")),
    Meaning("model_commands_total", "counter", "Commands to models over HTTP and MQTT; outcome is ok or a code.",
            "UNAUTHORIZED growing: somebody tries without the token.", ("action", "outcome")),
    Meaning("http_refusals_total", "counter", "HTTP requests refused: unauthorized, limited, too_large, slow, crowded.",
            "unauthorized growing: somebody guesses the token; from 10 failures a minute on he has to wait.",
            ("reason",), values=("unauthorized", "limited", "too_large", "slow", "crowded")),
    Meaning("log_events_total", "counter", "Events of the log by level, with those that were folded away.",
            "error growing: look into the log; docs/log-events.md says what to do about each event.",
            ("level",), values=("debug", "info", "warning", "error")),
    Meaning("roller", "gauge", "1 while this gateway is the one that runs the rollouts of its model volume.",
            "0 on all of them: none reaches its Triton, or the log says why the lease cannot be had."),
    Meaning("config_last_reload_successful", "gauge", "1 while the configuration that was read last holds.",
            "0: the log says what is wrong with it; the one before holds."),
    Meaning("config_last_reload_success_timestamp_seconds", "gauge", "When the configuration that holds was read.",
            "Older than your last change: send SIGHUP, and look into the log."),
    Meaning("workers", "gauge", "Processes that answer snapshots now.",
            "Below WORKERS: worker_restarts_total and the log say what ended them."),
    Meaning("worker_restarts_total", "counter", "Workers that ended by themselves and were started again.",
            "Growing: the log says how they end; one that is killed has too little memory."),
    Meaning("ready", "gauge", "1 while /ready says so.", "0: /ready gives the reasons."),
    Meaning("trace_spans_total", "counter", "Spans for the OpenTelemetry receiver, by outcome: sent or dropped.",
            "dropped growing: the receiver is away or too slow, the log says which; or lower OTEL_TRACES_SAMPLER_ARG.",
            ("outcome",), values=("sent", "dropped")),
    Meaning("build_info", "gauge", "Always 1; the version is a label.", "No remedy is needed.", ("version",)),
)  # fmt: skip


class Timer:
    """A stretch of time in a `with` block, for a histogram; a few on each snapshot's way, so no generator."""

    __slots__ = ("_histogram", "_started")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_error: object) -> None:
        self._histogram.observe(time.monotonic() - self._started)


class Metrics:
    """The catalogue as live metrics in a registry of their own; one attribute per entry, named without `_total`."""

    snapshots_received: Counter
    snapshots: Counter
    snapshot_errors: Counter
    cameras: CameraCounts
    ignored_messages: Counter
    repeats: Counter
    dead_letters: Counter
    step_duration_seconds: Histogram
    snapshot_duration_seconds: Histogram
    inference_duration_seconds: Histogram
    inference_errors: Counter
    inference_in_flight: Gauge
    inference_concurrency_limit: Gauge
    tensor_transfers: Counter
    shared_memory_fallbacks: Counter
    shared_memory_slots: Gauge
    shared_memory_bytes: Gauge
    fallbacks: Counter
    circuit_breaker_state: Gauge
    circuit_breaker_opened: Counter
    comparisons: Counter
    predictions: Counter
    alerts: Counter
    forgotten: Counter
    queue_messages: Gauge
    queue_bytes: Gauge
    unacknowledged_messages: Gauge
    outbox_bytes: Gauge
    spool_messages: Gauge
    spool_bytes: Gauge
    spool_events: Counter
    broker_connected: Gauge
    broker_events: Counter
    certificate_expiry_timestamp_seconds: Gauge
    triton_ready: Gauge
    triton_endpoint_up: Gauge
    triton_endpoint_outstanding: Gauge
    triton_endpoint_requests: Counter
    triton_endpoint_ejections: Counter
    model_ready: Gauge
    model_version: Gauge
    model_repairs: Counter
    rollouts: Counter
    rollout_step_duration_seconds: Histogram
    rollout_percent: Gauge
    trial_answers: Counter
    trial_errors: Counter
    model_commands: Counter
    http_refusals: Counter
    log_events: Counter
    roller: Gauge
    config_last_reload_successful: Gauge
    config_last_reload_success_timestamp_seconds: Gauge
    workers: Gauge
    worker_restarts: Counter
    ready: Gauge
    trace_spans: Counter
    build_info: Gauge

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # another series a counter, which nothing asks for
        self.registry = CollectorRegistry()
        self._steps: dict[str, Histogram] = {}
        self._of_sample: dict[str, Collector] = {}
        """The metric of each sample that there can be, by its name without the prefix."""
        of_cameras: list[tuple[str, str]] = []
        for meaning in CATALOGUE:
            name, text = PREFIX + meaning.name, f"{meaning.help} Remedy: {meaning.remedy}"
            metric: Counter | Gauge | Histogram
            if meaning.of_camera:
                of_cameras.append((name, text))
                continue
            if meaning.kind == "counter":
                metric = Counter(name, text, meaning.labels, registry=self.registry)
            elif meaning.kind == "gauge":
                metric = Gauge(name, text, meaning.labels, registry=self.registry)
            else:
                metric = Histogram(name, text, meaning.labels, buckets=meaning.buckets, registry=self.registry)
            setattr(self, meaning.name.removesuffix("_total"), metric)
            suffixes = _OF_HISTOGRAM if meaning.kind == "histogram" else ("",)
            self._of_sample |= {meaning.name + suffix: metric for suffix in suffixes}
        counts, last = of_cameras
        self.cameras = CameraCounts(counts, last)
        self.registry.register(self.cameras)
        self._of_sample |= {name.removeprefix(PREFIX): self.cameras for name, _ in of_cameras}
        self._begin()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def know_model(self, name: str) -> None:
        """Let the known values of a model's metrics begin at 0; those that are there go on."""
        self._begin(name)
        self.rollout_percent.labels(name)

    def _begin(self, *model: str) -> None:
        for meaning in CATALOGUE:
            if meaning.values and meaning.labels[:-1] == (("model",) if model else ()):
                for value in meaning.values:
                    getattr(self, meaning.name.removesuffix("_total")).labels(*model, value)

    def value(self, name: str, **labels: str) -> float:
        """The current value of one sample, 0 when it has not been seen; `name` without the prefix."""
        wanted = PREFIX + name
        for collected in self._of_sample[name].collect():  # this one alone: health is asked ten times a second
            for sample in collected.samples:
                if sample.name == wanted and sample.labels == labels:
                    return float(sample.value)
        return 0.0

    def timed(self, step: str) -> Timer:
        """Observe how long a step of the flow takes."""
        return Timer(self.step(step))

    def step(self, name: str) -> Histogram:
        """Of a step of the flow; kept, for `labels` takes longer than to observe."""
        found = self._steps.get(name)
        if found is None:
            found = self._steps[name] = self.step_duration_seconds.labels(name)
        return found
