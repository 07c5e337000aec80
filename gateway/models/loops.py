"""No answer may come back as a snapshot: input topics are held against all that is published."""

from __future__ import annotations

from gateway.config import Settings
from gateway.errors import ConfigError
from gateway.models.repository import LogicalModel, read_served
from gateway.topics import overlap


def read_models(settings: Settings) -> tuple[list[LogicalModel], list[ConfigError]]:
    """The models to serve, and what is wrong with the others; raises ConfigError when the place itself is wrong."""
    refuse_loops(settings)
    return read_served(settings.model_repository, settings.model_config_path)


def refuse_loops(settings: Settings) -> None:
    """Raise ConfigError when an input topic also receives what a gateway publishes: each answer would be answered.

    The same for commands: one topic brings snapshots or commands, and what the gateway itself publishes is neither.
    """
    kinds = ((settings.mqtt_input_topics, "brings snapshots"), (settings.output_topics, "is published by the gateway"))
    for taken, kind in kinds:
        pairs = ((command, topic) for command in settings.mqtt_command_topics for topic in taken)
        if pair := next((each for each in pairs if overlap(*each)), None):
            raise ConfigError(
                f"'{pair[0]}' falls together with '{pair[1]}', which {kind}",
                where="MQTT_COMMAND_TOPICS",
                fix="Command on a topic that is used for nothing else",
            )
    if found := _received(settings, settings.output_topics):
        raise ConfigError(
            f"'{found[0]}' also receives what the gateway publishes on '{found[1]}', which would never end",
            where="MQTT_INPUT_TOPICS",
            fix="Name the topics of the cameras more narrowly, or publish elsewhere",
        )


def loop_of(settings: Settings, model: LogicalModel) -> ConfigError | None:
    """What is wrong with a model whose answers an input topic would receive; one such drop must end no gateway."""
    found = _received(settings, model.spec.mqtt.templates)
    return found and ConfigError(
        f"'{found[0]}' of MQTT_INPUT_TOPICS also receives what would be published on '{found[1]}', without end",
        where=str(model.path),
        fix="Publish elsewhere, or name the topics of the cameras more narrowly",
    )


def _received(settings: Settings, templates: tuple[str, ...]) -> tuple[str, str] | None:
    """An input topic and a template of an output that it receives."""
    pairs = ((given, template) for given in settings.mqtt_input_topics for template in templates)
    return next((pair for pair in pairs if overlap(*pair)), None)
