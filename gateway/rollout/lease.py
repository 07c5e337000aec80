"""Which of several gateways on one model volume runs rollouts: the one that holds a lease.

The lease is a file `roller.<generation>.lock` in MODEL_STATE_DIR; the highest generation is the one that counts. Its
holder has it locked for as long as the process lives, so that a killed holder is followed at once, and writes into it
every now and then. A holder whose lock stands while nothing is written has stopped or hangs, or its machine is gone:
then the next generation is made, which the old holder sees before its next write.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from gateway.rollout.store import FILE_MODE, FOLDER_MODE, reason_and_fix

log = structlog.get_logger(__name__)

RECORD_BYTES = 1024
"""Always written in full and in place, so that a renewal needs no more room on the volume."""
RENEWALS = 4
"""How many fall into the time after which the lease is lost."""
SURE_FOR = 0.8
"""Part of that time for which the holder relies on its last renewal; the rest is for the write that it has begun."""
LOCK_FILE = re.compile(r"roller\.([1-9][0-9]{0,17})\.lock")
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Lease(Protocol):
    """One of several processes holds it at a time."""

    @property
    def interval_s(self) -> float:
        """How often `hold` wants to be called, by the holder and by those who wait, in seconds."""
        ...

    @property
    def holder(self) -> str:
        """The gateway that holds it, as last seen; "" when that is not known."""
        ...

    @property
    def problem(self) -> str:
        """Why it cannot be had here, and what to do about it; "" when all is well."""
        ...

    async def hold(self) -> bool:
        """Take it if it is free, renew it if it is ours; True while it is ours. Never raises, logs each change once."""
        ...

    def check(self) -> bool:
        """True when it is ours for sure; to be asked just before a write, takes some ten microseconds."""
        ...

    async def release(self) -> None:
        """Give it back, so that the next one need not wait. Never raises."""
        ...


def new_identity(gateway_id: str) -> str:
    """A name for this process, as replicas may share a GATEWAY_ID; what is before the last slash is for people."""
    return f"{gateway_id}/{secrets.token_hex(4)}"


class _Record(msgspec.Struct, frozen=True):
    """What the holder writes; `holder` is "" when it has given the lease back."""

    holder: str
    place: str
    """The running kernel and the mount, within which a lock tells the truth; "" where that is not known."""
    pid: int
    renewed_at: float
    """In seconds since 1970; for people."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file as it was at one look; the time as well, since on a full volume it is all that can be renewed."""

    inode: int = 0
    mtime_ns: int = 0
    data: bytes = b""

    @property
    def record(self) -> _Record | None:
        try:
            return msgspec.json.decode(self.data, type=_Record)
        except (ValueError, RecursionError):
            return None


@dataclass(slots=True)
class _Held:
    """The file that is ours, and when it was last renewed."""

    descriptor: int
    generation: int
    inode: int
    renewed_at: float


class FileLease:
    """The lease as a locked file in `folder`; `identity` must be this process' alone.

    Clocks are not compared: whoever waits takes over when it has seen no change for `ttl_s` by its own clock.
    """

    def __init__(self, folder: Path, identity: str, ttl_s: float = 10.0) -> None:
        self._folder = folder
        self._identity = identity
        self._ttl_s = ttl_s
        self._kernel = _running_kernel()
        self._held: _Held | None = None
        self._seen = _Seen()
        self._seen_at = 0.0
        self._attempt: asyncio.Future[None] | None = None
        self._holder = ""
        self._problem = ""
        self._logged = (False, "", "")

    @property
    def interval_s(self) -> float:
        """As Lease.interval_s."""
        return min(1.0, self._ttl_s / RENEWALS / 2)

    @property
    def holder(self) -> str:
        """As Lease.holder."""
        return self._holder.rpartition("/")[0] or self._holder

    @property
    def problem(self) -> str:
        """As Lease.problem."""
        return self._problem

    async def hold(self) -> bool:
        """As Lease.hold; a volume that does not answer is waited for in a thread, and the lease is not ours then."""
        attempt = self._attempt = self._attempt or asyncio.ensure_future(asyncio.to_thread(self._try))
        await asyncio.wait({attempt}, timeout=self._ttl_s / 2)
        holds = False
        if attempt.done():
            self._attempt = None
            attempt.result()
            holds = self.check()
        else:
            self._problem = f"{self._folder} does not answer. Check the volume"
        self._log_change(holds)
        return holds

    def check(self) -> bool:
        """As Lease.check."""
        held = self._held
        if held is None or _now() - held.renewed_at >= self._ttl_s * SURE_FOR:
            return False
        try:
            return self._is_current(held)
        except OSError:
            return False

    async def release(self) -> None:
        """As Lease.release; where the volume does not answer, the others have to wait."""
        if self._attempt is not None:
            await asyncio.wait({self._attempt}, timeout=self._ttl_s / 2)
        was_ours = False
        if self._attempt is None or self._attempt.done():
            self._attempt = None
            was_ours = await asyncio.to_thread(self._give_back)
        self._log_change(holds=False, ended=was_ours)

    def _try(self) -> None:
        """Renew, or else contend."""
        try:
            if self._held is not None and not self._renew(self._held):
                self._drop()
            if self._held is None:
                self._folder.mkdir(FOLDER_MODE, exist_ok=True)
                self._contend(self._newest() or 1)
            self._problem = ""
        except OSError as error:
            reason, fix = reason_and_fix(error)
            self._problem = f"{self._folder}: {reason}. {fix}"

    def _renew(self, held: _Held) -> bool:
        now = _now()
        if now - held.renewed_at < self._ttl_s / RENEWALS:
            return self._is_current(held)
        record = _read(held.descriptor).record
        if record is not None and record.holder != self._identity:
            return False  # on a volume whose locks do not reach whoever wrote that
        self._write(held.descriptor, self._identity)
        # In this order: whoever supersedes makes its file first, and then looks whether ours has changed.
        if not self._is_current(held):
            return False
        held.renewed_at = now
        return True

    def _contend(self, generation: int) -> None:
        descriptor = self._open(generation)
        try:
            record = self._look(descriptor).record
            unchanged = time.monotonic() - self._seen_at >= self._ttl_s
            if _lock(descriptor):
                if unchanged or self._is_free(record, descriptor):
                    self._take(descriptor, generation)
            elif unchanged:
                self._supersede(generation, descriptor)
        finally:
            self._close_unless_held(descriptor)

    def _is_free(self, record: _Record | None, descriptor: int) -> bool:
        """Of a file that was not locked, which says nothing about a holder on another machine or another mount."""
        if record is None:
            return not self._seen.data
        return record.holder in ("", self._identity) or ("" != record.place == self._place(descriptor))

    def _supersede(self, generation: int, old: int) -> None:
        """Make the next generation, unless the holder of this one has come back meanwhile."""
        path = self._path(generation + 1)
        descriptor = self._open(generation + 1)
        try:
            if not _lock(descriptor):
                return
            if _read(old) != self._seen:
                path.unlink()
                return
            silent = self.holder
            if self._take(descriptor, generation + 1):
                log.warning("The gateway that ran rollouts has stopped, hangs or is cut off", gateway=silent)
                self._remove_before(generation + 1)
        finally:
            self._close_unless_held(descriptor)

    def _take(self, descriptor: int, generation: int) -> bool:
        """Of a file that we have locked."""
        held = _Held(descriptor, generation, os.fstat(descriptor).st_ino, _now())
        self._write(descriptor, self._identity)
        if not self._is_current(held):
            return False
        self._held, self._holder = held, self._identity
        return True

    def _is_current(self, held: _Held) -> bool:
        return self._newest() == held.generation and _inode(self._path(held.generation)) == held.inode

    def _newest(self) -> int:
        """The highest generation; 0 when there is none."""
        return max(self._generations(), default=0)

    def _generations(self) -> list[int]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        return [int(found[1]) for name in names if (found := LOCK_FILE.fullmatch(name))]

    def _remove_before(self, generation: int) -> None:
        for each in self._generations():
            if each < generation:
                with contextlib.suppress(OSError):
                    self._path(each).unlink()

    def _path(self, generation: int) -> Path:
        return self._folder / f"roller.{generation}.lock"

    def _open(self, generation: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path(generation), flags, FILE_MODE)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, f"{self._path(generation).name} is no regular file")
        return descriptor

    def _look(self, descriptor: int) -> _Seen:
        """Note who holds it, and since when nothing has changed."""
        seen = _read(descriptor)
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        self._holder = seen.record.holder if seen.record else ""
        return seen

    def _write(self, descriptor: int, holder: str) -> None:
        record = _Record(holder, self._place(descriptor), os.getpid(), time.time())
        try:
            os.pwrite(descriptor, msgspec.json.encode(record)[:RECORD_BYTES].ljust(RECORD_BYTES), 0)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            os.utime(descriptor)
        os.fdatasync(descriptor)  # on NFS other machines see it only then

    def _place(self, descriptor: int) -> str:
        return f"{self._kernel}:{os.fstat(descriptor).st_dev}" if self._kernel else ""

    def _give_back(self) -> bool:
        """True when it was ours until now."""
        was_ours = False
        if self._held is not None:
            with contextlib.suppress(OSError):
                was_ours = self._is_current(self._held)
                if was_ours:
                    self._write(self._held.descriptor, "")
            self._drop()
        return was_ours

    def _drop(self) -> None:
        """Closing it frees the lock."""
        held, self._held, self._holder = self._held, None, ""
        if held is not None:
            os.close(held.descriptor)

    def _close_unless_held(self, descriptor: int) -> None:
        if self._held is None or self._held.descriptor != descriptor:
            os.close(descriptor)

    def _log_change(self, holds: bool, ended: bool = False) -> None:
        before, self._logged = self._logged, (holds, self.holder, self.problem)
        held, holder, problem = before
        if holds and not held:
            log.info("This gateway runs the rollouts now", folder=str(self._folder))
        elif held and ended:
            log.info("This gateway has ended its part in the rollouts", folder=str(self._folder))
        elif held and not holds:
            log.warning("This gateway runs no rollouts any more", folder=str(self._folder))
        if not holds and self.holder not in ("", holder):
            log.info("Another gateway runs the rollouts", gateway=self.holder)
        if self.problem not in ("", problem):
            log.error("Whether this gateway may run rollouts cannot be settled", reason=self.problem)


def _read(descriptor: int) -> _Seen:
    found = os.fstat(descriptor)
    return _Seen(found.st_ino, found.st_mtime_ns, os.pread(descriptor, RECORD_BYTES, 0))


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _running_kernel() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _now() -> float:
    """Goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
