"""What the contract tests of the inference server share: how they ask, and what they do to the server itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.local.tritonserver import EmbeddedTriton
from gateway.messages import InferRequest
from gateway.testing import MemoryTriton

DEADLINE_S = 60.0
ROWS = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)


class Controls(Protocol):
    """What a test does to the server itself."""

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def kill(self) -> None: ...
    def start(self) -> None: ...


class MemoryControls:
    """The memory server has all of it itself."""

    def __init__(self, server: MemoryTriton) -> None:
        self.freeze, self.thaw, self.kill, self.start = server.freeze, server.thaw, server.stop, server.start


class TritonControls:
    """Freezing stops the whole process, as a machine without processor time would."""

    def __init__(self, triton: EmbeddedTriton) -> None:
        self._triton = triton
        self.kill, self.start = triton.kill, triton.start

    def freeze(self) -> None:
        os.kill(self._triton.pid, signal.SIGSTOP)
        # The signal is delivered thread by thread; until the last one has stopped an answer may still come.
        deadline = time.monotonic() + DEADLINE_S
        while not all(state == "T" for state in self._thread_states()):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _thread_states(self) -> list[str]:
        stats = Path(f"/proc/{self._triton.pid}/task").glob("*/stat")
        return [stat.read_text().rpartition(")")[2].split()[0] for stat in stats]

    def thaw(self) -> None:
        os.kill(self._triton.pid, signal.SIGCONT)


class All:
    """Does to all servers behind a pool what a test does to the one."""

    def __init__(self, controls: Sequence[Controls]) -> None:
        self._controls = controls

    def freeze(self) -> None:
        for each in self._controls:
            each.freeze()

    def thaw(self) -> None:
        for each in self._controls:
            each.thaw()

    def kill(self) -> None:
        for each in self._controls:
            each.kill()

    def start(self) -> None:
        for each in self._controls:
            each.start()


def ask(model: str, rows: NDArray[Any] = ROWS, *, timeout_s: float = DEADLINE_S, version: str = "") -> InferRequest:
    """A request to one of the tiny models."""
    return InferRequest(model, {"x": rows}, ("y__0",), timeout_s, version)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until the condition holds; TimeoutError at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.05)
