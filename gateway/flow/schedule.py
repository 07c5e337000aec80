"""3: the bounded queue of encoded snapshots: priority, freshness, fairness, deadlines, bytes and messages."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

from gateway.flow.lanes import Lane, Level, Service, Services, lane_of
from gateway.messages import Job
from gateway.metrics import Metrics

FRESH_S = 0.25
"""Under pressure a snapshot that has waited for longer gives way to a fresher one of its camera."""
STALE_S = 1.0
"""Under pressure a snapshot that has waited for so long gives way to a fresher one that waits behind it already."""
SUSTAINED_S = 1.0
"""The queue is under pressure when it has overflowed for so long while it was served: neither a burst that ends, nor a
Triton that is away, is a reason to drop what can still be answered."""
PRESSURE_S = 5.0
"""How long it counts as under pressure after it has overflowed, or after a snapshot was not served in time."""


class Schedule:
    """Waiting jobs by priority, then the lane that has not been served for the longest, each lane's oldest first.

    So every camera gets as much as it sends, up to a share that is the same for all who want more. Jobs whose model
    does not serve now, or whose variant has no room for another, are passed over, so they hold up no other. When the
    queue is full the lowest priority gives way: the oldest of the longest lane, and where each lane has one left, that
    of the lane served last. The freshest frame of each camera stays, and a fast camera cannot push out a slow one,
    however many of them there are.

    A queue that goes on overflowing would serve everything late. Under pressure a camera's frame that has waited for
    FRESH_S gives way to its next one; a backlog that fits into the queue is served whole.
    """

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        serves: Callable[[str], bool],
        metrics: Metrics,
        room: Callable[[Service], bool] = lambda _: True,
    ) -> None:
        """`serves` says whether a model answers at all, `room` whether one more snapshot may ask a service now."""
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._serves = serves
        self._room = room
        self._levels: dict[int, Level] = {}
        self._services = Services()
        self._numbers = count()
        self._places: dict[int, tuple[int, Lane]] = {}
        """The priority and the lane of each job, by the number that it has while it waits."""
        self._deadlines: list[tuple[float, int]] = []
        """A heap of the deadlines and numbers of all jobs, and of some that do not wait any more."""
        self._now = self._served_at = self._pressed_until = float("-inf")
        self._overflows_since = self._overflowed_at = float("-inf")
        self._bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._looking = False
        metrics.queue_messages.set_function(self._places.__len__)
        metrics.queue_bytes.set_function(lambda: self._bytes)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def waiting_only(self) -> bool:
        """True when no job could be served now: the queue is empty, or all wait for models that do not serve."""
        return not any(self._serves(model) for model in self.model_names)

    @property
    def model_names(self) -> set[str]:
        """The models that jobs wait for."""
        return {service[0] for level in self._levels.values() for service in level.services}

    def limit(self, max_messages: int, max_bytes: int) -> None:
        """Let other limits hold from the next `put` on."""
        self._max_messages, self._max_bytes = max_messages, max_bytes

    def put(self, job: Job, *, again: bool = False) -> list[Job]:
        """Queue a job and return those that had to go for it, which may be the job itself.

        `again` puts one back before those of its lane that have come since.
        """
        if job.size > self._max_bytes:
            return [job]
        priority, lane, number = job.snapshot.priority, lane_of(job), next(self._numbers)
        level = self._levels.setdefault(priority, Level(priority, self._services))
        (level.add_again if again else level.add)(lane, number, job)
        self._places[number] = priority, lane
        heapq.heappush(self._deadlines, (job.deadline_at, number))
        self._bytes += job.size
        arrived_at = job.snapshot.origin.received_at
        self._now = max(self._now, arrived_at)
        outpaced = self._outpaced(priority, lane, arrived_at, FRESH_S)
        gone = []
        while len(self) > self._max_messages or self._bytes > self._max_bytes:
            lowest = min(self._levels)
            gone.append(self._remove(lowest, *self._levels[lowest].least(self._serves)))
        if gone or outpaced:
            self._overflowed(arrived_at)
        self.look_again()
        return outpaced + gone

    async def get(self) -> Job:
        """The next job whose model serves and has room; waits for one. Who gets it counts it before it awaits."""
        while (job := self.take()) is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():
                    self.look_again()  # it was woken up already, so another one has to look in its place
                raise
        self.look_again()
        return job

    def take(self) -> Job | None:
        """The next job whose model serves and has room; None when there is none."""
        for priority in sorted(self._levels, reverse=True):
            found = self._levels[priority].next(self._open_to)
            if found is not None:
                lane, number = found
                self._served_at = self._now
                return self._remove(priority, lane, number, served=True)
        return None

    def look_again(self) -> None:
        """Wake up one who waits in `get` if there is a job and room for it. Who gets a job wakes up the next.

        It looks at the end of this turn of the loop, once for all that has made room by then, and when who has just got
        a job has counted it. To look first costs a fraction of a task that wakes up for nothing.
        """
        if self._waiters and self._places and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        while self._waiters and self._some_are_open:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def expired(self, now: float) -> list[Job]:
        """Take out the jobs whose deadline has passed, wherever in the queue they stand."""
        self._now = max(self._now, now)
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            if number in self._places:
                priority, lane = self._places[number]
                late.append(self._remove(priority, lane, number))
        if self._is_served and any(self._serves(job.model.spec.name) for job in late):
            self._press(now)
        return late

    def outpaced(self, now: float) -> list[Job]:
        """Take out what a fresher frame of its camera makes pointless, which no `put` has found.

        While there is pressure a lane may wait so long for its turn that all of its frames are late by then.
        """
        if now >= self._pressed_until:
            return []
        crowded = [(priority, lane) for priority, level in self._levels.items() for lane in level.crowded()]
        return [job for priority, lane in crowded for job in self._outpaced(priority, lane, now, STALE_S)]

    def drain(self) -> list[Job]:
        """Take everything out, at shutdown."""
        return [self._remove(priority, lane, number) for number, (priority, lane) in list(self._places.items())]

    @property
    def _some_are_open(self) -> bool:
        return any(self._open_to(service) for level in self._levels.values() for service in level.services)

    def _open_to(self, service: Service) -> bool:
        return self._serves(service[0]) and self._room(service)

    def _outpaced(self, priority: int, lane: Lane, now: float, patience_s: float) -> list[Job]:
        """Take out what a camera's fresher frame makes pointless, while not everything can be served."""
        gone: list[Job] = []
        while now < self._pressed_until and (found := self._levels[priority].outpaced(lane, now - patience_s)):
            gone.append(self._remove(priority, *found))
        return gone

    @property
    def _is_served(self) -> bool:
        return self._now - self._served_at < SUSTAINED_S

    def _overflowed(self, now: float) -> None:
        if not self._is_served:
            return
        if now - self._overflowed_at > SUSTAINED_S:
            self._overflows_since = now
        self._overflowed_at = now
        if now - self._overflows_since >= SUSTAINED_S:
            self._press(now)

    def _press(self, now: float) -> None:
        self._pressed_until = max(self._pressed_until, now + PRESSURE_S)

    def _remove(self, priority: int, lane: Lane, number: int, *, served: bool = False) -> Job:
        level = self._levels[priority]
        job = level.remove(lane, number, served=served)
        if not level:
            del self._levels[priority]
        del self._places[number]
        self._bytes -= job.size
        if len(self._deadlines) > 2 * len(self) + 64:
            self._deadlines = [each for each in self._deadlines if each[1] in self._places]
            heapq.heapify(self._deadlines)
        return job
