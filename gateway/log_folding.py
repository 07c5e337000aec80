"""Folding: a burst of one event is a few lines and a count, whatever it is that comes thousands of times a second.

The first lines of a kind are written. Of those that follow only the number is kept, and when the window ends one line
more has it as `repeated`. A line is folded before it gets its time, its traceback or any form, which is what costs.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

FIRST = 5
"""Lines of a kind that are written before it counts as a burst."""
WINDOW_S = 10.0
FOLLOWING_WINDOW_S = 60.0
"""While a burst goes on: one line at its beginning, and one with the count at its end."""
KINDS = 256
"""Kinds of lines that are remembered; beyond them the one is forgotten that began first."""
IDENTITY = (
    "code", "model", "variant", "version", "step", "action", "task", "setting", "worker", "what", "where", "filter",
    "triton_model", "frame",
)  # fmt: skip
"""Keys of which each value is a kind of its own. None of them is what a sender makes up, such as a device's name."""
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/\\@]\S*")
_SHAPE_LENGTH = 200

Event = MutableMapping[str, Any]
Kind = tuple[Any, ...]
"""What tells one kind of line from another; it begins with the name of the logger and the level."""
Cancel = Callable[[], None]
Later = Callable[[float, Callable[[], None]], Cancel | None]
"""Has something called after so many seconds; returns what stops it, None where that cannot be had now."""


class _Window:
    """How many lines of a kind may still be written, and how many were not, since `begun_at`."""

    __slots__ = ("begun_at", "ends_at", "folded", "last", "left")

    def __init__(self, now: float, left: int, length_s: float) -> None:
        self.begun_at, self.ends_at = now, now + length_s
        self.left = left
        self.folded = 0
        self.last: Event = {}


class Folding:
    """Says which lines are written; `again` gets what was folded: its kind, its last event, how often, in seconds.

    For any thread. Its memory is bounded by KINDS; no timer runs unless something has been folded.
    """

    def __init__(
        self,
        again: Callable[[Kind, Event, int, float], None],
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self._again = again
        self._clock = clock
        self._later = later or _in_a_thread
        self._windows: OrderedDict[Kind, _Window] = OrderedDict()
        self._lock = threading.RLock()  # what is collected as garbage here may log as well
        self._cancel: Cancel | None = None
        self._due_at = math.inf

    def __len__(self) -> int:
        return len(self._windows)

    def admits(self, kind: Kind, event: Event) -> bool:
        """Whether this line is written. Of one that is not the event is kept until the next: it holds no traceback."""
        now = self._clock()
        forgotten: tuple[Kind, _Window] | None = None
        with self._lock:
            window = self._windows.get(kind)
            if window is None or (not window.folded and now >= window.ends_at):
                window = self._windows[kind] = _Window(now, FIRST, WINDOW_S)
                self._windows.move_to_end(kind)
                forgotten = self._windows.popitem(last=False) if len(self._windows) > KINDS else None
            admitted = window.left > 0
            if admitted:
                window.left -= 1
            else:
                window.folded += 1
                window.last = event
        if not admitted:
            self._look_at(window.ends_at, now)
        if forgotten is not None and forgotten[1].folded:
            self._say(*forgotten, now)
        return admitted

    def look(self) -> None:
        """Say what was folded in windows that have ended."""
        now = self._clock()
        self._cancel, self._due_at = None, math.inf
        with self._lock:
            due = [each for each in list(self._windows.items()) if each[1].folded and now >= each[1].ends_at]
            for kind, _ in due:
                self._windows[kind] = _Window(now, 1, FOLLOWING_WINDOW_S)
            ends = [window.ends_at for window in self._windows.values() if window.folded]
        self._look_at(min(ends, default=math.inf), now)
        for kind, window in due:
            self._say(kind, window, now)

    def end(self) -> None:
        """Say all that was folded, and begin anew."""
        now = self._clock()
        with self._lock:
            windows, self._windows = self._windows, OrderedDict()
        self._stop_looking()
        for kind, window in windows.items():
            if window.folded:
                self._say(kind, window, now)

    def _look_at(self, due_at: float, now: float) -> None:
        # Without the lock, for a thread that begins may itself log. Two at once make a timer too many, or a later one:
        # each looks at all windows.
        if due_at < self._due_at:
            self._stop_looking()
            self._due_at = due_at
            self._cancel = self._later(max(0.0, due_at - now), self.look)
            if self._cancel is None:
                self._due_at = math.inf

    def _stop_looking(self) -> None:
        if self._cancel is not None:
            self._cancel()
        self._cancel, self._due_at = None, math.inf

    def _say(self, kind: Kind, window: _Window, now: float) -> None:
        self._again(kind, window.last, window.folded, now - window.begun_at)


def _in_a_thread(seconds: float, call: Callable[[], None]) -> Cancel | None:
    timer = threading.Timer(seconds, call)
    timer.name, timer.daemon = "log folding", True
    try:
        timer.start()
    except RuntimeError:  # the program ends, or has no room for a thread: the next line tries again
        return None
    return timer.cancel


def kind_of(logger: str, level: str, event: Event) -> Kind:
    """The kind of a line of ours. Where no `code` says what it is, its `reason` does, without what varies in that."""
    get = event.get
    told = get("reason") if "code" not in event else None
    return (
        logger,
        level,
        get("event"),
        exception_kind(get("exc_info")),
        shape(told) if isinstance(told, str) else None,
        tuple(_plain(get(key)) for key in IDENTITY if key in event),
    )


def _plain(value: object) -> object:
    """What can stand in a kind: no list, and nothing that is compared in a way of its own."""
    return value if isinstance(value, str | int) else repr(value)[:_SHAPE_LENGTH]


def shape(text: str) -> str:
    """The first line of a text without names, paths and numbers: what texts of one kind have in common."""
    return _VARYING.sub("*", text[:_SHAPE_LENGTH].partition("\n")[0])


def exception_kind(given: Any) -> Kind | None:
    """Of what stands under `exc_info`: the type of the exception and the line that raised it."""
    error = exception_of(given)
    if error is None:
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace is not None else None
    return type(error), place


def exception_of(given: Any) -> BaseException | None:
    """The exception that `exc_info` stands for: itself, that of a triple, or the one that is being handled."""
    if isinstance(given, BaseException) or not given:
        return given or None
    error = given[1] if isinstance(given, tuple) and len(given) == 3 else sys.exc_info()[1]
    return error if isinstance(error, BaseException) else None


def without_traceback(event: Mapping[str, Any]) -> Event:
    """The event to keep: an exception would hold every frame that it passed, and the picture in it."""
    kept = dict(event)
    error = exception_of(kept.pop("exc_info", None))
    if error is not None:
        kept["error"] = type(error).__name__
    return kept
