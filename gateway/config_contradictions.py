"""What settings say against each other: nothing is accepted that would have no effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import topics
from gateway.triton_endpoints import unknown_endpoints

if TYPE_CHECKING:
    from gateway.config import Settings

_COMMANDS = "edge-ai/{business_unit}/{facility}/{gateway_id}/ai/commands/#"


def contradictions(settings: Settings) -> list[str]:
    """Each as a sentence that says how to mend it."""
    tls, token = settings.aio_mqtt_use_tls, settings.aio_sat_file
    found = {
        "AIO_TLS_CERT_FILE and AIO_TLS_KEY_FILE belong together; give both or none": (
            (settings.aio_tls_cert_file is None) != (settings.aio_tls_key_file is None)
        ),
        "a client certificate needs AIO_MQTT_USE_TLS=true": settings.aio_tls_cert_file and not tls,
        "AIO_TLS_CA_FILE needs AIO_MQTT_USE_TLS=true": settings.aio_tls_ca_file and not tls,
        "TRITON_TLS_CERT_FILE and TRITON_TLS_KEY_FILE belong together; give both or none": (
            (settings.triton_tls_cert_file is None) != (settings.triton_tls_key_file is None)
        ),
        "the TRITON_TLS_ files need TRITON_USE_TLS=true": (
            (settings.triton_tls_ca_file or settings.triton_tls_cert_file) and not settings.triton_use_tls
        ),
        "AIO_SAT_FILE needs AIO_MQTT_USE_TLS=true, or anybody on the network could read the token": (token and not tls),
        "AIO_SAT_FILE needs MQTT_PROTOCOL=5; MQTT 3.1.1 cannot send a token": token and settings.mqtt_protocol != "5",
        "AIO_MQTT_PASSWORD_FILE needs AIO_MQTT_USERNAME": (
            settings.aio_mqtt_password_file and settings.aio_mqtt_username is None
        ),
        "API_READ_TOKEN_FILE and API_TOKEN_FILE name the same file, so whoever may look could act; give each its own": (
            settings.api_read_token_file is not None and settings.api_read_token_file == settings.api_token_file
        ),
        "DEAD_LETTER_TOPIC must receive nothing else, and no commands to models: whoever may send a picture could "
        "send them through it": _dead_letters_are_used(settings),
        "WORKERS above 1 excludes MODEL_IDLE_UNLOAD_S and MODEL_MEMORY_BUDGET_MB: one worker would unload what another "
        "one asks for": (settings.workers > 1 and (settings.model_idle_unload_s or settings.model_memory_budget_mb)),
        "MODEL_PUBLIC_KEY_FILE and MODEL_CERTIFICATE_FILE exclude each other; give one": (
            settings.model_public_key_file and settings.model_certificate_file
        ),
        "MQTT_LEAVE_GROUP needs a topic in MQTT_INPUT_TOPICS with $share/<group>/ in front": (
            settings.mqtt_leave_group and not any(each.startswith("$share/") for each in settings.mqtt_input_topics)
        ),
        "TRITON_METRICS_URL must name one page for each endpoint of TRITON_GRPC_URL, in the same order, or be left "
        "out": (len(settings.triton_metrics_urls) != len(settings.triton_endpoints)),
        "TRITON_PLACEMENT needs several endpoints in TRITON_GRPC_URL": (
            settings.triton_placement and len(settings.triton_endpoints) == 1
        ),
    }
    several = len(settings.triton_endpoints) > 1
    wrong = unknown_endpoints(settings.triton_placement, settings.triton_endpoints) if several else []
    return [*(text for text, holds in found.items() if holds), *wrong]


def _dead_letters_are_used(settings: Settings) -> bool:
    topic = settings.dead_letter_topic
    if topic is None:
        return False
    others = [each for each in settings.own_topics if each != topic]
    once = len(settings.own_topics) - len(others) == 1
    return not once or any(topics.overlap(topic, each) for each in (*others, _COMMANDS))
