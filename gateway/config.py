"""Every setting: its environment variable, its key in gateway.yaml (the same name in lower case), its default."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from gateway import topics
from gateway.addresses import shown
from gateway.config_contradictions import contradictions
from gateway.cpu_list import CpuList
from gateway.schema import ANSWER_PARTS, PLACE_PARTS, output_topic
from gateway.topics import TopicPattern

DEFAULT_INPUT_TOPICS = (
    "edge-ai/{business_unit}/{facility}/{gateway_id}/camera/snapshots",
    "edge-ai/{business_unit}/{facility}/camera/snapshots",
    "azure-iot-operations/data/{asset}/{stream}",
    "edge-ai/{business_unit}/{facility}/{gateway_id}/sensors/{sensor}",
)
RELOADABLE = frozenset((
    "log_level", "log_format", "default_backend", "enable_dual_backend", "infer_timeout_ms", "gpu_enabled",
    "snapshot_deadline_ms", "max_image_pixels", "queue_max_messages", "queue_max_bytes", "drain_timeout_s",
    "result_topic", "sensor_result_topic", "comparison_topic", "error_topic", "alert_topic",
    "dead_letter_topic", "dead_letters_per_minute", "rate_limit_per_device", "rate_limit_per_topic",
    "repeat_window_s", "repeat_max_messages", "breaker_failures", "breaker_open_s", "infer_concurrency",
))  # fmt: skip
"""The settings that a running gateway takes over when gateway.yaml changes; all others need a restart."""
_OUTPUT = "edge-ai/{business_unit}/{facility}/{gateway_id}/ai/"


class Settings(BaseSettings):
    """The configuration of one gateway; the environment wins over gateway.yaml."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        case_sensitive=False,
        str_strip_whitespace=True,
        env_ignore_empty=True,  # compose files and charts pass `NAME=` for what nobody has set
        use_attribute_docstrings=True,
    )

    # The broker. The AIO_ names are those of the Azure IoT Operations SDK.
    aio_broker_hostname: str = "localhost"
    """Host name or address of the MQTT broker."""
    aio_broker_tcp_port: int = Field(1883, ge=1, le=65535)
    """TCP port of the MQTT broker; with TLS usually 8883."""
    aio_mqtt_use_tls: bool = False
    """Whether the connection to the broker is encrypted with TLS."""
    aio_tls_ca_file: Path | None = None
    """PEM file of the authorities that vouch for the broker; without it those that the system trusts."""
    aio_tls_cert_file: Path | None = None
    """PEM file of the gateway's own certificate for mutual TLS; needs AIO_TLS_KEY_FILE and AIO_MQTT_USE_TLS."""
    aio_tls_key_file: Path | None = None
    """PEM file of the private key that belongs to AIO_TLS_CERT_FILE."""
    aio_sat_file: Path | None = None
    """File with the service-account token for Azure IoT Operations (MQTT 5 enhanced authentication K8S-SAT)."""
    aio_mqtt_username: str | None = None
    """User name at the broker."""
    aio_mqtt_password_file: Path | None = None
    """File with the password of AIO_MQTT_USERNAME; a renewed one is taken up without a restart."""
    aio_mqtt_client_id: str | None = None
    """MQTT client id, under which the broker keeps the session; without it `edge-gateway-` and the GATEWAY_ID."""
    aio_mqtt_session_expiry: int = Field(86_400, ge=0, le=4_294_967_295)
    """Seconds for which the broker keeps unanswered snapshots while the gateway is away."""
    aio_mqtt_keep_alive: int = Field(30, ge=1, le=65_535)
    """Seconds of silence after which gateway and broker check that the other is still there."""
    mqtt_protocol: Literal["5", "3.1.1"] = "5"
    """Version of MQTT to speak with the broker."""
    mqtt_input_topics: Annotated[tuple[str, ...], NoDecode] = DEFAULT_INPUT_TOPICS
    """Topics of snapshots and readings; a level may be a `{name}`, `+` or a final `#`, and `$share/group/` may lead."""

    # Where this gateway stands; fills the parts that an input topic lacks.
    business_unit: str = "default"
    """Business unit in the topics of answers to snapshots whose own topic names none; one topic level."""
    facility: str = "default"
    """Facility in the topics of answers to snapshots whose own topic names none; one topic level."""
    gateway_id: str = Field(default_factory=lambda: socket.gethostname().split(".")[0] or "gateway")
    """Name of this gateway, one topic level; without it the host name up to its first dot."""

    # Where answers go.
    result_topic: str = _OUTPUT + "inference/vision"
    """Topic of results on pictures; may also hold `{device_id}` and `{model_name}`."""
    sensor_result_topic: str = _OUTPUT + "inference/sensor"
    """Topic of results on readings of sensors; parts as in RESULT_TOPIC."""
    comparison_topic: str = _OUTPUT + "inference/comparison"
    """Topic of comparisons of two variants; parts as in RESULT_TOPIC."""
    error_topic: str = _OUTPUT + "errors"
    """Topic of errors; parts as in RESULT_TOPIC."""
    alert_topic: str = _OUTPUT + "alerts"
    """Topic of the begin and end of alerts; parts as in RESULT_TOPIC."""
    status_topic: str = _OUTPUT + "status"
    """Topic of the retained status, which is also the last will."""
    metrics_topic: str = _OUTPUT + "metrics"
    """Topic of the summary of the metrics every 30 seconds."""
    models_topic: str = _OUTPUT + "models/{model_name}"
    """Topic of the retained state of each model; also holds `{model_name}`."""
    dead_letter_topic: str | None = None
    """Topic that receives the payloads which could not be processed; parts as in RESULT_TOPIC; without it none does."""
    dead_letters_per_minute: int = Field(60, ge=1, le=60_000)
    """How many payloads a minute go to DEAD_LETTER_TOPIC; those beyond are counted only."""
    mqtt_command_topics: Annotated[tuple[str, ...], NoDecode] = ()
    """Topics of commands to models (promote, rollback, load, unload), without wildcards; without any, MQTT commands
    nothing. `edge-ai/{business_unit}/{facility}/{gateway_id}/ai/commands/models` is the usual one."""
    mqtt_commands: Literal["token", "open"] = "token"
    """Who may command on MQTT_COMMAND_TOPICS: who knows the token of API_TOKEN_FILE, or all whom the broker lets."""

    # Triton and the models.
    triton_grpc_url: str = "localhost:8001"
    """Triton's gRPC endpoint as host:port."""
    triton_use_tls: bool = False
    """Whether the connection to Triton is encrypted with TLS."""
    triton_tls_ca_file: Path | None = None
    """PEM file of the authorities that vouch for Triton; without it those that the system trusts."""
    triton_tls_cert_file: Path | None = None
    """PEM file of the gateway's own certificate for mutual TLS; needs TRITON_TLS_KEY_FILE and TRITON_USE_TLS."""
    triton_tls_key_file: Path | None = None
    """PEM file of the private key that belongs to TRITON_TLS_CERT_FILE."""
    triton_metrics_url: str | None = None
    """Triton's metrics page as a URL, for the memory of each model in comparisons; without it that is null. Over https
    the TRITON_TLS_ files hold for it too."""
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
    """Megabytes that all loaded models may take together; without it there is no such limit."""
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
    """Bytes of /dev/shm that the input tensors of each process may take; those beyond go in the request. No model has
    more snapshots in flight than have room in it, one at least, also where shared memory is off."""
    infer_concurrency: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Snapshots in flight for one variant at once, those that are being decoded among them; `auto` finds how many bring
    more answers. Either way no more of one model than have room in SHARED_MEMORY_MAX_BYTES: one where its input is
    larger."""
    gpu_enabled: bool | None = None
    """`true`: it is said when Triton runs a model on the CPU. Where a model runs, its config.pbtxt decides."""

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
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""

    @field_validator("mqtt_input_topics", "mqtt_command_topics", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("mqtt_protocol", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # YAML reads 5 as a number

    @field_validator("infer_concurrency", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: Any) -> Any:
        number = str(value)
        if number == "auto" or (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= 256):
            return value
        raise ValueError(f"must be 'auto' or a number from 1 to 256, not '{shown(number)}'")

    @field_validator("mqtt_commands", mode="before")
    @classmethod
    def _off_is_the_default(cls, value: Any) -> Any:
        if value in ("off", False):
            raise ValueError("leave it out: MQTT commands nothing unless MQTT_COMMAND_TOPICS names a topic")
        return value

    @field_validator("mqtt_input_topics")
    @classmethod
    def _valid_filters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one topic")
        for text in value:
            if problem := topics.problem(text):
                raise ValueError(f"'{text}' is no topic filter: {problem}")
        return value

    @field_validator("default_backend")
    @classmethod
    def _a_variant(cls, value: str) -> str:
        if value == "dual":
            raise ValueError("'dual' is no variant; set ENABLE_DUAL_BACKEND=true, and name the variant that leads here")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", value):
            raise ValueError(f"must be a variant's name in lower case letters, digits and '-', not '{value[:60]}'")
        return value

    @field_validator("result_topic", "sensor_result_topic", "comparison_topic", "error_topic", "alert_topic")
    @classmethod
    def _valid_template(cls, value: str) -> str:
        return output_topic(value, ANSWER_PARTS)

    @field_validator("models_topic")
    @classmethod
    def _a_topic_a_model(cls, value: str) -> str:
        if "{model_name}" not in value:
            raise ValueError("a topic keeps one retained message, so it needs the part {model_name}")
        return output_topic(value, (*PLACE_PARTS, "model_name"))

    @field_validator("dead_letter_topic")
    @classmethod
    def _valid_optional_template(cls, value: str | None) -> str | None:
        return value and output_topic(value, ANSWER_PARTS)

    @field_validator("status_topic", "metrics_topic")
    @classmethod
    def _place_only(cls, value: str) -> str:
        return output_topic(value, PLACE_PARTS)

    @field_validator("mqtt_command_topics")
    @classmethod
    def _places_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(topic.startswith("$") for topic in value):
            raise ValueError("a topic of commands does not begin with '$'")
        return tuple(output_topic(topic, PLACE_PARTS) for topic in value)

    @field_validator("triton_grpc_url")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        found = re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", value)
        if not found or not 1 <= int(found[2]) <= 65535:
            raise ValueError(f"must be host:port, such as localhost:8001, not '{shown(value)}'")
        return value

    @field_validator("triton_metrics_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_url(value):
            raise ValueError(f"must be a URL, such as http://localhost:8002/metrics, not '{shown(value)}'")
        return value

    @field_validator("business_unit", "facility", "gateway_id")
    @classmethod
    def _one_level(cls, value: str) -> str:
        if not value or set(value) & set("/+#\x00"):
            raise ValueError("must be one topic level: not empty, without / + #")
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
    def patterns(self) -> tuple[TopicPattern, ...]:
        """The input topics as patterns."""
        return tuple(TopicPattern(text) for text in self.mqtt_input_topics)

    @property
    def command_topics(self) -> tuple[str, ...]:
        """The topics of commands to the models of this gateway; none where MQTT commands nothing."""
        return tuple(dict.fromkeys(topics.fill(topic, self.place) for topic in self.mqtt_command_topics))

    @property
    def client_id(self) -> str:
        """The MQTT client id; stable across restarts, since the broker keeps the session under it."""
        return self.aio_mqtt_client_id or f"edge-gateway-{self.gateway_id}"

    @property
    def output_topics(self) -> tuple[str, ...]:
        """The templates of what the gateway publishes."""
        named = (getattr(self, name) for name in Settings.model_fields if name.endswith("_topic"))
        return tuple(topic for topic in named if isinstance(topic, str))  # a limit for each topic is none

    @property
    def own_topics(self) -> tuple[str, ...]:
        """The templates of what the gateway publishes, and the topics on which it is commanded."""
        return (*self.output_topics, *self.mqtt_command_topics)

    @property
    def state_dir(self) -> Path:
        """Where is remembered which version of each model serves."""
        return self.model_state_dir or self.model_repository / ".edge-gateway"

    @property
    def place(self) -> dict[str, str]:
        """The named parts that describe this gateway."""
        return {"business_unit": self.business_unit, "facility": self.facility, "gateway_id": self.gateway_id}


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
