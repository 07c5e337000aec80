"""`edge-gateway` as a person runs it: a process of its own with a clean environment."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.config import Settings
from gateway.local.broker import EmbeddedBroker

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 180.0
"""Whatever is waited for comes in seconds; a shared machine stands still for longer now and then."""
_OURS = {*(name.upper() for name in Settings.model_fields), "GATEWAY_CONFIG", "DEMO_SECONDS", "NO_COLOR"}


def environment(**more: str) -> dict[str, str]:
    """This process's environment without any setting of ours, and what the test adds."""
    return {name: value for name, value in os.environ.items() if name.upper() not in _OURS} | more


def leading_to(broker: EmbeddedBroker) -> dict[str, str]:
    """The settings with which a command finds this broker."""
    return {
        "AIO_BROKER_HOSTNAME": broker.host,
        "AIO_BROKER_TCP_PORT": str(broker.port),
        "MQTT_PROTOCOL": broker.protocol,
        "GATEWAY_ID": "gw",
    }


def one_line(*arguments: str, **settings: str) -> str:
    """The only line that a wrong command writes."""
    done = run(*arguments, **settings)
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("edge-gateway: ")
    return line


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env=environment(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


class Running:
    """A command under way; what it writes is collected as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((process.stdout, self.out), (process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Iterator[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))  # noqa: PERF401 - as each line comes

    def until(self, condition: Callable[[], bool], what: str, timeout: float = TIMEOUT_S) -> None:
        """Poll a condition; fails at the deadline, or when the command has ended, with what it wrote."""
        deadline = time.monotonic() + timeout
        while not condition():
            ended = self.process.poll() is not None
            if ended:
                self._join()
            if (ended and not condition()) or time.monotonic() > deadline:
                text = "\n".join([*self.out, *self.err])
                raise AssertionError(f"waited in vain for {what}; exit code {self.process.poll()}\n{text}")
            time.sleep(0.01)

    def says(self, text: str, timeout: float = TIMEOUT_S) -> None:
        """Wait until some line has this text."""
        self.until(lambda: any(text in line for line in [*self.out, *self.err]), repr(text), timeout)

    def interrupt(self, number: int) -> None:
        """Send a signal to this process alone."""
        self.process.send_signal(number)

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """The exit code, once everything it wrote has been read."""
        code = self.process.wait(timeout)
        self._join()
        return code

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(5)


@contextlib.contextmanager
def start(*arguments: str, program: str | None = None, **settings: str) -> Iterator[Running]:
    """Run a command beside the test, or a program that runs it; it is killed at the end at the latest."""
    what = ("-m", "gateway") if program is None else ("-c", program)
    process = subprocess.Popen(
        [sys.executable, *what, *arguments],
        env=environment(**settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = Running(process)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        running.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
