"""A bar for work that takes long, on stderr and on a terminal only: pipes, logs and machines get none of it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TextIO

from gateway.terminal.ability import can_draw
from gateway.terminal.printable import one_cell_each

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

SHOWN_AFTER_S = 0.5
"""Less is done before anybody has read what it is."""
MOST_LETTERS = 60

Unit = Literal["bytes", "items", "share"]


class Bar:
    """How far some work is; without a terminal it says nothing, and costs nothing."""

    _drawn = False
    """Whether one is on the screen: the work within some work needs no second one."""

    def __init__(self, label: str, total: float | None, unit: Unit, *, shown: bool, still: bool = False) -> None:
        self._label = label
        self._total = total
        self._unit: Unit = unit
        self._shown = shown
        self._still = still
        self._done = 0.0
        self._started = time.monotonic()
        self._bar: Progress | None = None

    def advance(self, amount: float = 1.0, label: str | None = None) -> None:
        """So much more is done; `label` says what comes now."""
        self._done += amount
        self._label = self._label if label is None else label
        if not self._shown:
            return
        if self._bar is None and time.monotonic() - self._started >= SHOWN_AFTER_S:
            self.show()
        elif self._bar is not None:
            self._update(self._bar)

    def to(self, done: float) -> None:
        """So much is done in all."""
        self.advance(done - self._done)

    def show(self) -> None:
        """Begin to draw; `advance` does it by itself after a moment."""
        if not self._shown or self._bar is not None or Bar._drawn:
            return
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        # Lines that are printed meanwhile go above the bar, but only where they go to the same terminal.
        together = can_draw(sys.stdout)
        columns = _columns(self._unit, self._total)
        self._bar = Progress(
            *columns, console=console, transient=True, redirect_stdout=together, auto_refresh=not self._still
        )
        self._bar.add_task("", total=self._total)
        self._update(self._bar)
        self._bar.start()
        Bar._drawn = True

    def close(self) -> None:
        """Take it off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, Bar._drawn = None, False

    def _update(self, bar: Progress) -> None:
        text = one_cell_each(self._label, MOST_LETTERS)
        bar.update(bar.task_ids[0], completed=self._done, description=text, refresh=self._still)


@contextlib.contextmanager
def progress(
    label: str, total: float | None, unit: Unit = "items", *, quiet: bool = False, still: bool = False
) -> Iterator[Bar]:
    """A bar up to `total` for the time of the block, as soon as that is long; `quiet`: none, as with --json.

    A `still` one is drawn only when it advances: between two steps it takes no time from what is measured.
    """
    bar = Bar(label, total, unit, shown=not quiet and can_draw(sys.stderr), still=still)
    try:
        yield bar
    finally:
        bar.close()


@contextlib.contextmanager
def busy(label: str, *, quiet: bool = False) -> Iterator[Bar]:
    """A sign that something goes on whose end nobody knows, for the time of the block."""
    with progress(label, None, quiet=quiet) as bar:
        bar.show()
        yield bar


def say_above(line: str, stream: TextIO | None = None) -> None:
    """Print a line while a bar may be drawn; click.echo goes around what keeps the two apart."""
    print(line, file=stream or sys.stdout, flush=True)


def _columns(unit: Unit, total: float | None) -> list[ProgressColumn]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    if total is None:
        return [SpinnerColumn(), text, TimeElapsedColumn()]
    counts: dict[Unit, ProgressColumn] = {
        "bytes": DownloadColumn(binary_units=True),
        "items": MofNCompleteColumn(),
        "share": TaskProgressColumn(),
    }
    return [text, BarColumn(), counts[unit], TimeRemainingColumn()]
