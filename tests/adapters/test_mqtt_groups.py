"""What a real Mosquitto does with the share of a member that is away: on this rests how replicas are to be named."""

from __future__ import annotations

import asyncio

import pytest

from gateway.messages import Publication
from tests.adapters.mqtt_client import Client
from tests.broker_session import DEADLINE_S, until
from tests.mosquitto_server import Mosquitto, NewMosquitto

pytestmark = pytest.mark.mosquitto
GROUP = "$share/gateways/in/#"
EXPIRED = "$SYS/broker/clients/expired"
NUMBERS = [f"in/{number}" for number in range(10)]


def member(mosquitto: Mosquitto, name: str, *more: str, expiry_s: int = 60) -> Client:
    return Client(
        mosquitto.port, name, subscriptions=(GROUP, "all", *more), session_expiry_s=expiry_s, receive_maximum=2
    )


async def publish(session: Client, topics: list[str]) -> None:
    for topic in topics:
        await session.broker.publish(Publication(topic, b""))


async def take_all(session: Client) -> list[str]:
    """The topics of all that comes before `all`, acknowledged."""
    topics = []
    while (message := await session.next()).topic != "all":
        topics.append(message.topic)
        session.broker.acknowledge(message)
    session.broker.acknowledge(message)
    return topics


async def test_the_share_of_a_member_that_is_away_waits_for_it_alone(mosquitto: Mosquitto) -> None:
    one, two = member(mosquitto, "one"), member(mosquitto, "two")
    await one.connected()
    await two.connected()
    await publish(two, NUMBERS[:4])
    held = await one.next()  # and not acknowledged
    await one.crash()
    await publish(two, [*NUMBERS[4:], "all"])
    of_two = await take_all(two)
    back = member(mosquitto, "one")
    of_one = await take_all(back)
    assert held.topic in of_one
    assert len(of_one) == len(of_two) == len(NUMBERS) // 2
    assert sorted(of_one + of_two) == NUMBERS
    await back.close()
    await two.close()


async def test_with_its_session_the_share_of_a_member_ends(new_mosquitto: NewMosquitto) -> None:
    """So a replica that comes back under another name finds nothing, and nobody else gets it."""
    mosquitto = new_mosquitto("sys_interval 1")
    await mosquitto.start()
    one, two = member(mosquitto, "one", expiry_s=1), member(mosquitto, "two", EXPIRED)
    await one.connected()
    await two.connected()
    await one.crash()
    await publish(two, NUMBERS)
    of_two = []
    while (message := await two.next()).topic != EXPIRED or message.payload != b"1":
        of_two.append(message.topic)
        two.broker.acknowledge(message)
    two.broker.acknowledge(message)
    await publish(two, ["in/later", "in/and later", "all"])
    of_two += await take_all(two)
    back = member(mosquitto, "one")
    await back.connected()
    await publish(two, ["all"])
    assert await take_all(back) == []
    assert len([topic for topic in of_two if topic in NUMBERS]) == len(NUMBERS) // 2
    assert [topic for topic in of_two if topic.startswith("in/")][-2:] == ["in/later", "in/and later"]
    await back.close()
    await two.close()


@pytest.mark.parametrize("lost", ["before", "meanwhile"])
@pytest.mark.parametrize("patient", [True, False], ids=["waits for the session", "gives up before"])
async def test_a_session_that_outlives_its_connection_leaves_the_group_too(
    mosquitto: Mosquitto, lost: str, patient: bool
) -> None:
    one, two = member(mosquitto, "one"), member(mosquitto, "two")
    await one.connected()
    await two.connected()
    leaving = asyncio.create_task(one.broker.leave_groups())
    if lost == "meanwhile":
        await asyncio.sleep(0)
    one.drop()
    if not patient:
        await asyncio.sleep(0)
        leaving.cancel()
    await asyncio.wait({leaving}, timeout=DEADLINE_S)
    assert leaving.cancelled() is not patient
    await until(lambda: one.events.count("connected") == 2)
    await publish(two, [*NUMBERS, "all"])
    assert await take_all(one) == []
    assert await take_all(two) == NUMBERS
    await one.close()
    await two.close()
