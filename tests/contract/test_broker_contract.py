"""What the flow may rely on, from the broker in memory as from a real Mosquitto on both versions of MQTT."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.errors import BrokerUnavailable, PublishRefused
from gateway.messages import Message, MessageProperties, Oversize, Publication
from gateway.ports import MAX_PROPERTIES, MAX_PROPERTIES_BYTES, Broker, held_by
from gateway.testing import MemoryBroker
from tests.broker_session import DEADLINE_S, Running, running, until
from tests.mosquitto_server import Mosquitto

LIMIT = 6_000_000
RECEIVE_MAXIMUM = 128


class Site(Protocol):
    """A broker, with clients for it, that can be stopped and started."""

    has_properties: bool

    def client(
        self,
        client_id: str,
        *subscriptions: str,
        will: Publication | None = None,
        limit: int = LIMIT,
        receive_maximum: int = RECEIVE_MAXIMUM,
    ) -> Broker: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class MemorySite:
    has_properties = True

    def __init__(self) -> None:
        self._broker = MemoryBroker()

    def client(
        self,
        client_id: str,
        *subscriptions: str,
        will: Publication | None = None,
        limit: int = LIMIT,
        receive_maximum: int = RECEIVE_MAXIMUM,
    ) -> Broker:
        return self._broker.client(
            client_id, subscriptions, will, max_payload_bytes=limit, receive_maximum=receive_maximum
        )

    async def start(self) -> None:
        self._broker.start()

    async def stop(self) -> None:
        self._broker.stop()


class MosquittoSite:
    def __init__(self, folder: Path, protocol: Literal["5", "3.1.1"]) -> None:
        self._server = Mosquitto(folder)
        self._protocol = protocol
        self.has_properties = protocol == "5"

    def client(
        self,
        client_id: str,
        *subscriptions: str,
        will: Publication | None = None,
        limit: int = LIMIT,
        receive_maximum: int = RECEIVE_MAXIMUM,
    ) -> Broker:
        return MqttBroker(
            MqttSettings(
                client_id=client_id,
                port=self._server.port,
                protocol=self._protocol,
                subscriptions=subscriptions,
                will=will,
                max_payload_bytes=limit,
                receive_maximum=receive_maximum,
            )
        )

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("mosquitto, MQTT 5", marks=pytest.mark.mosquitto),
        pytest.param("mosquitto, MQTT 3.1.1", marks=pytest.mark.mosquitto),
    ]
)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    broker: Site
    if request.param == "memory":
        broker = MemorySite()
    else:
        broker = MosquittoSite(tmp_path, "5" if request.param.endswith("5") else "3.1.1")
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def camera(site: Site) -> AsyncIterator[Running]:
    async with running(site.client("camera")) as session:
        yield session


async def test_delivers_what_was_published(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in/+")) as gateway:
        await camera.broker.publish(Publication("in/a", b"\x00\xff payload"))
        message = await gateway.next()
    assert (message.topic, message.payload, message.qos) == ("in/a", b"\x00\xff payload", 1)
    assert not message.retain
    assert not message.duplicate
    assert message.oversize is None


async def test_takes_all_subscriptions(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in/+/snapshots", "data/#", "one")) as gateway:
        for topic in ("in/a/snapshots", "in/a/other", "data/x/y/z", "elsewhere", "one"):
            await camera.broker.publish(Publication(topic, b""))
        received = [message.topic for message in await gateway.take(3)]
    assert received == ["in/a/snapshots", "data/x/y/z", "one"]


async def test_shared_subscription_gives_each_message_to_one_member(site: Site, camera: Running) -> None:
    async with (
        running(site.client("one", "$share/gateways/in/#", "all")) as one,
        running(site.client("two", "$share/gateways/in/#", "all")) as two,
    ):
        sent = [f"in/{number}" for number in range(10)]
        for topic in [*sent, "all"]:
            await camera.broker.publish(Publication(topic, b""))
        received: list[str] = []
        for member in (one, two):
            while (message := await member.next()).topic != "all":
                received.append(message.topic)
                member.broker.acknowledge(message)
    assert sorted(received) == sent


async def test_who_leaves_a_group_gets_what_was_its_own_and_nothing_new(site: Site, camera: Running) -> None:
    async with (
        running(site.client("one", "$share/gateways/in/#", "all", receive_maximum=1)) as one,
        running(site.client("two", "$share/gateways/in/#", "all")) as two,
    ):
        for number in range(10):
            await camera.broker.publish(Publication(f"in/{number}", b""))
        first = await one.next()  # the others of its half wait at the broker, for its Receive Maximum
        await one.broker.leave_groups()
        for topic in ("in/10", "in/11", "all"):
            await camera.broker.publish(Publication(topic, b""))
        received = {1: [first.topic], 2: []}
        one.broker.acknowledge(first)
        for name, member in ((1, one), (2, two)):
            while (message := await member.next()).topic != "all":
                received[name].append(message.topic)
                member.broker.acknowledge(message)
    assert len(received[1]) == 5
    assert sorted(received[1] + received[2]) == sorted(f"in/{number}" for number in range(12))


@pytest.mark.parametrize("patient", [True, False], ids=["waits for the session", "gives up before"])
async def test_who_leaves_a_group_without_a_session_leaves_it_with_the_next_one(site: Site, patient: bool) -> None:
    async with (
        running(site.client("one", "$share/gateways/in/#", "all")) as one,
        running(site.client("two", "$share/gateways/in/#", "all")) as two,
    ):
        await site.stop()
        await until(lambda: not (one.broker.connected or two.broker.connected))
        leaving = asyncio.create_task(one.broker.leave_groups())
        await asyncio.sleep(0)
        assert not leaving.done()
        if not patient:
            leaving.cancel()
        await site.start()
        await asyncio.wait({leaving}, timeout=DEADLINE_S)
        assert leaving.cancelled() is not patient
        await one.connected()
        await two.connected()
        for topic in ("in/0", "in/1", "in/2", "all"):
            await two.broker.publish(Publication(topic, b""))
        assert (await one.next()).topic == "all"
        assert [(await two.next()).topic for _ in range(4)] == ["in/0", "in/1", "in/2", "all"]


async def test_tells_when_something_of_a_group_came_that_was_left(site: Site, camera: Running) -> None:
    async with running(site.client("one", "$share/gateways/in/#", "own", receive_maximum=1)) as one:
        for topic in ("in/0", "in/1", "own"):
            await camera.broker.publish(Publication(topic, b""))
        first = await one.next()
        await one.broker.leave_groups()
        assert one.broker.dealt_at == 0.0
        one.broker.acknowledge(first)
        second = await one.next()
        one.broker.acknowledge(second)
        assert (await one.next()).topic == "own"
        waited = site.has_properties  # MQTT 3.1.1 has no Receive Maximum: it had come before
        assert one.broker.dealt_at == (second.received_at if waited else 0.0)


async def test_quality_of_service_0_arrives_and_needs_no_acknowledgement(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in")) as gateway:
        await camera.broker.publish(Publication("in", b"x", qos=0))
        message = await gateway.next()
        gateway.broker.acknowledge(message)
    assert message.qos == 0


async def test_acknowledged_is_not_sent_again(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in")) as gateway:
        await camera.broker.publish(Publication("in", b"done"))
        gateway.broker.acknowledge(await gateway.next())
    await camera.broker.publish(Publication("in", b"next"))
    async with running(site.client("gateway", "in")) as gateway:
        assert (await gateway.next()).payload == b"next"


async def test_not_acknowledged_comes_again_as_duplicate_in_order(site: Site, camera: Running) -> None:
    sent = [b"%d" % number for number in range(5)]
    gateway = Running(site.client("gateway", "in"))
    await gateway.connected()
    for payload in sent:
        await camera.broker.publish(Publication("in", payload))
    await gateway.take(5)
    await gateway.crash()
    async with running(site.client("gateway", "in")) as again:
        messages = await again.take(5)
    assert [message.payload for message in messages] == sent
    assert all(message.duplicate for message in messages)


async def test_messages_wait_for_a_client_that_is_away(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in")):
        pass
    await camera.broker.publish(Publication("in", b"meanwhile"))
    async with running(site.client("gateway", "in")) as gateway:
        assert (await gateway.next()).payload == b"meanwhile"  # Mosquitto calls it a duplicate, which it is not


async def test_late_acknowledgement_of_an_old_connection_is_harmless(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in")) as gateway:
        await camera.broker.publish(Publication("in", b"first"))
        old = await gateway.next()
        await site.stop()
        await until(lambda: not gateway.broker.connected)
        gateway.broker.acknowledge(old)
        await site.start()
        again = await gateway.next()
        assert (again.payload, again.duplicate) == (b"first", True)
        gateway.broker.acknowledge(old)
        gateway.broker.acknowledge(again)
        gateway.broker.acknowledge(again)
        await until(lambda: camera.broker.connected)
        await camera.broker.publish(Publication("in", b"second"))
        assert (await gateway.next()).payload == b"second"


async def test_publish_waits_out_an_outage(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in")) as gateway:
        await site.stop()
        await until(lambda: not camera.broker.connected and not gateway.broker.connected)
        waiting = [asyncio.create_task(camera.broker.publish(Publication("in", b"%d" % n))) for n in range(3)]
        cancelled = asyncio.create_task(camera.broker.publish(Publication("in", b"given up")))
        await asyncio.sleep(0)
        cancelled.cancel()
        await site.start()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*waiting)
        assert [message.payload for message in await gateway.take(3)] == [b"0", b"1", b"2"]
        await camera.broker.publish(Publication("in", b"last"))
        assert (await gateway.next()).payload == b"last"


async def test_the_backlog_is_what_waits_and_is_not_given_up(site: Site, camera: Running) -> None:
    publications = [Publication("in", b"x" * 1000 * number) for number in range(3)]
    assert camera.broker.backlog == 0
    await site.stop()
    await until(lambda: not camera.broker.connected)
    waiting = [asyncio.create_task(camera.broker.publish(each)) for each in publications]
    await until(lambda: camera.broker.backlog == sum(held_by(each) for each in publications))
    waiting[2].cancel()
    await until(lambda: camera.broker.backlog == sum(held_by(each) for each in publications[:2]))
    await site.start()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*waiting[:2])
    assert camera.broker.backlog == 0


async def test_many_publications_at_once_arrive_in_order(site: Site, camera: Running) -> None:
    sent = [b"%d" % number for number in range(500)]
    async with running(site.client("gateway", "in")) as gateway:
        publishing = asyncio.gather(*(camera.broker.publish(Publication("in", payload)) for payload in sent))
        received: list[bytes] = []
        while len(received) < len(sent):
            message = await gateway.next()
            gateway.broker.acknowledge(message)
            received.append(message.payload)
        await publishing
    assert received == sent


async def test_receive_maximum_bounds_what_is_unacknowledged(site: Site, camera: Running) -> None:
    if not site.has_properties:
        pytest.skip("MQTT 3.1.1 has no Receive Maximum")
    gateway = Running(site.client("gateway", "in", receive_maximum=2))
    await gateway.connected()
    for number in range(5):
        await camera.broker.publish(Publication("in", b"%d" % number))
    await camera.broker.publish(Publication("in", b"not counted", qos=0))
    first, second, past = await gateway.take(3)
    assert [message.payload for message in (first, second, past)] == [b"0", b"1", b"not counted"]
    gateway.broker.acknowledge(second)
    third = await gateway.next()
    await gateway.crash()
    async with running(site.client("gateway", "in", receive_maximum=2)) as again:
        messages: list[Message] = []
        while len(messages) < 4:
            messages.append(await again.next())
            again.broker.acknowledge(messages[-1])
    assert third.payload == b"2"
    assert [message.payload for message in messages] == [b"0", b"2", b"3", b"4"]
    assert [message.duplicate for message in messages[:2]] == [True, True]


async def test_retained_message_comes_with_the_subscription(site: Site, camera: Running) -> None:
    await camera.broker.publish(Publication("state", b"kept", retain=True))
    async with running(site.client("gateway", "state")) as gateway:
        message = await gateway.next()
        assert (message.payload, message.retain) == (b"kept", True)
        gateway.broker.acknowledge(message)
        await camera.broker.publish(Publication("state", b"live", retain=True))
        message = await gateway.next()
    assert (message.payload, message.retain) == (b"live", False)


async def test_empty_retained_message_clears(site: Site, camera: Running) -> None:
    await camera.broker.publish(Publication("state", b"kept", retain=True))
    await camera.broker.publish(Publication("state", b"", retain=True))
    async with running(site.client("gateway", "state", "end")) as gateway:
        await camera.broker.publish(Publication("end", b""))
        assert (await gateway.next()).topic == "end"


async def test_last_will_is_sent_when_the_client_dies(site: Site) -> None:
    async with running(site.client("operator", "status")) as operator:
        gateway = Running(site.client("gateway", will=Publication("status", b"offline", retain=True)))
        await gateway.connected()
        await gateway.crash()
        message = await operator.next()
    assert (message.topic, message.payload) == ("status", b"offline")


async def test_last_will_is_not_sent_at_close(site: Site, camera: Running) -> None:
    async with running(site.client("operator", "status")) as operator:
        async with running(site.client("gateway", will=Publication("status", b"offline"))):
            pass
        await camera.broker.publish(Publication("status", b"marker"))
        assert (await operator.next()).payload == b"marker"


async def test_sessions_tell_every_change(site: Site) -> None:
    broker = site.client("gateway", "in")
    states = broker.sessions()
    assert await anext(states) is False
    run = asyncio.create_task(broker.run())
    async with asyncio.timeout(DEADLINE_S):
        assert await anext(states) is True
        await site.stop()
        assert await anext(states) is False
        await site.start()
        assert await anext(states) is True
        await broker.close()
        assert [state async for state in states] == [False]
        await run
        assert [state async for state in broker.sessions()] == []


async def test_close_ends_messages_and_run(site: Site) -> None:
    broker = site.client("gateway", "in")
    async with running(broker) as gateway:
        reading = asyncio.create_task(gateway.next())
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await reading
    gateway.task.result()
    assert not broker.connected


async def test_publish_fails_at_close(site: Site) -> None:
    broker = site.client("gateway")
    waiting = asyncio.create_task(broker.publish(Publication("out", b"")))
    await asyncio.sleep(0)
    await broker.close()
    with pytest.raises(BrokerUnavailable):
        await waiting
    with pytest.raises(BrokerUnavailable):
        await broker.publish(Publication("out", b""))


@pytest.mark.parametrize("topic", ["in/+", "in/#", "", "in/\0"])
async def test_topic_that_cannot_be_published_is_refused(site: Site, camera: Running, topic: str) -> None:
    with pytest.raises(PublishRefused):
        await camera.broker.publish(Publication(topic, b""))
    await camera.broker.publish(Publication("in", b""))


async def test_properties_arrive_on_mqtt_5(site: Site, camera: Running) -> None:
    publication = Publication(
        "in",
        b"{}",
        content_type="application/json",
        correlation_data=b"\x00id",
        user_properties=(("traceparent", "00-1-2-01"), ("id", "a"), ("id", "b")),
    )
    async with running(site.client("gateway", "in")) as gateway:
        await camera.broker.publish(publication)
        properties = (await gateway.next()).properties
    expected = MessageProperties(
        content_type=publication.content_type,
        correlation_data=publication.correlation_data,
        user_properties=publication.user_properties,
    )
    assert properties == (expected if site.has_properties else MessageProperties())


async def test_large_message(site: Site, camera: Running) -> None:
    payload = hashlib.sha256(b"seed").digest() * (5_000_000 // 32)
    async with running(site.client("gateway", "in")) as gateway:
        await camera.broker.publish(Publication("in", payload))
        message = await gateway.next()
    assert message.payload == payload


async def test_oversize_message_is_announced_and_the_next_one_served(site: Site, camera: Running) -> None:
    payload = b"0123456789" * 30_000
    async with running(site.client("gateway", "in", limit=100_000)) as gateway:
        for sent in (payload, payload[:100_000], payload[:100_001], b"next"):
            await camera.broker.publish(Publication("in", sent, content_type="image/jpeg"))
        messages = await gateway.take(4)
        for message in messages:
            gateway.broker.acknowledge(message)
    assert [message.oversize for message in messages] == [
        Oversize(300_000, hashlib.sha256(payload).hexdigest()),
        None,
        Oversize(100_001, hashlib.sha256(payload[:100_001]).hexdigest()),
        None,
    ]
    assert [len(message.payload) for message in messages] == [0, 100_000, 0, 4]
    assert {message.properties.content_type for message in messages} == {"image/jpeg" if site.has_properties else None}


@pytest.mark.parametrize(("count", "length"), [(MAX_PROPERTIES, 0), (1, MAX_PROPERTIES_BYTES - 6)])
async def test_too_many_or_too_long_properties_make_a_message_oversize(
    site: Site, camera: Running, count: int, length: int
) -> None:
    fits = (("a", "x" * length),) * count
    async with running(site.client("gateway", "in")) as gateway:
        for pairs in (fits, (*fits, ("a", "")), fits[1:]):
            await camera.broker.publish(Publication("in", b"payload", user_properties=pairs))
        messages = await gateway.take(3)
        for message in messages:
            gateway.broker.acknowledge(message)
    said = [message.oversize is not None and message.oversize.properties for message in messages]
    assert said == [False, site.has_properties, False]
    assert len(messages[1].payload) == (0 if site.has_properties else 7)
    assert not messages[1].properties.user_properties
    async with asyncio.timeout(DEADLINE_S):
        await camera.broker.publish(Publication("in", b"the session goes on"))


async def test_tells_which_deliveries_can_still_be_acknowledged(site: Site, camera: Running) -> None:
    async with running(site.client("gateway", "in")) as gateway:
        await camera.broker.publish(Publication("in", b"", qos=0))
        await camera.broker.publish(Publication("in", b"1"))
        await camera.broker.publish(Publication("in", b"2"))
        unconfirmed, first, second = await gateway.take(3)
        assert [gateway.broker.awaits(each) for each in (unconfirmed, first, second)] == [False, True, True]
        gateway.broker.acknowledge(first)
        assert [gateway.broker.awaits(each) for each in (first, second)] == [False, True]
        await site.stop()
        await until(lambda: not gateway.broker.connected)
        assert not gateway.broker.awaits(second)
        await site.start()
        again = await gateway.next()
        assert [gateway.broker.awaits(each) for each in (second, again)] == [False, True]


@pytest.mark.parametrize(
    "more", [{"user_properties": (("source", "%" * 65_536),)}, {"correlation_data": bytes(65_536)}]
)
async def test_property_that_is_no_string_of_mqtt_is_refused_and_the_next_one_sent(
    site: Site, camera: Running, more: dict[str, Any]
) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(PublishRefused):
            await camera.broker.publish(Publication("in", b"", **more))
        await camera.broker.publish(Publication("in", b""))
