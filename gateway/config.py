"""Every setting: its environment variable, its key in gateway.yaml (the same name in lower case), its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from gateway.addresses import shown
from gateway.config_broker import BrokerSettings
from gateway.config_contradictions import contradictions
from gateway.cpu_list import CpuList
from gateway.schema import output_topic
from gateway.triton_endpoints import (
    Listed,
    OptionallyListed,
    PlacementRule,
    PlacementRules,
    endpoints_of,
    parse_rule,
    urls_of,
)

RELOADABLE = frozenset((
    "log_level", "log_format", "default_backend", "enable_dual_backend", "infer_timeout_ms", "gpu_enabled",
    "snapshot_deadline_ms", "max_image_pixels", "queue_max_messages", "queue_max_bytes", "drain_timeout_s",
    "result_topic", "sensor_result_topic", "comparison_topic", "error_topic", "alert_topic",
    "dead_letter_topic", "dead_letters_per_minute", "rate_limit_per_device", "rate_limit_per_topic",
    "repeat_window_s", "repeat_max_messages", "breaker_failures", "breaker_open_s", "infer_concurrency",
    "otel_traces_sampler_arg",
))  # fmt: skip
"""The settings that a running gateway takes over when gateway.yaml changes; all others need a restart."""


class Settings(BrokerSettings):
    """The configuration of one gateway; the environment wins over gateway.yaml."""

    # Triton and the models.
    triton_grpc_url: Listed = "localhost:8001"
    """Triton's gRPC endpoint as host:port; of several Tritons with the same models each, separated by commas."""
    triton_placement: PlacementRules = ()
    """Which of several Tritons answer which model, such as `model=detector-*,tenant=north -> gpu-0:8001`;
    rules are separated by `;`, the first that matches holds; what none matches goes to all. See several-tritons.md."""
    triton_use_tls: bool = False
    """Whether the connection to Triton is encrypted with TLS."""
    triton_tls_ca_file: Path | None = None
    """PEM file of the authorities that vouch for Triton; without it those that the system trusts."""
    triton_tls_cert_file: Path | None = None
    """PEM file of the gateway's own certificate for mutual TLS; needs TRITON_TLS_KEY_FILE and TRITON_USE_TLS."""
    triton_tls_key_file: Path | None = None
    """PEM file of the private key that belongs to TRITON_TLS_CERT_FILE."""
    triton_metrics_url: OptionallyListed = None
    """Triton's metrics page as a URL, for the memory of each model in comparisons; without it that is null. Over https
    the TRITON_TLS_ files hold for it too. Of several Tritons the page of each, in the order of TRITON_GRPC_URL."""
    model_repository: Path = Path("model_repository")
    """Folder of the models, as Triton sees it too; each folder in it with a model.yaml is served."""
    model_config_path: Path | None = None
    """One model.yaml to serve in place of all those in MODEL_REPOSITORY."""
    model_state_dir: Path | None = None
    """Folder for what is remembered of models: which version serves, and rollouts; without it `.edge-gateway` in
    MODEL_REPOSITORY. Gateways that share the models share it."""
    drop_quiet_s: float = Field(3.0, ge=0.1, le=3600)
    """Seconds for which the files of a drop must not have changed before it is read."""
    drop_watch: Literal["events", "poll"] = "events"
    """How new files are noticed: `poll` for NFS and other volumes that report no changes of other machines."""
    max_model_bytes: int = Field(4 * 2**30, ge=2**20)
    """Largest drop in bytes, all files of one version together; a larger one is refused."""
    model_public_key_file: Path | None = None
    """PEM public key; only drops whose model.sig was made with its private key are loaded then."""
    model_certificate_file: Path | None = None
    """PEM certificate of the authority whose certificates may sign drops; only such drops are loaded then."""
    model_idle_unload_s: float | None = Field(None, gt=0)
    """Seconds without a snapshot after which a model is unloaded, to be loaded at its next one; without it never."""
    model_memory_budget_mb: float | None = Field(None, gt=0)
    """Megabytes that all loaded models may take together, at each of several Tritons; without it there is no limit."""
    model_memory_policy: Literal["refuse", "evict"] = "refuse"
    """What happens to a load beyond the budget: it is refused, or the least recently used model is unloaded for it."""
    rollout_lease: Literal["file", "kubernetes"] = "file"
    """Which of several gateways on one model volume runs rollouts: a lock file on the volume, or a Kubernetes Lease."""
    rollout_lease_name: str = Field("edge-gateway-roller", pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    """Name of the Kubernetes Lease; one for each model volume of a namespace."""
    layouts_dir: Path | None = None
    """Folder of Python files with layouts of your own for `inference.output`; their code runs in the gateway."""
    default_backend: str = "onnx"
    """Variant that answers when neither the message nor model.yaml names one; `candle` stands for `torch`."""
    enable_dual_backend: bool = False
    """Whether both variants are asked and compared when neither the message nor model.yaml says otherwise."""
    infer_timeout_ms: float = Field(5_000, gt=0, le=600_000)
    """Longest wait for one variant in milliseconds, so that time is left to ask the other."""
    breaker_failures: int = Field(5, ge=1, le=1000)
    """Failures of a variant in a row after which it is not asked for BREAKER_OPEN_S, and the other one answers."""
    breaker_open_s: float = Field(2.0, gt=0, le=600)
    """Seconds until a variant that failed is tried again with one snapshot."""
    triton_shared_memory: Literal["auto", "off"] = "auto"
    """`auto`: input tensors go to Triton through shared memory where it can read them, else in the request; `off`:
    always in the request."""
    shared_memory_max_bytes: int = Field(16 * 2**20, ge=2**20, le=2**36)
    """Bytes of /dev/shm that the input tensors of each process may take, an equal part for each of several Tritons;
    those beyond go in the request. No model has more snapshots in flight than have room in it, one at least, also where
    shared memory is off."""
    infer_concurrency: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Snapshots in flight for one variant at once, those that are being decoded among them; `auto` finds how many bring
    more answers. Either way no more of one model than have room in SHARED_MEMORY_MAX_BYTES: one where its input is
    larger."""
    gpu_enabled: bool | None = None
    """`true`: it is said when Triton runs a model on the CPU; `false`: the CPU is meant, and `doctor` asks for no GPU.
    Where a model runs, its config.pbtxt decides."""

    # Limits.
    snapshot_deadline_ms: float = Field(10_000, gt=0, le=3_600_000)
    """Milliseconds from arrival until a snapshot must have its answer; a message may ask for less, not for more."""
    max_payload_bytes: int = Field(8 * 2**20, ge=1024, le=256 * 2**20)
    """Largest message in bytes; a larger one is answered with PAYLOAD_TOO_LARGE and never kept in memory."""
    max_image_pixels: int = Field(12_500_000, ge=4096, le=1_000_000_000)
    """Largest picture in pixels, width times height (a WebP counts 1.5 times); a larger one gets IMAGE_TOO_LARGE."""
    queue_max_messages: int = Field(64, ge=1, le=100_000)
    """Snapshots that may wait; beyond it the stalest and least important give way with QUEUE_FULL."""
    queue_max_bytes: int = Field(8 * 2**20, ge=2**20, le=64 * 2**30)
    """Bytes of encoded pictures that may wait; beyond it as with QUEUE_MAX_MESSAGES."""
    max_in_flight: int = Field(8, ge=1, le=256)
    """Snapshots between queue and broker at the same time, of all models together; for batches twice as many as the
    largest has pictures."""
    workers: int = Field(1, ge=1, le=64)
    """Processes that share the work, for machines with more cores; each takes its part of the cameras. What is said of
    queues, places in flight, threads and shared memory holds for each of them."""
    decoder_threads: int | None = Field(None, ge=1, le=64)
    """Threads that decode pictures in each process; without it as many as its cores, at most 4."""
    loop_cpus: CpuList = ()
    """Cores for the event loop, such as `0` or `0,4-5`, one after the other for each of WORKERS; without it any."""
    decoder_cpus: CpuList = ()
    """Cores for the threads that decode pictures, such as `1-3`, shared out evenly among WORKERS; without it any."""
    rate_limit_per_device: float | None = Field(None, gt=0, le=1_000_000)
    """Snapshots a second that one device may send, with a burst of two seconds; beyond it RATE_LIMITED. A broker does
    not say which client sent a message, so it is the device that the message names which counts."""
    rate_limit_per_topic: float | None = Field(None, gt=0, le=1_000_000)
    """Messages a second that one input topic may bring, with a burst of two seconds; beyond it RATE_LIMITED. All of
    `POST /v1/infer` counts as one topic."""
    repeat_window_s: float = Field(60, ge=0, le=86_400)
    """Seconds for which a snapshot that comes again is answered as before, without asking Triton; 0: never."""
    repeat_max_messages: int = Field(1000, ge=1, le=1_000_000)
    """Answers that are kept for snapshots that come again, at most 4 KiB each on average."""
    spool_dir: Path | None = None
    """Folder in which answers wait for a broker that is away, and survive the gateway; without it in memory only."""
    spool_max_bytes: int = Field(256 * 2**20, ge=2**20, le=2**40)
    """Largest size of the spool in bytes; beyond it answers wait in memory."""
    drain_timeout_s: float = Field(20, ge=0, le=600)
    """Seconds to finish what was accepted after SIGTERM; the rest stays with the broker."""

    # Seen from outside.
    http_host: str = "0.0.0.0"  # noqa: S104 - for probes and scrapers; actions need a token  # nosec B104
    """Address to listen on for probes, metrics, the API and inference over HTTP."""
    http_port: int = Field(8080, ge=0, le=65535)
    """TCP port for probes, metrics, the API and inference over HTTP; 0 takes any free one and logs it."""
    api_token_file: Path | None = None
    """File with the token for commands to models, which are off without it; `POST /v1/infer` then wants it too."""
    api_read_token_file: Path | None = None
    """File with the token for looking: every `GET` below `/api/` but `/api/console`, and with it what the console
    shows, wants it then, or that of API_TOKEN_FILE."""
    console: Literal["pictures", "results", "off"] = "pictures"
    """What the console at `/` shows: `pictures`, of which a few are in memory while somebody looks and 30 s longer;
    `results` without any picture; `off`: there is no console."""
    otel_exporter_otlp_endpoint: str | None = None
    """URL of an OpenTelemetry receiver (OTLP over HTTP), such as http://localhost:4318; without it no traces. Needs the
    extra `tracing`; the other `OTEL_` variables of OpenTelemetry hold too."""
    otel_traces_sampler_arg: float = Field(1.0, ge=0, le=1)
    """Share of the snapshots that are traced, of those without a `traceparent`; one that has it decides by its flag."""
    home_assistant_topic: str | None = None
    """First levels of the topics on which Home Assistant looks for devices, usually `homeassistant`; without it cameras
    and alerts are not announced there."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged; `POST /api/log-level` sets another one for a while."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("infer_concurrency", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: Any) -> Any:
        number = str(value)
        if number == "auto" or (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= 256):
            return value
        raise ValueError(f"must be 'auto' or a number from 1 to 256, not '{shown(number)}'")

    @field_validator("default_backend")
    @classmethod
    def _a_variant(cls, value: str) -> str:
        if value == "dual":
            raise ValueError("'dual' is no variant; set ENABLE_DUAL_BACKEND=true, and name the variant that leads here")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", value):
            raise ValueError(f"must be a variant's name in lower case letters, digits and '-', not '{value[:60]}'")
        return value

    @field_validator("triton_grpc_url")
    @classmethod
    def _hosts_and_ports(cls, value: str) -> str:
        return ",".join(endpoints_of(value))

    @field_validator("home_assistant_topic")
    @classmethod
    def _first_levels(cls, value: str | None) -> str | None:
        if value and (value.startswith("$") or "" in value.split("/")):
            raise ValueError("the first levels of a topic, such as homeassistant, without '$' and empty levels")
        return output_topic(value, ()) if value else None

    @field_validator("triton_metrics_url")
    @classmethod
    def _http_urls(cls, value: str | None) -> str | None:
        for each in () if value is None else urls_of(value):
            if not _is_url(each):
                raise ValueError(f"must be a URL, such as http://localhost:8002/metrics, not '{shown(each)}'")
        return value and ",".join(urls_of(value))

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_url(value):
            raise ValueError(f"must be a URL, such as http://localhost:8002/metrics, not '{shown(value)}'")
        return value

    @pydantic.model_validator(mode="after")
    def _fit_together(self) -> Settings:
        """Nothing is accepted that would have no effect."""
        if found := contradictions(self):
            raise ValueError("; ".join(found))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then what gateway.yaml gave."""
        return env_settings, init_settings

    @property
    def output_topics(self) -> tuple[str, ...]:
        """The templates of what the gateway publishes, and the filter of all that is said to Home Assistant."""
        announced = () if self.home_assistant_topic is None else (f"{self.home_assistant_topic}/#",)
        return (*super().output_topics, *announced)

    @property
    def triton_endpoints(self) -> tuple[str, ...]:
        """Each Triton as host:port."""
        return endpoints_of(self.triton_grpc_url)

    @property
    def triton_metrics_urls(self) -> tuple[str | None, ...]:
        """The metrics page of each Triton, in the same order."""
        given = self.triton_metrics_url
        return (None,) * len(self.triton_endpoints) if given is None else urls_of(given)

    @property
    def placement_rules(self) -> tuple[PlacementRule, ...]:
        """TRITON_PLACEMENT, read."""
        return tuple(parse_rule(text) for text in self.triton_placement)

    @property
    def state_dir(self) -> Path:
        """Where is remembered which version of each model serves."""
        return self.model_state_dir or self.model_repository / ".edge-gateway"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not re.search(r"\s", text)
        )
    except ValueError:  # of a port that is none
        return False
