"""The live view on a real terminal: drawn several times a second, keys read, the terminal left as it was found."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.live import Live

from gateway.ports import Broker
from gateway.terminal.site_state import SiteState
from gateway.terminal.view import ORDERS, Frame, Order, view

REFRESH_S = 0.25
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""SIGINT is asyncio's."""
_SEQUENCES = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O[A-Z])?")
"""An arrow key is three characters, none of them meant."""


class Screen:
    """What a person sees and presses; `over` is set by q or by a signal, `code` is then the exit code."""

    def __init__(self, state: SiteState, broker: Broker, address: str) -> None:
        self._state = state
        self._broker = broker
        self._address = address
        self._console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._keyboard = Keyboard()
        self._order: Order = ORDERS[0]
        self._paused_at: float | None = None
        self.over = asyncio.Event()
        self.code = 0

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draw on the terminal inside the block; afterwards it is as before, whatever ended the block."""
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self._end, 128 + number)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        loop.add_signal_handler(signal.SIGWINCH, self._draw)
        try:
            self._start()
            yield
        finally:
            self._stop()
            for number in (*ENDING, signal.SIGTSTP, signal.SIGWINCH):
                loop.remove_signal_handler(number)

    async def draw_until_over(self) -> None:
        """Draw again and again; returns when `over` is set."""
        while not self.over.is_set():
            if self._paused_at is None:
                self._draw()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self.over.wait()

    def _start(self) -> None:
        self._keyboard.open(self._pressed)
        self._live.start()
        self._draw()

    def _stop(self) -> None:
        self._live.stop()
        self._keyboard.close()

    def _draw(self) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            # Not what COLUMNS and LINES say, which somebody has exported once: the window may have another size by now.
            self._console.size = ConsoleDimensions(*os.get_terminal_size(sys.stdout.fileno()))
        width, height = self._console.size
        frame = Frame(
            width=width,
            height=height,
            now=self._paused_at or time.monotonic(),
            address=self._address,
            trouble="" if self._broker.connected else self._broker.trouble or "it is coming up",
            order=self._order,
            paused=self._paused_at is not None,
            keys=self._keyboard.works,
        )
        self._live.update(view(self._state, frame), refresh=True)

    def _pressed(self, key: str) -> None:
        if key in "qQ":
            self._end(0)
        elif key in "pP ":
            self._paused_at = time.monotonic() if self._paused_at is None else None
            self._draw()
        elif key in "sS":
            self._order = ORDERS[(ORDERS.index(self._order) + 1) % len(ORDERS)]
            self._draw()

    def _end(self, code: int) -> None:
        self.code = code
        self.over.set()

    def _suspend(self) -> None:
        """Ctrl-Z: the shell gets its terminal back as it was, and the view comes again with `fg`."""
        self._stop()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._start()


class Keyboard:
    """Single keys of the terminal that is stdin, without an echo; `works` says whether there is one."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    @property
    def works(self) -> bool:
        """Whether keys are read."""
        return self._before is not None

    def open(self, pressed: Callable[[str], None]) -> None:
        """Call `pressed` with each key; nothing happens where stdin is no terminal."""
        if not sys.stdin.isatty():
            return
        number = sys.stdin.fileno()
        self._before = termios.tcgetattr(number)
        tty.setcbreak(number)
        asyncio.get_running_loop().add_reader(number, self._read, number, pressed)

    def close(self) -> None:
        """The terminal as it was; may be called twice."""
        if self._before is None:
            return
        number = sys.stdin.fileno()
        asyncio.get_running_loop().remove_reader(number)
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(number, termios.TCSADRAIN, self._before)
        self._before = None

    @staticmethod
    def _read(number: int, pressed: Callable[[str], None]) -> None:
        try:
            keys = os.read(number, 64)
        except OSError:
            keys = b""
        if not keys:  # hung up
            asyncio.get_running_loop().remove_reader(number)
        for key in _SEQUENCES.sub("", keys.decode("ascii", "ignore")):
            pressed(key)


class Notes(io.StringIO):
    """A stream for the log while the screen is drawn: each line becomes an event of the view."""

    def __init__(self, state: SiteState) -> None:
        super().__init__()
        self._state = state

    def write(self, text: str) -> int:
        """Take the lines of one record."""
        for line in text.splitlines():
            if line.strip():
                self._state.note(f"{time.strftime('%H:%M:%S')}  {line.removeprefix('edge-gateway: ')}")
        return len(text)
