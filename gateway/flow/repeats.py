"""Snapshots that come again: answered as before, not inferred twice."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from gateway.config import Settings
from gateway.errors import DROPPED, Outcome
from gateway.flow.identify import tells_itself_apart
from gateway.live import Live
from gateway.messages import Message, Origin, Publication
from gateway.models.catalog import Models
from gateway.models.spec import ModelSpec

REMEMBERED = 4096
"""Readings known to have joined their window, for those whose acknowledgement was lost with the connection."""
MEAN_BYTES = 4096
"""Of an answer with all its messages: REPEAT_MAX_MESSAGES of this size are kept, or more smaller and fewer larger."""
SMALLEST_SHARE = 16
"""An answer that takes more than this part of the room pushes out too many others, and is not kept."""
_PUBLICATION_BYTES = 1024
"""What a publication takes as Python objects, beside the bytes of its payload and the letters of its texts."""


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """How a snapshot was answered: its outcome, and what was published, in the same order."""

    outcome: Outcome
    answers: tuple[Publication, ...] = ()


@dataclass(frozen=True, slots=True)
class _Held:
    """What an answer depends on beside its snapshot; the records are replaced as a whole when they change."""

    settings: Settings
    model_name: str | None
    version: int | None
    spec: ModelSpec | None


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    repeat: Repeat
    size: int
    settled_at: float
    response_topic: str | None
    held: _Held


class Repeats:
    """The answers to the last snapshots, at most so many, so many bytes and so old as the settings say.

    The oldest goes first. What comes again when its answer has gone is answered anew, redelivered or not: DUP does not
    say that the first delivery was ever opened, and with equal bytes another frame may have had that answer. One
    inference too many does no harm, a missing answer does. Only a reading is known without an answer: it is in its
    window.
    """

    def __init__(self, live: Live, models: Models) -> None:
        self._live = live
        self._models = models
        self._windowed: OrderedDict[str, None] = OrderedDict()
        self._answers: OrderedDict[str, _Kept] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def size(self) -> int:
        """Bytes of all answers that are kept, as they are counted here."""
        return self._size

    def keep(self, origin: Origin, outcome: Outcome, answers: Sequence[Publication] = ()) -> None:
        """Remember how a snapshot was answered, in place of what was known of it; `origin` names the model."""
        result_id = origin.result_id
        if outcome is Outcome.WINDOWED:
            self._windowed[result_id] = None
            self._windowed.move_to_end(result_id)
            if len(self._windowed) > REMEMBERED:
                self._windowed.popitem(last=False)
        if (former := self._answers.pop(result_id, None)) is not None:
            self._size -= former.size
        size = _size(answers)
        # Under overload there are many dropped ones, which would push out every result: what comes again is tried anew.
        if answers and outcome not in DROPPED and size <= max(MEAN_BYTES, self._room // SMALLEST_SHARE):
            repeat, held = Repeat(outcome, tuple(answers)), self._held(origin.model_name)
            self._answers[result_id] = _Kept(repeat, size, time.monotonic(), origin.response_topic, held)
            self._size += size
        self._forget()

    def find(self, message: Message, origin: Origin) -> Repeat | None:
        """How this message was answered before; None when it has to be answered now.

        Whoever asks for it on another response topic is no repeat. A redelivery (DUP) has the answer that is kept,
        whatever that was. One that was sent anew has it only when it got a result, when it says itself that it is the
        same snapshot, and when neither the settings nor the model have changed since.
        """
        self._forget()
        kept = self._answers.get(origin.result_id)
        if kept is None:
            windowed = message.duplicate and origin.result_id in self._windowed
            return Repeat(Outcome.WINDOWED) if windowed else None
        if kept.response_topic != origin.response_topic:
            return None
        if message.duplicate:
            return kept.repeat
        same = kept.repeat.outcome is Outcome.PUBLISHED and kept.held == self._held(kept.held.model_name)
        return kept.repeat if same and tells_itself_apart(message) else None

    @property
    def _room(self) -> int:
        return self._live.current.repeat_max_messages * MEAN_BYTES

    def _held(self, model_name: str | None) -> _Held:
        model = self._models.current.models.get(model_name or "")
        if model is None:
            return _Held(self._live.current, model_name, None, None)
        return _Held(self._live.current, model_name, model.version, model.spec)

    def _forget(self) -> None:
        """Let go of answers that are too old or too many."""
        settings, room = self._live.current, self._room
        oldest_at = time.monotonic() - settings.repeat_window_s
        while self._answers:
            first = next(iter(self._answers.values()))
            if (
                first.settled_at > oldest_at
                and len(self._answers) <= settings.repeat_max_messages
                and self._size <= room
            ):
                return
            self._answers.popitem(last=False)
            self._size -= first.size


def _size(answers: Sequence[Publication]) -> int:
    """Bytes of these messages; the copy for a response topic shares its payload and properties with the result."""
    distinct = {id(answer.payload): answer for answer in answers}.values()
    given = sum(len(answer.payload) + len(answer.correlation_data or b"") for answer in distinct)
    properties = sum(sum(map(len, chain.from_iterable(answer.user_properties))) for answer in distinct)
    return given + properties + sum(_PUBLICATION_BYTES + len(answer.topic) for answer in answers)
