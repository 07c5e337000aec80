"""How a gateway and its cameras are described to Home Assistant: its MQTT discovery, one message for each device.

Names come from cameras and from models: in ids and templates they are hashes, and as text they are only ever shown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway import __version__
from gateway.admin.model_report import printable
from gateway.config import Settings
from gateway.messages import JSON_TYPE, Publication
from gateway.topics import fill

ORIGIN = {"name": "edge-gateway", "sw_version": __version__}
MANUFACTURER = "Triton Edge Gateway"
MAX_NAME = 64
"""Characters of a name that are shown."""
MAX_ID_NAME = 24
"""Characters of a name that are left in an id, for people who look at topics."""
OFFLINE = "{{ 'offline' if value_json.status == 'offline' else 'online' }}"
LAST_RESULT = "last_result"

Components = dict[str, dict[str, Any]]
"""The entities of a device, by a key that is unique in it."""


def gateway_id(settings: Settings) -> str:
    """The gateway's id at Home Assistant: the same after a restart, another one for another place."""
    return _id("edge-gateway", settings.gateway_id, *settings.place.values())


def camera_id(gateway: str, device_id: str) -> str:
    """A camera's id at Home Assistant, of letters, digits, `_` and `-`, whatever the camera calls itself."""
    return _id(gateway, device_id, gateway, device_id)


def gateway_announcement(settings: Settings, prefix: str) -> Publication:
    """The gateway as a device: whether it is connected, and its status."""
    device = gateway_id(settings)
    status = fill(settings.status_topic, settings.place)
    components = {
        "connectivity": {
            "platform": "binary_sensor",
            "unique_id": f"{device}-connectivity",
            "name": "Connectivity",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "value_template": "{{ 'OFF' if value_json.status == 'offline' else 'ON' }}",
        },
        "status": {
            "platform": "sensor",
            "unique_id": f"{device}-status",
            "name": "Status",
            "device_class": "enum",
            "options": ["ready", "not_ready", "offline"],
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.status }}",
            "json_attributes_topic": status,
            "json_attributes_template": "{{ {'reasons': value_json.reasons | default([], true)} | tojson }}",
        },
    }
    described = {
        "identifiers": [device],
        "name": f"Edge gateway {_shown(settings.gateway_id)}",
        "manufacturer": MANUFACTURER,
        "model": "edge-gateway",
        "sw_version": __version__,
    }
    body = {"device": described, "origin": ORIGIN, "components": components, "state_topic": status, "qos": 1}
    return _retained(_config_topic(prefix, device), body)


def camera_components(camera: str, models: Mapping[str, tuple[str, ...]]) -> Components:
    """The entities of a camera whose snapshots these models have answered, each with its alert classes."""
    components: Components = {
        LAST_RESULT: {
            "platform": "sensor",
            "unique_id": f"{camera}-{LAST_RESULT}",
            "name": "Last result",
            "device_class": "timestamp",
            "value_template": "{{ value_json.last_result }}",
        }
    }
    for model, classes in models.items():
        key = detections_key(model)
        components[key] = {
            "platform": "sensor",
            "unique_id": f"{camera}-{key}",
            "name": f"{_shown(model)} detections",
            "state_class": "measurement",
            "value_template": f"{{{{ value_json.{key} | default('') }}}}",
        }
        for name in classes:
            key = alert_key(model, name)
            components[key] = {
                "platform": "binary_sensor",
                "unique_id": f"{camera}-{key}",
                "name": _shown(name),
                "device_class": "problem",
                "value_template": f"{{{{ value_json.{key} | default('') }}}}",
            }
    return components


def camera_announcement(
    settings: Settings, prefix: str, device_id: str, components: Components, gone: Components
) -> Publication:
    """The camera as a device behind its gateway; the entities of `gone` are taken away."""
    gateway = gateway_id(settings)
    camera = camera_id(gateway, device_id)
    described = {
        "identifiers": [camera],
        "name": _shown(device_id),
        "manufacturer": MANUFACTURER,
        "model": "camera",
        "via_device": gateway,
    }
    body = {
        "device": described,
        "origin": ORIGIN,
        "components": {**components, **{key: {"platform": each["platform"]} for key, each in gone.items()}},
        "state_topic": _state_topic(prefix, camera),
        "availability_topic": fill(settings.status_topic, settings.place),
        "availability_template": OFFLINE,
        "qos": 1,
    }
    return _retained(_config_topic(prefix, camera), body)


def camera_state(prefix: str, camera: str, last_result: float, values: Mapping[str, int | str]) -> Publication:
    """What the entities of a camera show: detections and alerts by their keys, and the time of the last result."""
    at = datetime.fromtimestamp(last_result, UTC).isoformat(timespec="milliseconds")
    return _retained(_state_topic(prefix, camera), {LAST_RESULT: at, **values})


def camera_removal(prefix: str, camera: str) -> tuple[Publication, Publication]:
    """Take a camera away: nothing is retained of it any more."""
    topics = _config_topic(prefix, camera), _state_topic(prefix, camera)
    return Publication(topics[0], b"", retain=True), Publication(topics[1], b"", retain=True)


def detections_key(model: str) -> str:
    """The key of how many things a model sees."""
    return f"d{_digest(model)}"


def alert_key(model: str, class_name: str) -> str:
    """The key of the alert of one class of a model."""
    return f"a{_digest(model, class_name)}"


def _config_topic(prefix: str, device: str) -> str:
    return f"{prefix}/device/{device}/config"


def _state_topic(prefix: str, device: str) -> str:
    """Beside the description, so that one rule of the broker's covers both; Home Assistant reads `config` only."""
    return f"{prefix}/device/{device}/state"


def _retained(topic: str, body: dict[str, Any]) -> Publication:
    return Publication(topic, msgspec.json.encode(body), retain=True, content_type=JSON_TYPE)


def _id(prefix: str, name: str, *identity: str) -> str:
    """Unique by its hash; the name in it is for people, as far as Home Assistant's ids allow it."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:MAX_ID_NAME].strip("-")
    return "-".join(part for part in (prefix, readable, _digest(*identity)) if part)


def _digest(*parts: str) -> str:
    identity = hashlib.sha256()
    for part in parts:
        encoded = part.encode(errors="replace")
        identity.update(len(encoded).to_bytes(4, "big") + encoded)
    return identity.hexdigest()[:12]


def _shown(name: str) -> str:
    return printable(name[:MAX_NAME])
