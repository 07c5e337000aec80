"""Publications on disk: a small SQLite database of one gateway, with one thread of its own.

Every method of `Spool` but `open` may be awaited from the event loop; what SQLite raises leaves as one of two errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import structlog

from gateway.errors import ConfigError
from gateway.messages import Publication

log = structlog.get_logger(__name__)
T = TypeVar("T")

FORMAT = 1
"""`user_version` of the database; a higher one is of a later gateway, which this one does not touch."""
RESERVE_BYTES = 256 * 1024
"""Of SPOOL_MAX_BYTES, for the log that SQLite writes ahead while entries are deleted."""
ROW_BYTES = 256
"""What a row takes beside its texts and payload, with its place in the index."""
CHECKPOINT_PAGES = 16
DELETED_AT_ONCE = 16
"""What a transaction that deletes writes into the log stays within RESERVE_BYTES."""
LOCK_LIMIT_S = 0.3
"""For the lock, which `edge-gateway doctor` holds for a moment."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLE = """
create table if not exists publications (
    number integer primary key autoincrement,
    event text not null,
    topic text not null,
    payload blob not null,
    qos integer not null,
    content_type text,
    correlation_data blob,
    user_properties text not null,
    unique (event, topic)
)
"""


class SpoolFull(Exception):
    """There is no room below SPOOL_MAX_BYTES."""


class SpoolFailed(Exception):
    """The disk did not take it or give it; `lost` says that what was on it is there no more, or has been set aside."""

    def __init__(self, reason: str, *, lost: bool = False) -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(frozen=True, slots=True)
class Kept:
    """One publication on disk; a higher number is a later one, and no number comes again in this process."""

    number: int
    publication: Publication


def spool_file(folder: Path, gateway_id: str) -> Path:
    """The database of a gateway; several share a folder."""
    name = quote(gateway_id, safe="")
    if len(name) > 200:  # file names end at 255
        name = hashlib.sha256(gateway_id.encode()).hexdigest()
    return folder / f"spool-{name}.sqlite3"


class Spool:
    """Publications by their event and topic, oldest first, in at most `max_bytes` on disk.

    Only one process has it open: a lock beside it ends with the process, however that ends.
    """

    def __init__(self, folder: Path, gateway_id: str, max_bytes: int) -> None:
        self.file = spool_file(folder, gateway_id)
        self._gateway_id = gateway_id
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._database: sqlite3.Connection | None = None
        self._closed = False
        self._lock: int | None = None
        self._before = 0
        """The last number of the files before this one, from which its own go on."""
        self._last = 0
        """The last number that was given."""
        self.count = 0
        """Publications on disk, as far as could be told."""
        self.bytes = 0
        """Size of its files."""

    @property
    def is_open(self) -> bool:
        """False before `open`, and since it failed until something of it is asked again."""
        return self._database is not None

    def open(self) -> bool:
        """Open or create it, before the event loop runs; False when a damaged one was set aside for a new one.

        Raises ConfigError when another gateway has it or a later version wrote it, SpoolFailed when the disk does not
        work, which may pass.
        """
        try:
            with self._foreign_errors():
                self._open()
        except SpoolFailed as failure:
            if not failure.lost:
                raise
            with self._foreign_errors():
                self._open()
            return False
        return True

    async def put(self, publications: Sequence[tuple[str, Publication]]) -> list[int]:
        """Keep all of them or none, each under the name of its event; returns their numbers.

        One that is there already keeps its number. Raises SpoolFull and SpoolFailed.
        """
        return await self._run(lambda database: self._put(database, publications))

    async def oldest(self, after: int = 0) -> Kept | None:
        """The first to send whose number is higher; raises SpoolFailed."""
        return await self._run(lambda database: self._oldest(database, after))

    async def delete(self, numbers: Sequence[int]) -> None:
        """They are no longer needed; raises SpoolFailed."""
        await self._run(
            lambda database: self._delete(database, "number = ?", [(number - self._before,) for number in numbers])
        )

    async def delete_oldest(self, up_to: int) -> None:
        """The oldest with a number of at most this are no longer needed, so many at once; raises SpoolFailed."""
        which = "number in (select number from publications where number <= ? order by number limit ?)"
        await self._run(lambda database: self._delete(database, which, [(up_to - self._before, DELETED_AT_ONCE)]))

    async def forget(self, event: str, topic: str) -> None:
        """Delete it if it is there; raises SpoolFailed."""
        await self._run(lambda database: self._delete(database, "event = ? and topic = ?", [(event, topic)]))

    async def close(self) -> None:
        """Close the file and free its lock."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)

    # --- in its thread ---------------------------------------------------------------------------

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def guarded() -> T:
            with self._foreign_errors():
                try:
                    database = self._database or self._open()
                except ConfigError as error:  # another gateway has taken it meanwhile
                    raise SpoolFailed(str(error)) from error
                try:
                    return work(database)
                finally:
                    self._measure(database)

        if self._closed:
            raise SpoolFailed("the spool has been closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    @contextlib.contextmanager
    def _foreign_errors(self) -> Iterator[None]:
        """A file that is damaged is set aside, and one that failed is opened anew at the next attempt.

        A full disk is no failure of the file: what is in it can be read, and looking through it anew would take long.
        """
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            damaged = isinstance(error, ValueError) or code in _DAMAGED
            if code != sqlite3.SQLITE_FULL:
                self._close()
            if damaged:
                self._set_aside()
            raise SpoolFailed(str(error) or type(error).__name__, lost=damaged) from error

    def _open(self) -> sqlite3.Connection:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._take_lock()
        # SQLite would create it for everybody to read; the files beside it take its mode.
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        database = sqlite3.connect(self.file, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(database)
            (self.count,) = database.execute("select count(*) from publications").fetchone()
            (written,) = database.execute("select coalesce(max(seq), 0) from sqlite_sequence").fetchone()
        except BaseException:
            database.close()
            raise
        self._database = database
        self._make_sure_that_it_is_the_same(written)
        self._measure(database)
        return database

    def _make_sure_that_it_is_the_same(self, written: int) -> None:
        """Raises SpoolFailed when somebody has removed the file, or put another one in its place, meanwhile."""
        if self._before + written < self._last:
            self._before = self._last
            self._close()
            raise SpoolFailed("the file is not the one that was written before", lost=True)
        self._last = self._before + written

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = os.open(self.file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            locked = _lock_within(lock, LOCK_LIMIT_S)
        except OSError:
            os.close(lock)
            raise
        if not locked:
            os.close(lock)
            raise ConfigError(
                f"Another gateway with the id '{self._gateway_id}' has its answers in this folder",
                where=str(self.file),
                fix="Give each gateway a GATEWAY_ID or a SPOOL_DIR of its own, or stop the other one",
            )
        self._lock = lock

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Raises ConfigError for the file of a later version, sqlite3.DatabaseError with its code for a damaged one."""
        database.execute("pragma locking_mode = exclusive")  # so that WAL needs no shared memory
        (version,) = database.execute("pragma user_version").fetchone()
        if version > FORMAT:
            raise ConfigError(
                f"A later version of the gateway has written this spool (format {version}, this one knows {FORMAT})",
                where=str(self.file),
                fix="Run that version until the spool is empty, or move the file away",
            )
        (found,) = database.execute("pragma quick_check(1)").fetchone()
        if found != "ok":
            damage = sqlite3.DatabaseError(found)
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damage
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = normal")
        database.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
        database.execute("pragma journal_size_limit = 0")
        database.execute("pragma cache_size = -512")  # KiB; each row is read once
        database.execute("begin immediate")
        database.execute(_TABLE)
        if version != FORMAT:  # on a full disk, what is there can be read only if nothing is written
            database.execute(f"pragma user_version = {FORMAT}")
        database.execute("commit")

    def _put(self, database: sqlite3.Connection, publications: Sequence[tuple[str, Publication]]) -> list[int]:
        self._make_sure_of_room(database, sum(_size(publication) for _, publication in publications))
        (last,) = database.execute("select coalesce(max(number), 0) from publications").fetchone()
        with _transaction(database):
            rows = [_insert(database, event, publication) for event, publication in publications]
        self.count += len({row for row in rows if row > last})
        numbers = [self._before + row for row in rows]
        self._last = max([self._last, *numbers])
        return numbers

    def _oldest(self, database: sqlite3.Connection, after: int) -> Kept | None:
        row = database.execute(
            "select * from publications where number > ? order by number limit 1", (after - self._before,)
        ).fetchone()
        if row is None:
            return None
        number, _event, topic, payload, qos, content_type, correlation_data, properties = row
        pairs = tuple((name, value) for name, value in json.loads(properties))
        kept = Publication(topic, payload, qos, False, content_type, correlation_data, pairs)
        return Kept(self._before + number, kept)

    def _make_sure_of_room(self, database: sqlite3.Connection, needed: int) -> None:
        """Everything is written twice for a moment, into the log ahead and into the database."""
        page, pages, free = (
            database.execute(f"pragma {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
        grows = max(0, needed - free * page)
        if pages * page + grows + needed + RESERVE_BYTES > self._max_bytes:
            raise SpoolFull

    def _delete(self, database: sqlite3.Connection, which: str, values: Sequence[tuple[object, ...]]) -> None:
        with _transaction(database):
            deleted = database.executemany(f"delete from publications where {which}", values)  # noqa: S608 - our words  # nosec B608
        self.count -= deleted.rowcount

    def _measure(self, database: sqlite3.Connection) -> None:
        """Give the disk back what an empty spool does not need."""
        if not self.count and database.execute("pragma freelist_count").fetchone()[0] > CHECKPOINT_PAGES:
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk has no room for it
                database.execute("vacuum")
                database.execute("pragma wal_checkpoint(truncate)")
        files = (self.file, self.file.with_name(self.file.name + "-wal"))
        self.bytes = sum(file.stat().st_size for file in files if file.exists())

    def _set_aside(self) -> None:
        aside = self.file.with_name(f"{self.file.name}.damaged-{int(time.time())}")
        with contextlib.suppress(OSError):
            self.file.rename(aside)
            self.file.with_name(self.file.name + "-wal").unlink(missing_ok=True)
        self.count = 0
        self._before = self._last
        log.error(
            "The spool is damaged and was set aside; the answers in it are not sent",
            file=str(aside),
            fix="Check the disk; delete the file when nobody wants to look at it",
        )

    def _close(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            with contextlib.suppress(sqlite3.Error):
                database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock_within(lock: int, limit_s: float) -> bool:
    latest = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= latest:
                return False
            time.sleep(limit_s / 10)
        else:
            return True


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("begin immediate")
    try:
        yield
        database.execute("commit")
    except BaseException:
        if database.in_transaction:
            database.execute("rollback")
        raise


def _size(publication: Publication) -> int:
    properties = sum(len(name) + len(value) + 8 for name, value in publication.user_properties)
    return len(publication.payload) + 2 * len(publication.topic) + 2 * properties + ROW_BYTES


def _insert(database: sqlite3.Connection, event: str, publication: Publication) -> int:
    (number,) = database.execute(
        "insert into publications (event, topic, payload, qos, content_type, correlation_data, user_properties)"
        " values (?, ?, ?, ?, ?, ?, ?) on conflict do update set qos = qos returning number",
        (
            event,
            publication.topic,
            publication.payload,
            publication.qos,
            publication.content_type,
            publication.correlation_data,
            json.dumps(publication.user_properties),
        ),
    ).fetchone()
    return int(number)
