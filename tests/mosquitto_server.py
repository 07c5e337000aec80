"""A real Mosquitto for one test: a free port, its state in a temporary folder, gone with the test."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import pytest

from gateway.local.processes import ChildProcess, free_ports

START_TIMEOUT_S = 20.0


class Mosquitto:
    """`lines` are added to its configuration; a listener and anonymous access are there already, unless `bare`."""

    def __init__(self, folder: Path, *lines: str, bare: bool = False) -> None:
        if shutil.which("mosquitto") is None:
            pytest.skip("no mosquitto on PATH")
        self.port = free_ports(1)[0]
        self.config = folder / "mosquitto.conf"
        (folder / "data").mkdir()
        access = () if bare else ("allow_anonymous true",)
        state = ("persistence true", f"persistence_location {folder}/data/", "user root")
        self.config.write_text("\n".join([f"listener {self.port} 127.0.0.1", *access, *state, *lines, ""]))
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

    def forget(self) -> None:
        """Throw its written state away; only while it is stopped."""
        for file in (self.config.parent / "data").iterdir():
            file.unlink()

    def _start(self) -> None:
        self._process = ChildProcess("mosquitto", ["mosquitto", "-c", str(self.config)])
        self._process.start()
        self._process.wait_ready(self._accepts, START_TIMEOUT_S, fix="See its log")

    def _accepts(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False
