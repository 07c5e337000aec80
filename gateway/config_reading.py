"""Reading the configuration: gateway.yaml and the environment, with the place of each mistake."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from gateway.config import Settings
from gateway.errors import ConfigError
from gateway.schema import MAX_PROBLEMS, Problem, in_line, problems_of, unknown_key
from gateway.yaml_file import YamlMapping, read_yaml


def load_settings(config_file: Path | None = None) -> Settings:
    """Read GATEWAY_CONFIG (or `config_file`) and the environment; raises ConfigError in one line with every mistake."""
    settings, errors = read_settings(config_file)
    if settings is None:
        places = list(dict.fromkeys(error.where for error in errors))
        texts = ["; ".join(error.message for error in errors if error.where == place) for place in places]
        rest = "".join(f"; {place}: {text}" for place, text in zip(places[1:], texts[1:], strict=True))
        raise ConfigError(
            texts[0] + rest, where=places[0], fix=errors[0].fix if len(errors) == 1 else "Correct the named settings"
        )
    return settings


def read_settings(config_file: Path | None = None) -> tuple[Settings | None, list[ConfigError]]:
    """The settings of GATEWAY_CONFIG (or `config_file`) and the environment, or None and one error per mistake."""
    path = config_file or named_file()
    try:
        data = read_yaml(path) if path else YamlMapping()
    except ConfigError as error:
        return None, [error]
    unknown = [str(key) for key in data if key not in Settings.model_fields][:MAX_PROBLEMS]
    problems = [Problem("", unknown_key(key, Settings.model_fields), (key,)) for key in unknown]
    errors = [ConfigError(in_line(problem, data), where=str(path), fix="Correct the key") for problem in problems]
    settings = None
    try:
        settings = Settings(**{key: value for key, value in data.items() if key in Settings.model_fields})
    except ValidationError as error:
        errors += _located(error, data, path)
    return (None if errors else settings), errors


def _located(error: ValidationError, data: YamlMapping, path: Path | None) -> list[ConfigError]:
    """Each problem with its place: the variable, which wins, or the line of the file."""
    variables = given_variables(os.environ)
    errors = []
    for problem in sorted(problems_of(error, data), key=lambda problem: data.line(problem.loc) or 0):
        name = str(problem.loc[0]) if problem.loc else ""
        if name in variables:
            place, text = "environment", f"{variables[name]}: {problem.text}"
        elif name:
            place, text = str(path), in_line(problem, data)
        else:  # of several settings together
            place, text = f"{path} and environment" if path else "environment", problem.text
        errors.append(ConfigError(text, where=place, fix="Correct the value" if name else "Correct the named settings"))
    return errors


def named_file() -> Path | None:
    """The gateway.yaml that GATEWAY_CONFIG names."""
    name = os.environ.get("GATEWAY_CONFIG")
    return Path(name) if name else None


def given_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings that the environment gives, each with the variable as it is spelt there."""
    return {
        name.lower(): name for name, value in environment.items() if value and name.lower() in Settings.model_fields
    }
