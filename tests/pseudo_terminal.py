"""`edge-gateway` on a terminal of its own: what it draws, what it does with keys, and how it leaves the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

from tests.command_line import ROOT, TIMEOUT_S, environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x0e\x0f]")


class OnTerminal:
    """A command whose stdin, stdout and stderr are one terminal."""

    def __init__(self, arguments: tuple[str, ...], settings: dict[str, str]) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(100, 24)
        self.before = termios.tcgetattr(self._slave)
        self.written = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            env=environment(**{"TERM": "xterm-256color", **settings}),
            cwd=ROOT,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, columns: int, lines: int) -> None:
        """Make the terminal this large, as a window manager does."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type something; \\x03 is Ctrl-C."""
        os.write(self._master, keys.encode())

    def shows(self, text: str, timeout: float = TIMEOUT_S) -> None:
        """Wait until the text has been written since the last time that this was asked, whatever is between."""
        self.shows_like(re.escape(text), timeout)

    def shows_like(self, pattern: str, timeout: float = TIMEOUT_S) -> None:
        """The same for a regular expression."""
        start, deadline = len(self.written), time.monotonic() + timeout
        while not re.search(pattern, ESCAPES.sub("", self.written[start:])):
            if time.monotonic() > deadline or (not self._read() and self.process.poll() is not None):
                raise AssertionError(f"waited in vain for {pattern!r}; wrote {self.written[-3000:]!r}")

    def drain(self) -> None:
        """Read what has been written, of a process that writes no more for now."""
        while self._read():
            pass

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """The exit code, once everything it wrote has been read."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self._read()
        while self._read():
            pass
        return self.process.returncode

    @property
    def attributes(self) -> list[object]:
        """How the terminal is set now: the echo, whether lines are edited."""
        return termios.tcgetattr(self._slave)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.05)[0]:
            return False
        self.written += os.read(self._master, 65_536).decode("utf-8", "replace")
        return True

    def close(self) -> None:
        """End it, and give the terminal back."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@contextlib.contextmanager
def on_terminal(*arguments: str, **settings: str) -> Iterator[OnTerminal]:
    """Run a command on a terminal of 100 columns and 24 lines; it is killed at the end at the latest."""
    running = OnTerminal(arguments, settings)
    try:
        yield running
    finally:
        running.close()
