"""The settings that hold now: replaced as a whole when the configuration is read again."""

from __future__ import annotations

from gateway.config import Settings


class Live:
    """What the parts of a running gateway look at; `current` is a frozen record."""

    def __init__(self, settings: Settings) -> None:
        self.current = settings

    def replace(self, settings: Settings) -> None:
        """Let new settings hold from now on."""
        self.current = settings
