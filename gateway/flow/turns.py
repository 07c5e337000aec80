"""Which version of a model is answering whom: no camera is answered by a version and then by one before it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from gateway.flow.limiter import Place
from gateway.messages import Job
from gateway.models.catalog import ServedModel

Camera = tuple[str, str]
"""A model and a device that asks it."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A job whose turn has come, with the entry of its model that holds for it, and the version that answers it."""

    job: Job
    model: ServedModel
    release: ServedModel
    """`model` itself, or the candidate of its trial."""
    place: Place
    """What the job holds in flight."""

    @property
    def device_id(self) -> str:
        """Who asks."""
        return self.job.snapshot.origin.device_id


@dataclass(slots=True, eq=False)
class _InFlight:
    version: int
    count: int = 1
    over: asyncio.Event | None = None
    """Set when the last of them is done; None while nobody waits for that."""


class Turns:
    """Counts what is in flight, by camera and by version; entries vanish when nothing is."""

    def __init__(self) -> None:
        self._cameras: dict[Camera, _InFlight] = {}
        self._versions: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self._cameras) + len(self._versions)

    def take(self, model: str, device: str, version: int) -> bool:
        """Begin a job, to be ended with `leave`; False while another version is answering this camera."""
        camera = (model, device)
        in_flight = self._cameras.get(camera)
        if in_flight is None:
            self._cameras[camera] = _InFlight(version)
        elif in_flight.version == version:
            in_flight.count += 1
        else:
            return False
        self.hold(model, version)
        return True

    async def changed(self, model: str, device: str, deadline_at: float) -> None:
        """Return when what is in flight for this camera is done, or at the deadline."""
        in_flight = self._cameras.get((model, device))
        if in_flight is None:
            return
        if in_flight.over is None:
            in_flight.over = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_at - time.monotonic()):
                await in_flight.over.wait()

    def leave(self, model: str, device: str, version: int) -> None:
        """The job is done: published, failed, or back in the queue."""
        self.drop(model, version)
        camera = (model, device)
        in_flight = self._cameras[camera]
        in_flight.count -= 1
        if not in_flight.count:
            del self._cameras[camera]
            if in_flight.over is not None:
                in_flight.over.set()

    def hold(self, model: str, version: int) -> None:
        """Have a version counted as needed, to be ended with `drop`."""
        key = (model, version)
        self._versions[key] = self._versions.get(key, 0) + 1

    def drop(self, model: str, version: int) -> None:
        """It is not needed any more by one who held it."""
        key = (model, version)
        left = self._versions[key] - 1
        if left:
            self._versions[key] = left
        else:
            del self._versions[key]

    def in_flight(self, model: str, version: int) -> int:
        """How many ask this version, or may have to; it should not be unloaded before there are none."""
        return self._versions.get((model, version), 0)
