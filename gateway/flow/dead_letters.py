"""Payloads that could not be processed, as they are, on a topic of their own, for whoever looks into them."""

from __future__ import annotations

import asyncio
import math
import time

import structlog

from gateway.errors import BrokerUnavailable, Outcome, PayloadTooLarge, PublishRefused, SnapshotError
from gateway.flow.identify import MAX_NAME, MAX_TOPIC
from gateway.flow.picture_headers import READABLE, looks_like
from gateway.flow.route import topic_parts
from gateway.flow.token_bucket import TokenBucket
from gateway.live import Live
from gateway.messages import JSON_TYPE, Origin, Publication
from gateway.metrics import Metrics
from gateway.ports import Broker
from gateway.topics import fill, safe_text

log = structlog.get_logger(__name__)

LIMIT_S = 2.0
"""For the broker to take a dead letter; the snapshot is acknowledged then in any case."""
MAX_WAITING_BYTES = 8 * 2**20
"""Payloads that wait to be sent, all together; a single one may be larger."""


class DeadLetters:
    """Sends payloads to DEAD_LETTER_TOPIC: so many a minute, and none holds up the answer of its snapshot."""

    def __init__(self, live: Live, broker: Broker, metrics: Metrics) -> None:
        self._live = live
        self._broker = broker
        self._metrics = metrics
        self._allowance = TokenBucket(tokens=math.inf, at=time.monotonic())
        self._waiting_bytes = 0

    def write(self, origin: Origin, error: SnapshotError, content: bytes) -> Publication | None:
        """The dead letter of a snapshot that got this error, to be given to `send`.

        None where it gets none: there is no such topic, nothing of the snapshot is left (`content` is empty), it is
        too large or not to blame, or there have been too many.
        """
        template = self._live.current.dead_letter_topic
        if template is None or not content or not _is_to_blame(error):
            return None
        if (self._waiting_bytes and self._waiting_bytes + len(content) > MAX_WAITING_BYTES) or not self._allowed():
            self._metrics.dead_letters.labels("limited").inc()
            return None
        self._waiting_bytes += len(content)
        return _letter(origin, fill(template, topic_parts(origin, origin.model_name)), error, content)

    async def send(self, letter: Publication) -> None:
        """Publish it, for LIMIT_S at most; a broker that does not want it is logged."""
        outcome, reason, fix = "sent", "", ""
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._broker.publish(letter)
        except TimeoutError:
            outcome, reason = "late", f"the broker did not take it within {LIMIT_S:.0f} s"
        except PublishRefused as refusal:
            outcome, reason, fix = "refused", refusal.message, refusal.fix
        except BrokerUnavailable:
            outcome, reason = "late", "the gateway is stopping"
        finally:
            self._waiting_bytes -= len(letter.payload)
        self._metrics.dead_letters.labels(outcome).inc()
        if reason:
            log.error("A dead letter is lost", topic=letter.topic, reason=reason, fix=fix, bytes=len(letter.payload))

    def _allowed(self) -> bool:
        """So many a minute, and a tenth of them at once, so few come together."""
        a_minute = self._live.current.dead_letters_per_minute
        return self._allowance.take(a_minute / 60, max(1.0, a_minute / 10), time.monotonic())


def _is_to_blame(error: SnapshotError) -> bool:
    """Whether the snapshot would fail again as it is; one that is too large is kept nowhere."""
    at_fault = error.outcome in (Outcome.REJECTED, Outcome.FAILED) and not error.retryable
    return at_fault and not isinstance(error, PayloadTooLarge)


def _letter(origin: Origin, topic: str, error: SnapshotError, content: bytes) -> Publication:
    whole = len(content) == origin.payload_bytes
    properties = {
        "result_id": origin.result_id,
        "code": error.code,
        "reason": error.message[:MAX_NAME],
        "topic": origin.topic[:MAX_TOPIC],
        "device_id": origin.device_id[:MAX_NAME],
        "timestamp": str(origin.timestamp)[:MAX_NAME],
        "part": "payload" if whole else "picture",
        "sha256": origin.payload_sha256,
    }
    return Publication(
        topic=topic,
        payload=content,
        content_type=_content_type(content),
        correlation_data=origin.correlation_data,
        user_properties=(*((name, safe_text(value)) for name, value in properties.items()), *origin.trace),
    )


def _content_type(content: bytes) -> str:
    """Told from the first bytes, as the gateway reads it: what the sender called it may be what is wrong."""
    if content.lstrip()[:1] == b"{":
        return JSON_TYPE
    name = looks_like(content)
    return f"image/{name.lower()}" if name in READABLE and name is not None else "application/octet-stream"
