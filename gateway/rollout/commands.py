"""What people and programs can ask for: promote, rollback, load, unload; the same over HTTP, MQTT and the terminal."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.rollout.state import ModelState


class Action(enum.StrEnum):
    """The verbs, as they are in `edge-gateway models ...`, the API's paths and the command topic."""

    PROMOTE = "promote"
    """End the trial of the version under way and let it serve; with a version: that one, without any trial."""
    ROLLBACK = "rollback"
    """Give up the version under way, or else serve the version before; with a version: serve that one."""
    LOAD = "load"
    """Bring an unloaded model back; with a version: try that one, also when it has been refused."""
    UNLOAD = "unload"
    """Take the model out of service; with a version: only that version, when it is not the one that serves."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command; `by` says who gave it, for the log and for `reason`."""

    action: Action
    model: str
    version: int | None = None
    by: str = "command"


class Commands(Protocol):
    """Who carries commands out, and knows how models stand."""

    @property
    def states(self) -> Mapping[str, ModelState]:
        """By model; without those of which nothing is remembered yet."""
        ...

    @property
    def problems(self) -> Mapping[str, str]:
        """By model, what people should know although it serves."""
        ...

    @property
    def unreadable(self) -> tuple[str, ...]:
        """What is wrong with the models of which nothing serves since their model.yaml cannot be read."""
        ...

    async def changed(self) -> None:
        """Return at the next change of `states`."""
        ...

    async def execute(self, command: Command) -> str:
        """Carry it out as far as it takes effect at once; returns what happens, in one line.

        A rollout that it begins goes on after it; `states` tell how. Raises CommandRefused.
        """
        ...
