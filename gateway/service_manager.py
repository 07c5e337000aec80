"""What systemd is told that has started this process with `Type=notify`: sd_notify(3), without its library."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import MutableMapping
from typing import Self

import structlog

from gateway.tasks import set_within

log = structlog.get_logger(__name__)

BEATS_PER_LIMIT = 2
"""sd_watchdog_enabled(3) asks for one each half of the time after which systemd takes the process for hung."""


class ServiceManager:
    """Says when the gateway is up, that its event loop still turns, and when it stops; silent where nobody asked."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = address
        self._beat_s = None if watchdog_s is None else watchdog_s / BEATS_PER_LIMIT

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Self:
        """Takes its variables out of the environment, so that no child speaks in this process's name."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if not microseconds.isdecimal() or process not in ("", str(os.getpid())):
            return cls(address)
        return cls(address, max(1, int(microseconds)) / 1e6)

    async def tell(self, stop: asyncio.Event) -> None:
        """Call it once HTTP answers; runs until cancelled. On the event loop, so that a loop that hangs says nothing.

        Up means that probes are answered: the broker and Triton may come later, and no restart would bring them.
        """
        if not self._address:
            return
        self._say("READY=1")
        while not await set_within(stop, self._beat_s):
            self._say("WATCHDOG=1")
        self._say("STOPPING=1")
        while self._beat_s is not None:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self._beat_s)

    def _say(self, state: str) -> None:
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.sendto(state.encode(), address)
        except OSError as error:
            log.warning(
                "The service manager could not be told how the gateway stands",
                state=state,
                reason=error.strerror,
                fix="Start it with Type=exec and without WatchdogSec, or give it the socket of NOTIFY_SOCKET",
            )
