"""A real Mosquitto for one test: a free port, its state in a temporary folder, gone with the test."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Protocol

import pytest

from gateway.local.debian import find_program, install_package
from gateway.local.processes import ChildProcess, free_ports

START_TIMEOUT_S = 20.0


def accepts(port: int) -> bool:
    """Whether a server on this machine takes connections there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


class NewMosquitto(Protocol):
    """Makes one that is stopped at the end of the test, whatever happens."""

    def __call__(self, *lines: str, anonymous: bool = True) -> Mosquitto: ...


class Mosquitto:
    """`lines` are added to its configuration, of which the listener is there already."""

    def __init__(self, folder: Path, *lines: str, anonymous: bool = True) -> None:
        program = find_program("mosquitto")
        if program is None and install_package("mosquitto", "The tests need a real Mosquitto"):
            program = find_program("mosquitto")
        if program is None:
            pytest.skip("there is no Mosquitto here, and it cannot be installed")
        self._program = str(program)
        self.port = free_ports(1)[0]
        self.config = folder / "mosquitto.conf"
        (folder / "data").mkdir()
        access = f"allow_anonymous {str(anonymous).lower()}"
        state = ("persistence true", f"persistence_location {folder}/data/", "user root")
        self.config.write_text("\n".join([f"listener {self.port} 127.0.0.1", access, *state, *lines, ""]))
        self._process: ChildProcess | None = None

    async def start(self) -> None:
        await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """SIGTERM, at which Mosquitto writes its sessions down."""
        if self._process is not None:
            await asyncio.to_thread(self._process.stop, 10.0)
            self._process = None

    async def kill(self) -> None:
        """SIGKILL, at which Mosquitto forgets what it has not written."""
        if self._process is not None:
            await asyncio.to_thread(self._process.kill)
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def forget(self) -> None:
        """Throw its written state away; only while it is stopped."""
        for file in (self.config.parent / "data").iterdir():
            file.unlink()

    def _start(self) -> None:
        self._process = ChildProcess("mosquitto", [self._program, "-c", str(self.config)])
        self._process.start()
        self._process.wait_ready(self._accepts, START_TIMEOUT_S, fix="See its log")

    def _accepts(self) -> bool:
        return accepts(self.port)
