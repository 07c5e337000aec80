"""3: the bounded queue of encoded snapshots: priority, freshness per camera, fairness, bytes and messages."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from gateway.messages import Job
from gateway.metrics import Metrics


class Schedule:
    """Waiting jobs by priority, then camera by camera in turn, each camera's oldest first.

    When it is full, the camera with the most waiting snapshots of the lowest priority gives up its oldest:
    so the freshest frame of each camera stays, and a fast camera cannot push out a slow one.
    """

    def __init__(self, max_messages: int, max_bytes: int, metrics: Metrics) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._levels: dict[int, OrderedDict[str, deque[Job]]] = {}
        self._messages = 0
        self._bytes = 0
        self._available = asyncio.Semaphore(0)

    def __len__(self) -> int:
        return self._messages

    def put(self, job: Job) -> list[Job]:
        """Queue a job and return those that had to go for it, which may be the job itself."""
        if job.size > self._max_bytes:
            return [job]
        level = self._levels.setdefault(job.snapshot.priority, OrderedDict())
        level.setdefault(job.camera, deque()).append(job)
        self._count(job, +1)
        evicted = []
        while self._messages > self._max_messages or self._bytes > self._max_bytes:
            evicted.append(self._evict())
        if not evicted:  # otherwise the permit of an evicted job serves this one; a spare permit does no harm
            self._available.release()
        return evicted

    async def get(self) -> Job:
        """The next job; waits for one."""
        while True:
            await self._available.acquire()
            if self._messages:
                return self._next()

    def drain(self) -> list[Job]:
        """Take everything out, at shutdown."""
        return [self._next() for _ in range(self._messages)]

    def _next(self) -> Job:
        priority = max(self._levels)
        level = self._levels[priority]
        camera = next(iter(level))
        level.move_to_end(camera)
        return self._take(priority, camera)

    def _evict(self) -> Job:
        priority = min(self._levels)
        level = self._levels[priority]
        return self._take(priority, max(level, key=lambda camera: len(level[camera])))

    def _take(self, priority: int, camera: str) -> Job:
        level = self._levels[priority]
        job = level[camera].popleft()
        if not level[camera]:
            del level[camera]
        if not level:
            del self._levels[priority]
        self._count(job, -1)
        return job

    def _count(self, job: Job, sign: int) -> None:
        self._messages += sign
        self._bytes += sign * job.size
        self._metrics.queue_messages.set(self._messages)
        self._metrics.queue_bytes.set(self._bytes)
