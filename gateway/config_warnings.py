"""What is accepted, but hardly as it was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from gateway.config import Settings

# What Kubernetes sets for each service of the namespace; `<SERVICE>_PORT` too, whose value is an address.
_SERVICE_LINK = re.compile(r".+_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")

_REPLACED = {"MODEL_COMMANDS_TOPIC": "name the topic in MQTT_COMMAND_TOPICS, without which MQTT commands nothing"}


def settings_warnings(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """What works, but hardly as it was meant."""
    warnings = suspicious_variables(environment)
    if environment.get("RUST_LOG"):
        warnings.append(f"RUST_LOG is not read; LOG_LEVEL={settings.log_level}")
    if settings.default_backend == "candle":
        warnings.append(
            "DEFAULT_BACKEND=candle: models without a variant of that name answer with 'torch'; "
            "write DEFAULT_BACKEND=torch if that is what is meant"
        )
    if settings.infer_timeout_ms > settings.snapshot_deadline_ms:
        warnings.append("INFER_TIMEOUT_MS is longer than SNAPSHOT_DEADLINE_MS, which ends each wait before it")
    return warnings


def suspicious_variables(environment: Mapping[str, str]) -> list[str]:
    """Warnings for environment variables that look like a misspelt setting of ours."""
    known = [name.upper() for name in Settings.model_fields] + ["GATEWAY_CONFIG"]
    warnings = []
    for name, value in environment.items():
        if name in _REPLACED and value:
            warnings.append(f"{name} is not read any more; {_REPLACED[name]}")
            continue
        if name.upper() in known or _SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and "://" in value):
            continue
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if nearest:
            warnings.append(f"{name} is not a setting; did you mean {nearest[0]}?")
    return warnings
