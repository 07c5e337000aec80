"""Strict parsing of what people write (gateway.yaml, model.yaml): a typo names the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gateway.errors import ConfigError

MAX_YAML_BYTES = 1 << 20

M = TypeVar("M", bound=BaseModel)


class StrictModel(BaseModel):
    """A frozen record whose unknown keys are errors that name the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def _name_nearest_key(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [name if field.alias is None else field.alias for name, field in cls.model_fields.items()]
            for key in data:
                if key not in known:
                    raise ValueError(unknown_key(str(key), known))
        return data


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, with the nearest known one or else all of them."""
    names = sorted(known)
    nearest = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.6)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known keys: {', '.join(names)}"
    return f"unknown key '{key}'; {hint}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML file that must be a mapping; raises ConfigError."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ConfigError("the file is larger than 1 MiB", where=str(path), fix="A configuration is a few lines")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), fix="Check the path and its permissions"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"is not valid YAML: {reason}", where=str(path), fix="Correct the file") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError("must be a mapping of keys to values", where=str(path), fix="Write lines such as 'name: x'")
    return data


def parse(model: type[M], data: dict[str, Any], where: str) -> M:
    """Validate `data` as `model`; raises ConfigError with every problem in one line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error), where=where, fix="Correct the named keys") from error


def describe(error: ValidationError) -> str:
    """All problems of a validation as `key: what is wrong`, joined in one line, values shortened."""
    problems = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] not in ("value_error", "missing", "extra_forbidden"):
            text += f", not {str(item['input'])[:60]!r}"
        problems.append(f"{key}: {text}" if key else text)
    return "; ".join(problems)
