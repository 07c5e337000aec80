"""What MemoryBroker offers to tests beyond the port; the port itself is in tests/contract."""

import pytest

from gateway.errors import BrokerUnavailable, PublishRefused
from gateway.messages import MessageProperties, Publication
from gateway.testing import MemoryBroker
from tests.broker_session import Running, running


async def test_dropped_client_leaves_its_will_and_comes_back() -> None:
    hub = MemoryBroker()
    will = Publication("status", b"offline")
    async with running(hub.client("operator", ["status"])) as operator:
        client = hub.client("gateway", ["in"], will)
        async with running(client) as gateway:
            hub.publish("in", b"work")
            assert not (await gateway.next()).duplicate
            client.drop()
            assert (await operator.next()).payload == b"offline"
            assert (await gateway.next()).duplicate


async def test_publishes_with_any_properties() -> None:
    hub = MemoryBroker()
    async with running(hub.client("gateway", ["in"])) as gateway:
        properties = MessageProperties(message_expiry_s=3, response_topic="answers/here")
        hub.publish("in", b"x", properties=properties)
        assert (await gateway.next()).properties == properties


async def test_refuses_denied_topics() -> None:
    hub = MemoryBroker()
    hub.deny("out/#")
    async with running(hub.client("gateway")) as gateway:
        with pytest.raises(PublishRefused):
            await gateway.broker.publish(Publication("out/a", b""))
        await gateway.broker.publish(Publication("in/a", b""))


async def test_second_client_with_the_same_id_takes_over() -> None:
    hub = MemoryBroker()
    first = Running(hub.client("gateway"))
    await first.connected()
    async with running(hub.client("gateway")) as second:
        with pytest.raises(BrokerUnavailable, match="client id 'gateway'"):
            await first.task
        assert second.broker.connected
