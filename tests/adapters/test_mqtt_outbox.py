"""Publications between their caller and a connection: nobody waits for ever, whatever happens."""

from __future__ import annotations

import asyncio
import struct

import pytest

from gateway.adapters.mqtt_outbox import Outbox
from gateway.errors import PublishRefused
from gateway.messages import Publication
from gateway.ports import held_by


@pytest.mark.parametrize("connected_first", [False, True])
async def test_a_message_that_breaks_the_client_is_refused_and_the_others_go_on(connected_first: bool) -> None:
    sent: list[str] = []

    def send(publication: Publication) -> int:
        if publication.topic == "poison":
            raise struct.error("'H' format requires 0 <= number <= 65535")
        sent.append(publication.topic)
        return len(sent)

    outbox = Outbox(100, 1_000_000)
    if connected_first:
        outbox.connected(send, 10)
    poison, fine = (asyncio.create_task(outbox.publish(Publication(topic, b""))) for topic in ("poison", "fine"))
    await asyncio.sleep(0)
    if not connected_first:
        outbox.connected(send, 10)
    outbox.answered(1, None)
    async with asyncio.timeout(5):
        await fine
        with pytest.raises(PublishRefused, match="unexpected error"):
            await poison
    assert sent == ["fine"]
    assert not outbox.bytes


def test_what_a_publication_holds_counts_its_properties() -> None:
    bare = held_by(Publication("out", b""))
    full = Publication("out", b"", correlation_data=bytes(1000), user_properties=(("n" * 100, "v" * 200),))
    assert held_by(full) == bare + 1300
