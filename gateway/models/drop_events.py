"""File events of folders, by inotify through watchfiles, in a thread that the event loop need not wait for.

Each folder is named: watchfiles itself would follow a link to all of the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable

STEP_MS = 200
"""Between two looks of the library for events, and for the request to stop."""
DEBOUNCE_MS = 400
MAX_REASON = 200


class FileEvents:
    """Calls `woken` on the event loop once it watches, and after each change directly in one of the folders.

    `failed` is called there once, with the reason, when no events can be had, for instance for want of watches. Both
    may still be called shortly after `stop`. Needs a running event loop.
    """

    def __init__(self, folders: Iterable[str], woken: Callable[[], None], failed: Callable[[str], None]) -> None:
        self._folders = tuple(folders)
        self._woken = woken
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="file-events", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """False after the end, also when that came by itself: one of the folders was not there."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread within STEP_MS; returns at once."""
        self._stop.set()

    def _run(self) -> None:
        try:
            self._watch()
        except FileNotFoundError:
            return  # whoever looks at the folders next will see that one has gone
        except Exception as error:  # noqa: BLE001 - whatever the library cannot do, polling can
            reason = str(error)[:MAX_REASON]
            self._tell(lambda: self._failed(reason))

    def _watch(self) -> None:
        from watchfiles import watch

        changes = watch(
            *self._folders,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=self._stop,
            rust_timeout=STEP_MS,
            yield_on_timeout=True,
            force_polling=False,
            recursive=False,
            ignore_permission_denied=True,
        )
        first = True
        for found in changes:
            if found or first:  # what came before the first of them was seen by nobody
                self._tell(self._woken)
            first = False

    def _tell(self, what: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(what)
