"""The waiting snapshots of one priority: who is served next, and who gives way when there is no room."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.messages import Job

REMEMBERED = 4096
"""Lanes whose last service is remembered while they are empty."""
NEWCOMERS = 0.25
"""The part of all services in which a lane that is not known goes before those that are."""
NEWCOMERS_AT_ONCE = 32
"""As many go first at once; fewer than the usual queue has places, so that some are left for others."""
CREDIT = 3
"""Rounds that a lane may make up for: so many frames of a slow camera, and one more, may come close together."""

Service = tuple[str, str]
"""A model and what is asked of it: a variant, `dual`, or "" for whatever the model answers with."""
Lane = tuple[str, str, str]
"""A camera and the service that it asks: the unit of freshness and fairness."""

Standing = tuple[int, int]
"""The round that a lane is in, and when it was served last; who has the least is served next."""


class Services:
    """In which round each lane is: a service takes it to the next one, and the least is served first.

    One that has been away takes part in the last CREDIT rounds still, so that it gets its share where its frames come
    close together. Within a round it counts who was served longer ago.

    A lane that is not known comes first, so that a camera which has just been switched on is heard. Device ids come
    from strangers, who could invent one for each message: so that holds for a part of the services only, beyond which
    an unknown lane counts as served in this round, and the memory is bounded. Who invents them has the share of as
    many cameras as the queue has places.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._served: OrderedDict[tuple[int, Lane], Standing] = OrderedDict()
        self._rounds: dict[int, int] = {}
        """Of each priority that of the last service: one that is always served first goes through more of them."""
        self._clock = 0
        self._newcomers: float = NEWCOMERS_AT_ONCE

    def __len__(self) -> int:
        return len(self._served)

    def standing(self, priority: int, lane: Lane) -> Standing:
        """That of a lane which has become busy."""
        now, known = self._rounds.get(priority, 0), self._served.get((priority, lane))
        if known is not None:
            return max(known[0], now - CREDIT), known[1]
        if self._newcomers < 1:
            return now + 1, self._clock
        self._newcomers -= 1
        return now - CREDIT - 1, self._clock

    def serve(self, priority: int, lane: Lane, standing: Standing) -> Standing:
        """Note that a lane of this standing is served; returns its next one."""
        self._clock += 1
        self._rounds[priority] = max(self._rounds.get(priority, 0), standing[0])
        self._newcomers = min(NEWCOMERS_AT_ONCE, self._newcomers + NEWCOMERS)
        after = self._served[priority, lane] = standing[0] + 1, self._clock
        self._served.move_to_end((priority, lane))
        if len(self._served) > self._remembered:
            self._served.popitem(last=False)
        return after


@dataclass(slots=True, eq=False)
class _Line:
    """The snapshots of one lane by their number, oldest first; `standing` as `Services` has it."""

    standing: Standing
    jobs: OrderedDict[int, Job] = field(default_factory=OrderedDict)


class Level:
    """The lanes of one priority, in order; what it is asked costs about the same however many there are.

    A sorted list is searched in log n steps; that it is shifted is a copy of some kilobytes even at 100,000 lanes.
    """

    def __init__(self, priority: int, services: Services) -> None:
        self._priority = priority
        self._services = services
        self._lines: dict[Lane, _Line] = {}
        self._by_service: dict[Service, list[tuple[Standing, Lane]]] = {}
        """Of each service the lanes, the one not served for the longest first."""
        self._with_more: list[tuple[int, Standing, Lane]] = []
        """The lanes of two snapshots and more with their number, the longest last."""

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def services(self) -> Iterable[Service]:
        """What is waited for."""
        return self._by_service.keys()

    def add(self, lane: Lane, number: int, job: Job) -> None:
        """Queue a job at the end of its lane."""
        line = self._take_out(lane) or _Line(self._services.standing(self._priority, lane))
        line.jobs[number] = job
        self._put_in(lane, line)

    def add_again(self, lane: Lane, number: int, job: Job) -> None:
        """Put a job back, behind those of its lane that arrived before it."""
        line = self._take_out(lane) or _Line(self._services.standing(self._priority, lane))
        before = []
        for other, waiting in line.jobs.items():
            if waiting.snapshot.origin.received_at > job.snapshot.origin.received_at:
                break
            before.append(other)
        line.jobs[number] = job
        for each in (number, *reversed(before)):
            line.jobs.move_to_end(each, last=False)
        self._put_in(lane, line)

    def remove(self, lane: Lane, number: int, *, served: bool = False) -> Job:
        """Take a job out; `served` when its lane has had its turn with that."""
        line = self._take_out(lane)
        assert line is not None
        if served:
            line.standing = self._services.serve(self._priority, lane, line.standing)
        job = line.jobs.pop(number)
        if line.jobs:
            self._put_in(lane, line)
        return job

    def next(self, open_to: Callable[[Service], bool]) -> tuple[Lane, int] | None:
        """The oldest job of the lane that has not been served for the longest, of the services that take one now."""
        firsts = [order[0] for service, order in self._by_service.items() if open_to(service)]
        return self._oldest(min(firsts)[1]) if firsts else None

    def least(self, serves: Callable[[str], bool]) -> tuple[Lane, int]:
        """The job that can be missed best: the oldest of the longest lane, as long as that has a fresher one.

        When each lane has one left, that of a model which does not serve now, then of the lane served last.
        """
        if self._with_more:
            return self._oldest(self._with_more[-1][2])
        lasts = [(not serves(service[0]), order[-1]) for service, order in self._by_service.items()]
        return self._oldest(max(lasts)[1][1])

    def crowded(self) -> list[Lane]:
        """The lanes in which more than one job waits."""
        return [lane for lane, line in self._lines.items() if len(line.jobs) > 1]

    def outpaced(self, lane: Lane, before: float) -> tuple[Lane, int] | None:
        """The oldest job of a lane when it arrived before that time and a fresher one waits behind it."""
        jobs = self._lines[lane].jobs
        number = next(iter(jobs))
        late = len(jobs) > 1 and jobs[number].snapshot.origin.received_at < before
        return (lane, number) if late else None

    def _oldest(self, lane: Lane) -> tuple[Lane, int]:
        return lane, next(iter(self._lines[lane].jobs))

    def _take_out(self, lane: Lane) -> _Line | None:
        line = self._lines.pop(lane, None)
        if line is None:
            return None
        service = lane[1:]
        order = self._by_service[service]
        del order[bisect_left(order, (line.standing, lane))]
        if not order:
            del self._by_service[service]
        if len(line.jobs) > 1:
            del self._with_more[bisect_left(self._with_more, (len(line.jobs), line.standing, lane))]
        return line

    def _put_in(self, lane: Lane, line: _Line) -> None:
        self._lines[lane] = line
        insort(self._by_service.setdefault(lane[1:], []), (line.standing, lane))
        if len(line.jobs) > 1:
            insort(self._with_more, (len(line.jobs), line.standing, lane))


def lane_of(job: Job) -> Lane:
    """The camera, the model, and what is asked of it."""
    preference = job.snapshot.backend_preference
    asked = "" if preference is None else job.model.meant_by(preference) or ""
    return (job.snapshot.origin.device_id, job.model.spec.name, asked)
