"""The configuration that goes to Triton with a load, in place of the config.pbtxt in its repository."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format  # type: ignore[import-untyped]

from gateway.adapters.triton_config import MAX_CONFIG_BYTES, parse_config
from gateway.errors import ConfigError


def override(model: str, versions: Iterable[int], config: str | None) -> str:
    """The JSON for Triton's parameter `config`: what `config` (config.pbtxt) says, and that these versions serve.

    The same wish always gives the same text, so that Triton loads nothing again. None leaves all but the versions to
    Triton, as a model without a config.pbtxt does. Raises ConfigError when `config` cannot be read.
    """
    where = f"config.pbtxt of Triton model '{model}'"
    text = config or ""
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError("the text is longer than 1 MiB", where=where, fix="A configuration is a few lines")
    message = parse_config(text, where)
    if message.name not in ("", model):
        raise ConfigError(
            f"it is for the model '{message.name[:80]}'",
            where=where,
            fix="Name its own folder there, or leave name out",
        )
    message.name = model
    message.ClearField("version_policy")
    message.version_policy.specific.versions.extend(sorted(set(versions)))
    encoded: str = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
    return encoded
