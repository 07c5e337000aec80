"""The processes of the workers: started, started again, and never left behind. Linux only."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import structlog

from gateway.errors import ConfigError
from gateway.workers.frames import Channel, ToFront
from gateway.workers.relay import STARTING, Relay

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0
"""A process that has lasted so long was a good one: the next is started at once again."""
CONFIGURATION_IS_WRONG = 2
"""Exit code of one that another start does not help, unless somebody mends the file."""
CANNOT_START = "cannot start: its configuration is wrong, see the log"
_PR_SET_PDEATHSIG = 1

Command = Callable[[int, int], Sequence[str]]
"""The command line of a worker: its index, and the file descriptor of its end of the channel."""


class Workers:
    """Keeps a process in each seat until `stop`; one that ends before is counted, and started again after a pause."""

    def __init__(self, relay: Relay, command: Command, restarted: Callable[[], None]) -> None:
        self._relay = relay
        self._command = command
        self._restarted = restarted
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = False
        self.exit_code = 0
        """The worst of those that were asked to end, or cannot start."""

    @property
    def running(self) -> int:
        """How many processes there are now."""
        return len(self._processes)

    async def keep(self, index: int) -> None:
        """Keep a process in this seat; returns when it has ended for good."""
        pause_s = FIRST_PAUSE_S
        while not self._stopping:
            started_at = time.monotonic()
            code = await self._one(index)
            self._relay.keep_counts(index)
            wrong = code == CONFIGURATION_IS_WRONG
            if self._stopping or (wrong and not self._relay.was_ready):
                asked = code == -signal.SIGTERM  # it was only starting, and had accepted nothing
                self.exit_code = max(self.exit_code, 0 if asked else code if code > 0 else int(code < 0))
                return
            pause_s = FIRST_PAUSE_S if time.monotonic() - started_at > STEADY_AFTER_S else pause_s
            pause_s = LONGEST_PAUSE_S if wrong else pause_s  # the others serve, and the file may be mended
            self._relay.seats[index].trouble = CANNOT_START if wrong else STARTING
            self._restarted()
            log.error(
                "A worker has ended and is started again", worker=index + 1, ending=in_words(code), pause_s=pause_s
            )
            await self._pause(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _one(self, index: int) -> int:
        """Start a process and wait for its end; returns its exit code, below 0 a signal's number."""
        mine, its = socket.socketpair()
        channel: Channel[ToFront] = self._relay.attach(index, lambda: self._kill_one(index))
        try:
            with its:
                process = _start(self._command(index, its.fileno()), its.fileno())
        except OSError as error:
            mine.close()
            log.error("A worker cannot be started", worker=index + 1, reason=str(error))
            return 1
        self._processes[index] = process
        try:
            await channel.open(mine)
            self._relay.greet(channel)
            log.info("Worker started", worker=index + 1, pid=process.pid)
            await _ended(process)
        finally:
            channel.close()
            if process.poll() is None:
                process.kill()
            code = process.wait()
            del self._processes[index]
        return code

    def _kill_one(self, index: int) -> None:
        if (process := self._processes.get(index)) is not None:
            process.kill()

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            await asyncio.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on to all."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def reload(self) -> None:
        """Have all read the configuration again; one that is only starting reads it now, and does not know SIGHUP."""
        for index, process in self._processes.items():
            if self._relay.seats[index].channel is not None:
                process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Ask all to finish what they have accepted, and start none again."""
        self._stopping = True
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End those that have not finished in time."""
        if self._processes:
            log.error("Workers did not end in time, and are killed", workers=[each + 1 for each in self._processes])
            self.exit_code = max(self.exit_code, 1)
        self.signal(signal.SIGKILL)


def _start(command: Sequence[str], channel: int) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C in a terminal reaches the front, which lets the workers finish in order."""
    return subprocess.Popen(command, pass_fds=(channel,), start_new_session=True)  # noqa: S603 - our own program


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Return at the end of a process, without a thread and without looking all the time."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    handle = os.pidfd_open(process.pid)
    try:
        loop.add_reader(handle, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def in_words(code: int) -> str:
    """An exit code for people."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that does; `parent` is its process id."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the front has ended before this worker began")


def require_linux() -> None:
    """Raise ConfigError where workers cannot be tied to their parent."""
    if sys.platform != "linux":
        raise ConfigError("several workers run on Linux only", where="WORKERS", fix="Leave WORKERS out")
