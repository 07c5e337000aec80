"""Reading the configuration again while the gateway runs: on SIGHUP, and when gateway.yaml or a model.yaml changes.

Everything is read and validated before anything is replaced. What is wrong is said, and the configuration before it
stays; what cannot be taken over without a restart is named.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.config import RELOADABLE, Settings
from gateway.config_files import require_files
from gateway.config_reading import load_settings, named_file
from gateway.errors import ConfigError
from gateway.live import Live
from gateway.logs import configure_logging
from gateway.yaml_file import read_yaml

if TYPE_CHECKING:
    from gateway.models.repository import LogicalModel

log = structlog.get_logger(__name__)

POLL_S = 2.0
SETTLE_TRIES = 25
SETTLE_S = 0.2
"""A file that has just changed may still be written; it is read when it looks the same twice."""

Stamp = tuple[int, int, int] | None
"""What tells a file from the one that was there before: time of change in ns, inode and size."""
Seen = dict[Path, Stamp]


class Gauge(Protocol):
    """A metric that is set."""

    def set(self, value: float, /) -> None:
        """Let it have this value."""


class ReloadMetrics(Protocol):
    """The metrics that say how the last reading went."""

    @property
    def config_last_reload_successful(self) -> Gauge:
        """1, or 0 while what is in the files cannot be used."""

    @property
    def config_last_reload_success_timestamp_seconds(self) -> Gauge:
        """When the configuration that holds was read, in seconds since 1970."""


class Reloader:
    """Follows gateway.yaml, every model.yaml and the labels beside it.

    `read_models` reads all models for given settings, and raises ConfigError when one of them is wrong. `apply_models`
    lets them hold and returns the names of those whose change needs more than that. `set_logging` gets LOG_LEVEL and
    LOG_FORMAT when they change; all other settings are looked up in `live` by those who need them.
    """

    def __init__(
        self,
        live: Live,
        config_file: Path | None,
        read_models: Callable[[Settings], list[LogicalModel]],
        apply_models: Callable[[list[LogicalModel]], list[str]],
        metrics: ReloadMetrics,
        *,
        set_logging: Callable[[str, str], None] = configure_logging,
        poll_s: float = POLL_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._live = live
        self._file = config_file or named_file()
        self._read_models = read_models
        self._apply_models = apply_models
        self._metrics = metrics
        self._set_logging = set_logging
        self._poll_s = poll_s
        self._settle_s = settle_s
        self._requested = asyncio.Event()
        self._told: tuple[str, ...] = ()
        self._labels: dict[Path, tuple[Stamp, Path]] = {}
        self._seen = self._look()
        self._say_successful()

    def request(self) -> None:
        """Read everything again now, whether it has changed or not; for SIGHUP."""
        self._requested.set()

    async def run(self) -> None:
        """Follow the files, for ever."""
        while True:
            asked = await self._wait()
            seen = await asyncio.to_thread(self._look)
            if not asked and seen == self._seen:
                continue
            self._seen = seen if asked else await self._settled(seen)
            await self._reload()

    async def _wait(self) -> bool:
        """True at a request, False when it is time to look."""
        try:
            await asyncio.wait_for(self._requested.wait(), self._poll_s)
        except TimeoutError:
            return False
        self._requested.clear()
        return True

    async def _settled(self, seen: Seen) -> Seen:
        """What the files look like when they are written; one that never rests must not keep out all others."""
        for _ in range(SETTLE_TRIES):
            await asyncio.sleep(self._settle_s)
            again = await asyncio.to_thread(self._look)
            if again == seen or self._requested.is_set():
                return again
            seen = again
        log.warning("A file of the configuration changes all the time; it is read as it is")
        return seen

    async def _reload(self) -> None:
        """Read and take over; a file must not end the gateway, not even with a defect of ours."""
        try:
            wanted, models = await asyncio.to_thread(self._read)
            beyond = self._apply_models(models)
            changed = self._replace(wanted)
        except ConfigError as error:
            self._metrics.config_last_reload_successful.set(0)
            log.error(
                "The configuration is not taken over, the one before it stays",
                where=error.where,
                reason=error.message,
                fix=error.fix,
            )
            return
        except Exception:
            self._metrics.config_last_reload_successful.set(0)
            log.exception(
                "The configuration is not taken over, the one before it stays",
                reason="a defect of the gateway",
                fix="Report it with this traceback, and undo the last change of the configuration",
            )
            return
        self._say_successful()
        log.info("Configuration read again", changed=changed, models=[model.spec.name for model in models])
        self._name_what_needs_a_restart(wanted, beyond)

    def _read(self) -> tuple[Settings, list[LogicalModel]]:
        """All files; the models for the settings that will hold."""
        wanted = load_settings(self._file)
        require_files(wanted)
        return wanted, self._read_models(self._with_reloadable(wanted))

    def _with_reloadable(self, wanted: Settings) -> Settings:
        return self._live.current.model_copy(update={name: getattr(wanted, name) for name in RELOADABLE})

    def _replace(self, wanted: Settings) -> list[str]:
        """Let what can change hold from now on; returns the names of what did."""
        before, after = self._live.current, self._with_reloadable(wanted)
        changed = _different(before, after)
        self._live.replace(after)
        if not {"LOG_LEVEL", "LOG_FORMAT"}.isdisjoint(changed):
            self._set_logging(after.log_level, after.log_format)
        return changed

    def _name_what_needs_a_restart(self, wanted: Settings, models: list[str]) -> None:
        settings = _different(self._live.current, wanted)
        told = (*settings, *models)
        if told and told != self._told:
            log.warning("Some changes need a restart", settings=settings, models=models, fix="Restart the gateway")
        self._told = told

    def _say_successful(self) -> None:
        self._metrics.config_last_reload_successful.set(1)
        self._metrics.config_last_reload_success_timestamp_seconds.set(time.time())

    def _look(self) -> Seen:
        settings = self._live.current
        single = settings.model_config_path
        models = [single] if single else _model_yamls(settings.model_repository)
        own = [self._file] if self._file else []
        seen = {path: _stamp(path) for path in (*own, *models)}
        # Read only when its model.yaml has changed; also of one that is refused, perhaps for its labels.
        self._labels = {
            path: known if (known := self._labels.get(path)) and known[0] == seen[path] else (seen[path], _labels(path))
            for path in models
        }
        return seen | {path: _stamp(path) for _, path in self._labels.values()}


def _model_yamls(repository: Path) -> list[Path]:
    """None while the folder cannot be read; reading all says why."""
    try:
        return list(repository.glob("*/model.yaml"))
    except (OSError, ValueError):
        return []


def _labels(model: Path) -> Path:
    """The labels file of a model.yaml, whatever is wrong with the rest of it."""
    try:
        named = read_yaml(model).get("labels") if model.is_file() else None
    except (ConfigError, OSError):
        named = None
    return model.parent / (named if isinstance(named, str) else "labels.txt")


def _stamp(path: Path) -> Stamp:
    """Of what a link leads to, so that the swapped link of a mounted ConfigMap is seen."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _different(before: Settings, after: Settings) -> list[str]:
    """The names of the settings in which two records differ, in the order of the catalogue."""
    return [name.upper() for name in Settings.model_fields if getattr(before, name) != getattr(after, name)]
