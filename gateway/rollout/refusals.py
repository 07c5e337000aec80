"""Versions that are not to serve: why, and what would have to change for another try."""

from __future__ import annotations

import time
from pathlib import Path

from gateway.errors import ConfigError, GatewayError
from gateway.models.drop import digest_of_all
from gateway.rollout.ledger import Ledger
from gateway.rollout.state import RefusalRecord, ReleaseRecord, RolloutRecord
from gateway.rollout.steps import Step
from gateway.rollout.transaction import Tools, Transaction
from gateway.rollout.verify import Verified, are_others, weights_in

REFUSALS_KEPT = 16
RETRY_S = 30.0
"""Until what may have been no fault of the drop is tried again."""


def now() -> float:
    """Seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def said(error: GatewayError) -> str:
    """The place and the reason, without the fix."""
    return f"{error.where}: {error.message}" if error.where else error.message


async def note_refusal(ledger: Ledger, name: str, refusal: RefusalRecord, **more: object) -> None:
    """Remember a refusal in place of an older one of the same version."""
    others = tuple(each for each in ledger.get(name).refused if each.version != refusal.version)
    await ledger.note(name, refused=(refusal, *others)[:REFUSALS_KEPT], **more)


def refusal_of(transaction: Transaction, record: RolloutRecord, *, again: bool) -> RefusalRecord:
    """What is remembered of a refusal; `again` lets the same files be tried again."""
    verified = transaction.verified
    return RefusalRecord(
        version=transaction.version,
        step=record.step,
        reason=record.reason,
        fix=record.fix,
        at=now(),
        digest=verified.digest if verified and not again else "",
        weights=verified.weights if verified and transaction.was_loaded else dict(transaction.loaded_before),
        commanded=transaction.commanded,
    )


def refusal_of_serving(name: str, record: ReleaseRecord, by: str) -> RefusalRecord:
    """Of a version that served, and does not any more because somebody said so."""
    return RefusalRecord(
        version=record.version,
        step=Step.PROMOTED,
        reason=f"rolled back by {by}",
        fix=f"Drop a better one as version {record.version + 1}; to try it again: "
        f"edge-gateway models load {name} {record.version}",
        at=now(),
        digest=digest_of_all(record.digests),
        weights=weights_in(record),
        commanded=True,
    )


def is_another(tools: Tools, path: Path, refusal: RefusalRecord) -> bool:
    """Whether what lies on disk now is worth another try. Blocking."""
    if not refusal.digest and now() - refusal.at < RETRY_S:
        return False
    try:
        drop, digests = tools.read_drop(path, refusal.version)
    except ConfigError as error:
        return said(error) != refusal.reason
    found = Verified(drop, digests, {})
    if refusal.commanded:
        return are_others(refusal.weights, found.weights)
    return found.digest != refusal.digest
