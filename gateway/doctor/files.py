"""Folders that the gateway writes into, and files that nobody else should read."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from gateway.config import Settings
from gateway.credentials import read_secret
from gateway.doctor.findings import Area, Finding
from gateway.errors import ConfigError

MACHINE = Area("Machine")
CONFIGURATION = Area("Configuration")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - no temporary file: where POSIX keeps shared memory  # nosec B108
LEAST_FREE_BYTES = 1 << 30
SECRET_FILES = (
    "aio_tls_key_file", "aio_sat_file", "aio_mqtt_password_file", "triton_tls_key_file", "api_token_file",
    "api_read_token_file",
)  # fmt: skip


def check_folders(settings: Settings) -> Iterator[Finding]:
    """Whether what models remember can be written, and whether shared memory has room for the tensors."""
    state = settings.state_dir
    if problem := unwritable(state):
        yield MACHINE.problem(
            f"which version serves cannot be remembered: {problem}",
            where=str(state),
            fix="Let the gateway write there, or name another folder in MODEL_STATE_DIR",
        )
    else:
        yield from disk(existing(state), "what is remembered of models", least=LEAST_FREE_BYTES // 16)
    if settings.triton_shared_memory == "off":
        return
    wanted = settings.shared_memory_max_bytes * settings.workers
    if problem := unwritable(SHARED_MEMORY):
        yield MACHINE.warning(
            f"there is no shared memory: {problem}; tensors go in the requests",
            where=str(SHARED_MEMORY),
            fix="Mount a tmpfs there, or set TRITON_SHARED_MEMORY=off",
        )
    else:
        yield from disk(SHARED_MEMORY, f"tensors, which may take {wanted / 1e6:.0f} MB", least=wanted)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: the gateway makes the rest."""
    return next(each for each in (folder, *folder.absolute().parents) if _mode(each) is not None)


def unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, which may still have to be made; "" where it can."""
    there = existing(folder)
    if not there.is_dir():
        return f"'{there}' is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"'{there}' cannot be written by this user"


def disk(folder: Path, what: str, least: int = LEAST_FREE_BYTES) -> Iterator[Finding]:
    """How much room there is on the disk of a folder; a warning below `least` bytes."""
    try:
        usage = shutil.disk_usage(folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        yield MACHINE.unknown(f"the space for {what} cannot be told: {reason}", where=str(folder))
        return
    size = f"{usage.free / 1e9:.1f} GB" if usage.free >= 1e9 else f"{usage.free / 1e6:.0f} MB"
    text = f"{size} free for {what}"
    if usage.free < least:
        yield MACHINE.warning(text, where=str(folder), fix="Make room on this disk")
    else:
        yield MACHINE.ok(text, where=str(folder))


def check_secrets(settings: Settings) -> Iterator[Finding]:
    """Keys, passwords and tokens that everybody on this machine may read; that they can be read is looked at before."""
    good = []
    for name in SECRET_FILES:
        path = getattr(settings, name)
        mode = _mode(path) if path else None
        if mode is None:
            continue
        if mode & stat.S_IROTH:
            yield CONFIGURATION.warning(
                f"'{path}' may be read by everybody on this machine ({stat.filemode(mode)})",
                where=name.upper(),
                fix=f"chmod o-rwx {path}; in Kubernetes set defaultMode: 0440 on the volume",
            )
        else:
            good.append(name.upper())
    if good:
        yield CONFIGURATION.ok(f"only their owner and group may read {', '.join(good)}")
    if _same(settings):
        yield CONFIGURATION.warning(
            "API_READ_TOKEN_FILE and API_TOKEN_FILE hold the same token: who may look may act, too",
            where="API_READ_TOKEN_FILE",
            fix="Write another token into one of them",
        )


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _same(settings: Settings) -> bool:
    reading, acting = settings.api_read_token_file, settings.api_token_file
    if reading is None or acting is None:
        return False
    try:
        return read_secret(reading, "API_READ_TOKEN_FILE").strip() == read_secret(acting, "API_TOKEN_FILE").strip()
    except ConfigError:
        return False
