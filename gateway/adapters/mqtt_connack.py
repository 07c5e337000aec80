"""What a broker grants in CONNACK and what its refusals mean, as sentences for the operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.adapters.mqtt_settings import MqttSettings
from gateway.errors import ConfigError, GatewayError
from gateway.topics import safe_text

MAX_QUOTE = 200
"""Characters of what a broker says about itself that are repeated in our messages."""
RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 0x9A, 0x9B
NO_QOS_1 = "The broker takes QoS 0 only", "Allow QoS 1 at the broker: nothing is handed on without its acknowledgement"
_MOVED = {0x9C, 0x9D}
_CREDENTIALS = {0x86, 0x87, 0x8C}


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of CONNACK, with the defaults of MQTT where it says nothing.

    Topic Alias Maximum is not among them: the gateway sends no aliases and, as its CONNECT allows none, gets none.
    """

    maximum_packet_size: int | None = None
    receive_maximum: int = 65_535
    maximum_qos: int = 2
    retain_available: bool = True
    wildcards_available: bool = True
    shared_available: bool = True


@dataclass(slots=True)
class Learned:
    """What has to be known of a broker before the next CONNECT, which may not ask for it again."""

    retain: bool = True


def limits(properties: Properties | None) -> Limits:
    """Those of a CONNACK; MQTT 3.1.1 has none."""
    return Limits(
        maximum_packet_size=getattr(properties, "MaximumPacketSize", None),
        receive_maximum=getattr(properties, "ReceiveMaximum", 65_535),
        maximum_qos=getattr(properties, "MaximumQoS", 2),
        retain_available=bool(getattr(properties, "RetainAvailable", 1)),
        wildcards_available=bool(getattr(properties, "WildcardSubscriptionAvailable", 1)),
        shared_available=bool(getattr(properties, "SharedSubscriptionAvailable", 1)),
    )


def impossible(granted: Limits, topic_filters: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The subscriptions that such a broker cannot take, each with why and the fix."""
    found = {}
    for topic_filter in topic_filters:
        if topic_filter.startswith("$share/") and not granted.shared_available:
            found[topic_filter] = "the broker has no shared subscriptions", "Leave $share/<group>/ out of it"
        elif set(topic_filter) & set("+#") and not granted.wildcards_available:
            found[topic_filter] = "the broker has no wildcards", "Name topics without + and #"
    return found


def in_words(reason: ReasonCode | None, properties: Properties | None) -> str:
    """The reason as MQTT names it, and what the broker adds to it: cleaned, and no longer than a line."""
    added = [str(getattr(properties, name, "") or "") for name in ("ReasonString", "ServerReference")]
    quotes = [f"'{safe_text(text)[:MAX_QUOTE]}'" for text in added if text]
    return f"{reason} ({', '.join(quotes)})" if quotes else str(reason)


def fix_for(reason: ReasonCode, settings: MqttSettings) -> str:
    """What to do about a CONNACK or DISCONNECT with that code."""
    if reason.value in _CREDENTIALS:
        return _fix_credentials(reason.value, settings)
    if reason.value in _MOVED:
        return "Set AIO_BROKER_HOSTNAME and AIO_BROKER_TCP_PORT to the broker that it names"
    if reason.value == QOS_NOT_SUPPORTED:
        return NO_QOS_1[1]
    fixes = {
        0x84: f"Set MQTT_PROTOCOL to what the broker speaks; it is {settings.protocol} now",
        0x85: f"Set AIO_MQTT_CLIENT_ID to one that the broker takes; it is {settings.client_id!r} now",
        0x88: "Wait for the broker, which is asked again; see its log",
        0x89: "Wait for the broker, which is asked again; see its log",
        0x8A: f"Lift the broker's ban of the client {settings.client_id!r}",
        0x8B: "Wait for the broker to come back",
        0x8D: "Check the network: the broker has not heard of the gateway for AIO_MQTT_KEEP_ALIVE",
        0x90: "Set STATUS_TOPIC to one on which the broker lets the gateway publish",
        0x97: "Raise the broker's quota for this client",
        0x9F: "Raise the broker's limit on the rate of connections",
        RETAIN_NOT_SUPPORTED: "Wait: the gateway connects again without a retained last will",
    }
    usual = f"Check MQTT_PROTOCOL ({settings.protocol}) and the client id {settings.client_id!r}, and the broker's log"
    return fixes.get(reason.value, usual)


def why_not(error: Exception) -> str:
    """Why the broker could not be dialled; of our own errors the setting that they are about too."""
    if isinstance(error, ConfigError):
        return f"{error.where}: {error.message}"
    return error.message if isinstance(error, GatewayError) else str(error) or type(error).__name__


def fix_for_dialling(error: Exception, settings: MqttSettings) -> str:
    """What to do about an error of `FramedClient.dial`."""
    if isinstance(error, GatewayError):
        return error.fix
    return f"Start the broker, or check AIO_BROKER_HOSTNAME ({settings.host}) and AIO_BROKER_TCP_PORT ({settings.port})"


def no_connack(settings: MqttSettings) -> str:
    """What to do about a broker that hangs up on CONNECT."""
    return f"Check that an MQTT broker that speaks MQTT {settings.protocol} listens there, and {tls_hint(settings)}"


def tls_hint(settings: MqttSettings) -> str:
    """What of TLS may be wrong with a connection that comes about and leads nowhere."""
    if not settings.tls:
        return "whether it wants TLS (AIO_MQTT_USE_TLS is false)"
    if settings.cert_file is None:
        return "whether it wants a certificate of the gateway (AIO_TLS_CERT_FILE and AIO_TLS_KEY_FILE)"
    return f"whether it accepts the certificate '{settings.cert_file}' of AIO_TLS_CERT_FILE: see its log"


def _fix_credentials(code: int, settings: MqttSettings) -> str:
    """Names the files with which the gateway has shown who it is."""
    if settings.sat_file is not None and code == 0x8C:
        return "Allow service-account tokens (K8S-SAT) at the broker, or leave AIO_SAT_FILE out"
    shown = []
    if settings.sat_file is not None:
        shown.append(f"the token in '{settings.sat_file}' (AIO_SAT_FILE) and the audience that it was made for")
    if settings.username is not None:
        shown.append(f"the user {settings.username!r} (AIO_MQTT_USERNAME)")
    if settings.password_file is not None:
        shown.append(f"the password in '{settings.password_file}' (AIO_MQTT_PASSWORD_FILE)")
    if settings.cert_file is not None:
        shown.append(f"the certificate '{settings.cert_file}' (AIO_TLS_CERT_FILE)")
    if not shown:
        return (
            "Set AIO_MQTT_USERNAME and AIO_MQTT_PASSWORD_FILE, AIO_SAT_FILE or AIO_TLS_CERT_FILE: it wants to know us"
        )
    return f"Check {', '.join(shown)}, and the broker's list of clients"
