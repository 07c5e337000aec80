"""3: the bounded queue of encoded snapshots: priority, freshness, fairness, deadlines, bytes and messages."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from gateway.messages import Job
from gateway.metrics import Metrics

Lane = tuple[str, str]
"""A camera and the model that it asks: the unit of freshness and fairness."""


class Schedule:
    """Waiting jobs by priority, then lane by lane in turn, each lane's oldest first.

    Jobs whose model does not serve now are passed over, so they hold up no other. When the queue is full, the lane
    with the most waiting snapshots of the lowest priority gives up its oldest: the freshest frame of each camera
    stays, and a fast camera cannot push out a slow one.
    """

    def __init__(self, max_messages: int, max_bytes: int, serves: Callable[[str], bool], metrics: Metrics) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._serves = serves
        self._metrics = metrics
        self._levels: dict[int, OrderedDict[Lane, deque[Job]]] = {}
        self._messages = 0
        self._bytes = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return self._messages

    @property
    def waiting_only(self) -> bool:
        """True when no job could be served now: the queue is empty, or all wait for models that do not serve."""
        return not any(self._serves(lane[1]) for level in self._levels.values() for lane in level)

    @property
    def model_names(self) -> set[str]:
        """The models that jobs wait for."""
        return {lane[1] for level in self._levels.values() for lane in level}

    def limit(self, max_messages: int, max_bytes: int) -> None:
        """Let other limits hold from the next `put` on."""
        self._max_messages, self._max_bytes = max_messages, max_bytes

    def put(self, job: Job, *, again: bool = False) -> list[Job]:
        """Queue a job and return those that had to go for it, which may be the job itself.

        `again` puts one back in front of its lane: it is older than what has come since.
        """
        if job.size > self._max_bytes:
            return [job]
        level = self._levels.setdefault(job.snapshot.priority, OrderedDict())
        lane = level.setdefault(_lane(job), deque())
        if again:
            lane.appendleft(job)
        else:
            lane.append(job)
        self._count(job, +1)
        evicted = []
        while self._messages > self._max_messages or self._bytes > self._max_bytes:
            evicted.append(self._evict())
        self.look_again()
        return evicted

    async def get(self) -> Job:
        """The next job whose model serves; waits for one."""
        while True:
            job = self._next()
            if job is not None:
                return job
            await self._changed.wait()

    def look_again(self) -> None:
        """Wake up whoever waits in `get`: there is a new job, or another model serves."""
        self._changed.set()
        self._changed = asyncio.Event()

    def expired(self, now: float) -> list[Job]:
        """Take out the jobs whose deadline has passed, wherever in the queue they stand."""
        late = [
            (priority, lane, job)
            for priority, level in self._levels.items()
            for lane, jobs in level.items()
            for job in jobs
            if job.deadline_at <= now
        ]
        for priority, lane, job in late:
            self._remove(priority, lane, job)
        return [job for _, _, job in late]

    def drain(self) -> list[Job]:
        """Take everything out, at shutdown."""
        return self.expired(float("inf"))

    def _next(self) -> Job | None:
        for priority in sorted(self._levels, reverse=True):
            level = self._levels[priority]
            for lane, jobs in level.items():
                if self._serves(lane[1]):
                    level.move_to_end(lane)
                    return self._remove(priority, lane, jobs[0])
        return None

    def _evict(self) -> Job:
        priority = min(self._levels)
        level = self._levels[priority]
        lane = max(level, key=lambda lane: len(level[lane]))
        return self._remove(priority, lane, level[lane][0])

    def _remove(self, priority: int, lane: Lane, job: Job) -> Job:
        level = self._levels[priority]
        level[lane].remove(job)
        if not level[lane]:
            del level[lane]
        if not level:
            del self._levels[priority]
        self._count(job, -1)
        return job

    def _count(self, job: Job, sign: int) -> None:
        self._messages += sign
        self._bytes += sign * job.size
        self._metrics.queue_messages.set(self._messages)
        self._metrics.queue_bytes.set(self._bytes)


def _lane(job: Job) -> Lane:
    return (job.snapshot.origin.device_id, job.model.spec.name)
