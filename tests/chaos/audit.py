"""What was sent, what came back, and what that means. Knows no broker and no clock: it is told.

Judged lost is every snapshot that the broker acknowledged to its camera and that got neither a result nor an error.
There are no exceptions, and cameras and auditor talk to the broker directly, so that no fault of the gateway's own
connections can hide one.

A broker that is killed (-9) is the one thing that no gateway can help: Mosquitto writes its state down once a second,
and forgets what it took since, though it acknowledged it. The state that it comes back with is whole: of what it had
written, it forgets neither a snapshot without the gateway's acknowledgement, nor an answer that the auditor has not
acknowledged. So after its kill, and only then, the cameras send again what it acknowledged after it last wrote (the
time of its file, and a second before) and what has no answer: the same bytes, which have to get the same result_id.
All that is older is held against the gateway. Answers that came twice since the broker forgot their acknowledgement
count as duplicates like all others.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

RESULT = "result"
"""The outcome of a snapshot that was answered; that of another one is the code of its error."""


@dataclass(slots=True)
class Snapshot:
    """All that is known of one; times in seconds on one clock."""

    camera: str
    sent_at: float
    accepted_at: float | None = None
    """When the broker acknowledged it to the camera."""
    seen_at: float | None = None
    """When the broker passed it on to the auditor as well."""
    sendings: int = 1
    answers: list[Answer] = field(default_factory=list)

    @property
    def latency_s(self) -> float | None:
        """From the camera to the auditor; None when the first answer is no result."""
        if not self.answers or self.answers[0].outcome != RESULT:
            return None
        return self.answers[0].at - self.sent_at


@dataclass(frozen=True, slots=True)
class Answer:
    """One message about a snapshot."""

    at: float
    result_id: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the auditor has found."""

    snapshots: int
    """That the broker took from a camera."""
    never_taken: int
    """That were still with their camera at the end."""
    outcomes: dict[str, int]
    """The first answer of each snapshot."""
    duplicates: int
    """Answers beyond the first."""
    wrong_duplicates: tuple[str, ...]
    """Snapshots with answers of different ids, or with the id of another snapshot."""
    mixed: int
    """Snapshots that have both a result and an error."""
    strangers: int
    """Answers to what nobody has sent."""
    lost: tuple[str, ...]
    not_passed_on: int
    """Of the lost ones, those that the broker did not pass on to the auditor either."""
    sent_again: int
    """Snapshots that a killed broker may have forgotten."""
    longest_gap_s: dict[str, float]
    """By camera, between two results."""


class Auditor:
    """Collects from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots: dict[str, Snapshot] = {}
        self._of_id: dict[str, str] = {}
        self._shared_ids: set[str] = set()
        self._strangers = 0
        self._answered = 0

    # --- what happens -------------------------------------------------------------------------------

    def sent(self, key: str, camera: str, at: float) -> None:
        """A camera hands a snapshot to its client; again after the broker may have forgotten it."""
        with self._lock:
            if key in self._snapshots:
                self._snapshots[key].sendings += 1
            else:
                self._snapshots[key] = Snapshot(camera, at)

    def accepted(self, key: str, at: float) -> None:
        """The broker has acknowledged it."""
        with self._lock:
            snapshot = self._snapshots[key]
            if snapshot.accepted_at is None:
                snapshot.accepted_at = at

    def seen(self, key: str, at: float) -> None:
        """The broker has passed it on."""
        with self._lock:
            if (snapshot := self._snapshots.get(key)) is not None and snapshot.seen_at is None:
                snapshot.seen_at = at

    def answered(self, key: str, result_id: str, outcome: str, at: float) -> None:
        """An answer has come: RESULT or the code of an error."""
        with self._lock:
            snapshot = self._snapshots.get(key)
            if snapshot is None:
                self._strangers += 1
                return
            self._answered += not snapshot.answers
            snapshot.answers.append(Answer(at, result_id, outcome))
            if self._of_id.setdefault(result_id, key) != key:
                self._shared_ids.add(key)

    # --- what that means ----------------------------------------------------------------------------

    @property
    def counts(self) -> tuple[int, int]:
        """How many snapshots have been sent, and how many of them are answered."""
        return len(self._snapshots), self._answered

    def open(self) -> list[str]:
        """Snapshots without an answer, those that are still with their camera too."""
        with self._lock:
            return [key for key, snapshot in self._snapshots.items() if not snapshot.answers]

    def forgotten(self, saved_at: float, killed_at: float) -> list[str]:
        """What a broker killed at that moment may have forgotten, and a camera has to send again.

        Only what it acknowledged after it last saved its state and what has no answer: all that is older has to be
        answered by the gateway without any help.
        """
        with self._lock:
            return [
                key
                for key, snapshot in self._snapshots.items()
                if not snapshot.answers
                and snapshot.accepted_at is not None
                and saved_at <= snapshot.accepted_at <= killed_at
            ]

    def recovered_at(self, since: float) -> float | None:
        """When the first result came for a snapshot that was sent after a moment."""
        with self._lock:
            times = [
                answer.at
                for snapshot in self._snapshots.values()
                if snapshot.sent_at >= since
                for answer in snapshot.answers
                if answer.outcome == RESULT
            ]
        return min(times, default=None)

    def by_second(self) -> dict[int, Counter[str]]:
        """First answers by the second in which they came, for a picture."""
        seconds: defaultdict[int, Counter[str]] = defaultdict(Counter)
        with self._lock:
            for snapshot in self._snapshots.values():
                seconds[int(snapshot.sent_at)]["sent"] += 1
                if snapshot.answers:
                    first = snapshot.answers[0]
                    seconds[int(first.at)][RESULT if first.outcome == RESULT else "error"] += 1
        return dict(seconds)

    def sent_between(self, since: float, to: float) -> dict[str, list[Snapshot]]:
        """By camera, in the order in which they were sent."""
        found: defaultdict[str, list[Snapshot]] = defaultdict(list)
        with self._lock:
            for snapshot in self._snapshots.values():
                if since <= snapshot.sent_at < to:
                    found[snapshot.camera].append(snapshot)
        return dict(found)

    def latencies_s(self) -> list[float]:
        """From the camera to the auditor, of all results."""
        with self._lock:
            return [each.latency_s for each in self._snapshots.values() if each.latency_s is not None]

    def verdict(self) -> Verdict:
        """Judge all that was told so far."""
        with self._lock:
            taken = {key: each for key, each in self._snapshots.items() if each.accepted_at is not None}
            lost = tuple(key for key, snapshot in taken.items() if not snapshot.answers)
            answered = [each for each in self._snapshots.values() if each.answers]
            different = {key for key, each in self._snapshots.items() if len({a.result_id for a in each.answers}) > 1}
            return Verdict(
                snapshots=len(taken),
                never_taken=len(self._snapshots) - len(taken),
                outcomes=dict(Counter(each.answers[0].outcome for each in answered).most_common()),
                duplicates=sum(len(each.answers) - 1 for each in answered),
                wrong_duplicates=tuple(sorted(different | self._shared_ids)),
                mixed=sum(len({a.outcome == RESULT for a in each.answers}) > 1 for each in answered),
                strangers=self._strangers,
                lost=lost,
                not_passed_on=sum(taken[key].seen_at is None for key in lost),
                sent_again=sum(each.sendings > 1 for each in self._snapshots.values()),
                longest_gap_s=self._longest_gaps(),
            )

    def _longest_gaps(self) -> dict[str, float]:
        times: defaultdict[str, list[float]] = defaultdict(list)
        for snapshot in self._snapshots.values():
            times[snapshot.camera] += [answer.at for answer in snapshot.answers if answer.outcome == RESULT]
        gaps = {}
        for camera, moments in sorted(times.items()):
            moments.sort()
            steps = itertools.pairwise(moments)
            gaps[camera] = round(max((later - earlier for earlier, later in steps), default=0.0), 3)
        return gaps
