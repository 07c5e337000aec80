"""Which folders of the model repository have changed and are at rest again.

Only two looks at the files tell that they rest; an event merely makes the next look come at once. So a copy that
stalls, a file written through a mapping and a volume that reports nothing are all judged alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import structlog

from gateway.models.drop_events import FileEvents
from gateway.models.drop_looks import MAX_ENTRIES, Look, look_at

log = structlog.get_logger(__name__)

POLL_S = 2.0
"""Between two looks without events."""
SAFETY_POLL_S = 30.0
"""Between two looks with events: they can be lost, and writes through a mapping make none."""
LEAST_GAP_S, MOST_GAP_S = 0.1, 10.0
BUSY_SHARE = 0.05
"""Of the time that looks may take while something changes."""
IDLE_SHARE = 0.01
"""The same while nothing does."""
LOOKS_A_REST = 4
"""In the time for which files must not have changed."""


@dataclass(slots=True)
class _Unrest:
    """A folder that has changed: since when, in seconds since 1970, and when last by the monotonic clock."""

    since: float
    last: float


class DropWatcher:
    """Watches the repository between `async with` and its end; what changes in that time is told, and told once.

    `quiet_s` is how long the files of a folder must not have changed. With mode `poll` no events are asked for, and
    while something changes the files are opened at each look, so that a client of NFS asks its server. One caller at a
    time.
    """

    def __init__(
        self,
        repository: Path,
        state_dir: Path,
        quiet_s: float,
        mode: Literal["events", "poll"],
        *,
        poll_s: float = POLL_S,
    ) -> None:
        self._repository = repository
        self._state_dir = state_dir
        self._quiet_s = quiet_s
        self._poll_s = poll_s
        self._polls = mode == "poll"
        self._reopens = self._polls
        self._seen = Look()
        self._restless: dict[str, _Unrest] = {}
        self._woken = asyncio.Event()
        self._events: FileEvents | None = None
        self._watched: frozenset[str] = frozenset()
        self._look_s = 0.0
        self._told: set[str] = set()

    @property
    def restless(self) -> Mapping[str, float]:
        """The folders that have changed and are not yet at rest, with the time of the first change since 1970 in s."""
        return {name: unrest.since for name, unrest in self._restless.items()}

    async def __aenter__(self) -> Self:
        """Take the look that all others are held against; a folder that has just changed is restless from the start."""
        self._seen = look = await self._look()
        now = time.time()
        for name, changed in look.newest.items():
            age = now - changed
            if abs(age) < self._quiet_s:  # the clock of the volume may be another one
                self._restless[name] = _Unrest(min(changed, now), look.ended - max(age, 0.0))
        self._follow(look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.stop()

    async def settled(self) -> frozenset[str]:
        """The names of the folders that have come to rest, also of those that are gone; waits until there are any.

        A folder that goes on changing holds back no other. While the repository itself cannot be read none is taken
        for gone.
        """
        while True:
            await self._wait()
            try:
                look = await self._look()
            except asyncio.CancelledError:
                self._woken.set()  # for the next caller: what woke this one has not been looked at
                raise
            names = self._at_rest(look)
            self._follow(look, anew=bool(names))
            if names:
                return names

    async def _look(self) -> Look:
        reopen = self._reopens and bool(self._restless)
        look = await _in_thread(lambda: look_at(self._repository, self._state_dir, reopen=reopen))
        self._look_s = look.ended - look.started
        for name in look.too_large:
            if self._is_new(name):
                log.warning(
                    "A folder has too many files; changes of the rest are not seen",
                    where=str(self._repository / name),
                    most=MAX_ENTRIES,
                )
        return look

    def _at_rest(self, look: Look) -> frozenset[str]:
        if not look.directories:
            self._restless = {name: _Unrest(unrest.since, look.ended) for name, unrest in self._restless.items()}
            return frozenset()
        for name in self._seen.folders.keys() | look.folders.keys():
            if self._seen.folders.get(name) != look.folders.get(name):
                first = self._restless.get(name)
                self._restless[name] = _Unrest(first.since if first else time.time(), look.ended)
        self._seen = look
        rested = frozenset(
            name for name, unrest in self._restless.items() if look.started - unrest.last >= self._quiet_s
        )
        for name in rested:
            del self._restless[name]
        return rested

    # --- when to look -----------------------------------------------------------------------------------

    async def _wait(self) -> None:
        """Until it is time for the next look."""
        await asyncio.sleep(min(max(LEAST_GAP_S, self._look_s / BUSY_SHARE), MOST_GAP_S))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience()):
                await self._woken.wait()
        self._woken.clear()

    def _patience(self) -> float:
        """How long to wait for an event."""
        if self._restless:
            due = min(unrest.last for unrest in self._restless.values()) + self._quiet_s - time.monotonic()
            return max(0.0, min(due, self._quiet_s / LOOKS_A_REST))
        has_events = self._events is not None and self._events.running
        return SAFETY_POLL_S if has_events else min(max(self._poll_s, self._look_s / IDLE_SHARE), SAFETY_POLL_S)

    # --- events -----------------------------------------------------------------------------------------

    def _follow(self, look: Look, *, anew: bool = False) -> None:
        """Have events of the folders that there are now; `anew` also when none is new.

        For a folder that was deleted and made again is not watched any more, and may look the same.
        """
        if not look.directories:
            if self._is_new(""):
                where = str(self._repository)
                log.warning("The model repository cannot be read; what serves goes on", where=where, reason=look.reason)
        else:
            self._told.discard("")
        running = self._events is not None and self._events.running
        if self._polls or (running and not anew and look.directories == self._watched):
            return
        if self._events is not None:
            self._events.stop()
        self._events, self._watched = None, look.directories
        if look.directories:
            self._events = FileEvents(look.directories, self._woken.set, self._without_events)

    def _without_events(self, reason: str) -> None:
        if self._polls:
            return
        self._polls, self._events = True, None
        self._woken.set()
        log.warning(
            "File events cannot be had; new models are looked for all the time",
            every_s=self._poll_s,
            reason=reason,
            fix="Raise fs.inotify.max_user_watches and max_user_instances, or set DROP_WATCH=poll",
        )

    def _is_new(self, about: str) -> bool:
        """Whether nothing has been said about it yet."""
        told = about in self._told
        self._told.add(about)
        return not told


async def _in_thread(look: Callable[[], Look]) -> Look:
    """Run it in a thread that nobody has to wait for: a volume that hangs would keep the gateway from stopping."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Look] = loop.create_future()

    def run() -> None:
        try:
            result = look()
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            tell(future.set_exception, error)
        else:
            tell(future.set_result, result)

    def tell(how: Callable[..., None], what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(lambda: None if future.done() else how(what))

    threading.Thread(target=run, name="look-at-drops", daemon=True).start()
    return await future
