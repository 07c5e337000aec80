"""The settings that say where messages come from and go to: the broker, the topics, the place of the gateway."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway import topics
from gateway.schema import ANSWER_PARTS, PLACE_PARTS, output_topic
from gateway.topics import TopicPattern

DEFAULT_INPUT_TOPICS = (
    "edge-ai/{business_unit}/{facility}/{gateway_id}/camera/snapshots",
    "edge-ai/{business_unit}/{facility}/camera/snapshots",
    "azure-iot-operations/data/{asset}/{stream}",
    "edge-ai/{business_unit}/{facility}/{gateway_id}/sensors/{sensor}",
)
_OUTPUT = "edge-ai/{business_unit}/{facility}/{gateway_id}/ai/"


class BrokerSettings(BaseSettings):
    """What concerns the broker and the messages there; the environment wins over gateway.yaml."""

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
    mqtt_leave_group: bool = False
    """Whether an orderly stop first ends the subscriptions with `$share/group/` in front, so that the other gateways
    of the group get what comes from then on. Only where another one is always there: else what comes is lost."""

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

    @field_validator("mqtt_input_topics", "mqtt_command_topics", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("mqtt_protocol", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # YAML reads 5 as a number

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

    @field_validator("business_unit", "facility", "gateway_id")
    @classmethod
    def _one_level(cls, value: str) -> str:
        if not value or set(value) & set("/+#\x00"):
            raise ValueError("must be one topic level: not empty, without / + #")
        return value

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
        named = (getattr(self, name) for name in BrokerSettings.model_fields if name.endswith("_topic"))
        return tuple(topic for topic in named if isinstance(topic, str))  # a limit for each topic is none

    @property
    def own_topics(self) -> tuple[str, ...]:
        """The templates of what the gateway publishes, and the topics on which it is commanded."""
        return (*self.output_topics, *self.mqtt_command_topics)

    @property
    def place(self) -> dict[str, str]:
        """The named parts that describe this gateway."""
        return {"business_unit": self.business_unit, "facility": self.facility, "gateway_id": self.gateway_id}
