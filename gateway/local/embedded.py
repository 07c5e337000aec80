"""What the embedded broker and the embedded Triton have in common: one child process, seen from outside."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import ClassVar, Self

from gateway.local.processes import ChildProcess


class EmbeddedServer(abc.ABC):
    """A server in a child process; a context manager that starts and stops it."""

    title: ClassVar[str]
    """How messages call it."""

    def __init__(self) -> None:
        self._process: ChildProcess | None = None

    @abc.abstractmethod
    def start(self) -> None:
        """Start it and wait until it serves; StackError says why it does not."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End it in order."""

    @property
    def pid(self) -> int:
        """Of the server's own process."""
        return self._running_process().pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.running

    def log_tail(self, count: int = 20) -> list[str]:
        """The last lines of its log."""
        return self._running_process().log_tail(count)

    def log_excerpt(self) -> str:
        """The end of its log as a text to append to a message."""
        return self._running_process().log_excerpt()

    def _running_process(self) -> ChildProcess:
        if self._process is None:
            raise RuntimeError(f"{self.title} has not been started")
        return self._process

    def _require_stopped(self) -> None:
        if self.running:
            raise RuntimeError(f"{self.title} runs already")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
