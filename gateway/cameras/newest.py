"""The one place between the thread that reads a camera and the event loop that sends its pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture that is not encoded before it is wanted."""

    encoded: Callable[[], bytes]
    """Its bytes as they are sent; takes milliseconds, and raises UserError."""
    taken_at: float | None = None
    """Seconds since 1970; None for one without a time of its own, which is taken when it is sent."""


class Newest:
    """Holds one picture at most: a newer one takes its place, so that nobody ever waits behind old ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._picture: Picture | None = None
        self._defect: BaseException | None = None
        self._closed = False

    def is_closed(self) -> bool:
        """Whether nobody wants any more."""
        return self._closed

    def put(self, picture: Picture) -> None:
        """Leave a picture in place of the one before."""
        with self._changed:
            self._picture = picture

    def hand_over(self, picture: Picture) -> None:
        """Leave a picture that shall not be passed over, and wait until it is taken or nobody wants any more."""
        with self._changed:
            self._picture = picture
            self._changed.wait_for(lambda: self._picture is None or self._closed)

    def take(self) -> Picture | None:
        """The newest since the last time; raises what the reading thread has failed with for good."""
        with self._changed:
            if self._defect is not None:
                raise self._defect
            picture, self._picture = self._picture, None
            self._changed.notify_all()
            return picture

    def rest(self, seconds: float) -> None:
        """Wait, or until nobody wants any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, timeout=max(0.0, seconds))

    def fail(self, defect: BaseException) -> None:
        """The reading thread ends of this; whoever takes next is told."""
        with self._changed:
            self._defect = defect

    def close(self) -> None:
        """Nobody wants any more: whoever waits goes on, and sees it."""
        with self._changed:
            self._closed = True
            self._picture = None
            self._changed.notify_all()
