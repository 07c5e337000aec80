"""Who is told of what has been said: the console's gallery, Home Assistant; with neither it costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.flow.agreements import Verdict
from gateway.flow.alerts import Alert
from gateway.messages import Origin, Publication, ReplyTopics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """An answer on its way to the broker; nothing of the picture, for it may wait for long."""

    origin: Origin
    topics: ReplyTopics
    variant: str
    result: Publication
    comparison: Publication | None
    alerts: tuple[Alert, ...]
    classes: tuple[str, ...]
    """Of its predictions, one each."""
    verdict: Verdict | None
    """What the comparison comes to; None where nothing was compared."""


class Observer(Protocol):
    """Is told once each thing is with the broker; of what was asked over HTTP nothing, for that is no camera's."""

    def answered(self, answer: Answer) -> None:
        """A result was published, its outcome is counted."""
        ...

    def failed(self, origin: Origin, message: Publication) -> None:
        """There is no result but this error message, its outcome is counted."""
        ...

    def alerted(self, alert: Alert, message: Publication) -> None:
        """The start or the end of an alert was published."""
        ...


class Observers:
    """Several as one. What goes wrong in one of them is logged, and concerns neither the others nor the snapshot."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def answered(self, answer: Answer) -> None:
        """A result was published."""
        self._tell(lambda each: each.answered(answer))

    def failed(self, origin: Origin, message: Publication) -> None:
        """An error message was published."""
        self._tell(lambda each: each.failed(origin, message))

    def alerted(self, alert: Alert, message: Publication) -> None:
        """An alert was published."""
        self._tell(lambda each: each.alerted(alert, message))

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        for each in self._observers:
            try:
                tell(each)
            except Exception as error:
                log.error("A defect of the gateway: what was published is not shown", exc_info=error)
