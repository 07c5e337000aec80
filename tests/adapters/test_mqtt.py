"""What only the real adapter has to deal with: refusals, outages, and brokers that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from gateway.adapters.mqtt import MqttBroker, MqttSettings
from gateway.errors import BrokerUnavailable, ConfigError, PublishRefused
from gateway.messages import Publication
from gateway.ports import held_by
from tests.adapters.mqtt_client import Client, run_program
from tests.adapters.scripted_broker import (
    CONNACK,
    CONNACK_3_1_1,
    DISCONNECT_TAKEN_OVER,
    PUBLISH,
    Packet,
    Peer,
    scripted_broker,
)
from tests.broker_session import DEADLINE_S, running, until
from tests.mosquitto_server import Mosquitto, NewMosquitto

pytestmark = pytest.mark.mosquitto
Protocol = Literal["5", "3.1.1"]
DYNAMIC_SECURITY = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
both_protocols = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


class TestOutages:
    async def test_gateway_started_before_the_broker_waits_for_it(self, new_mosquitto: NewMosquitto) -> None:
        server = new_mosquitto()
        with capture_logs() as logs:
            gateway = Client(server.port, subscriptions=("in",))
            await until(lambda: gateway.events.count("unreachable") >= 2)
            await server.start()
            await gateway.connected()
        await gateway.close()
        waiting = [entry for entry in logs if entry["event"] == "Waiting for the broker"]
        assert [(entry["log_level"], entry["port"]) for entry in waiting] == [("warning", server.port)]
        assert "refused" in waiting[0]["reason"]
        assert "AIO_BROKER_HOSTNAME" in waiting[0]["fix"]

    async def test_lost_session_is_told(self, mosquitto: Mosquitto) -> None:
        gateway = Client(mosquitto.port, subscriptions=("in",))
        await gateway.connected()
        await mosquitto.stop()
        mosquitto.forget()
        with capture_logs() as logs:
            await mosquitto.start()
            await until(lambda: "session_lost" in gateway.events)
            await gateway.connected()
        await gateway.close()
        assert gateway.events[0] == "connected"
        assert gateway.events[-2:] == ["session_lost", "connected"]
        assert any("forgotten the session" in entry["event"] for entry in logs)

    async def test_broker_that_hangs_is_noticed(self, mosquitto: Mosquitto) -> None:
        gateway = Client(mosquitto.port, keep_alive_s=1)
        await gateway.connected()
        os.kill(mosquitto.pid, signal.SIGSTOP)
        await until(lambda: "lost" in gateway.events)
        os.kill(mosquitto.pid, signal.SIGCONT)
        await gateway.connected()
        await gateway.close()

    @both_protocols
    async def test_publications_survive_a_killed_broker(self, mosquitto: Mosquitto, protocol: Protocol) -> None:
        gateway = Client(mosquitto.port, protocol=protocol)
        await gateway.connected()
        publishing = [asyncio.create_task(gateway.broker.publish(Publication("out", b"%d" % n))) for n in range(1000)]
        await until(lambda: any(task.done() for task in publishing))
        await mosquitto.kill()
        await mosquitto.start()
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*publishing)
        await gateway.close()

    async def test_listener_that_never_answers(self) -> None:
        async def silent(peer: Peer) -> None:
            while True:
                await peer.read()

        async with scripted_broker(silent) as port:
            gateway = Client(port, answer_timeout_s=0.1)
            await until(lambda: gateway.events.count("unreachable") >= 2)
            await gateway.close()

    async def test_cancelled_while_it_connects(self) -> None:
        seen = asyncio.Event()

        async def no_handshake(peer: Peer) -> None:
            seen.set()
            await peer.read()

        async with scripted_broker(no_handshake) as port:
            gateway = Client(port, tls=True, connect_timeout_s=0.3)
            async with asyncio.timeout(DEADLINE_S):
                await seen.wait()
            await gateway.crash()
            assert gateway.task.cancelled()

    async def test_garbage_ends_the_connection_only(self) -> None:
        replies = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\xff\xff\xff\xff\xff", CONNACK + b"\x30\x04\x00\x09ab"]

        async def garbage(peer: Peer) -> None:
            await peer.read()
            await peer.send(replies.pop(0) if replies else CONNACK)
            await peer.read()

        async with scripted_broker(garbage) as port:
            gateway = Client(port, answer_timeout_s=0.2)
            await until(lambda: not replies and gateway.broker.connected)
            await gateway.close()
        assert gateway.task.exception() is None

    async def test_an_answer_without_a_whole_packet_identifier_is_no_answer(self) -> None:
        connections: list[Peer] = []

        async def half(peer: Peer) -> None:
            connections.append(peer)
            await peer.read()
            await peer.send(CONNACK)
            packet = await peer.read()
            if len(connections) == 1:
                await peer.send(b"\x40\x01" + packet.publish_identifier[1:])
            else:
                await peer.acknowledge(packet)
            await peer.read()

        async with scripted_broker(half) as port:
            gateway = Client(port)
            async with asyncio.timeout(DEADLINE_S):
                await gateway.broker.publish(Publication("out", b"kept"))
            await gateway.close()
        assert len(connections) == 2


class TestRefusals:
    def test_client_id_is_needed(self) -> None:
        with pytest.raises(ConfigError):
            MqttSettings(client_id="")

    @both_protocols
    async def test_password_is_read_again_at_each_attempt(
        self, new_mosquitto: NewMosquitto, tmp_path: Path, protocol: Protocol
    ) -> None:
        accounts, password = tmp_path / "accounts", tmp_path / "password"
        accounts.touch()
        await asyncio.to_thread(run_program, "mosquitto_passwd", "-b", str(accounts), "gw", "right-secret")
        accounts.chmod(0o600)
        password.write_text("wrong-secret\n")
        server = new_mosquitto(f"password_file {accounts}", anonymous=False)
        await server.start()
        with capture_logs() as logs:
            gateway = Client(server.port, protocol=protocol, username="gw", password_file=password)
            await until(lambda: gateway.events.count("connect_refused") >= 2)
            assert not gateway.broker.connected
            password.write_text("right-secret\n")
            await gateway.connected()
        await gateway.close()
        errors = [entry for entry in logs if entry["log_level"] == "error"]
        assert len(errors) == 1
        assert "AIO_MQTT_PASSWORD_FILE" in errors[0]["fix"]
        assert "secret" not in str(logs)

    async def test_missing_password_file_is_said(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        with capture_logs() as logs:
            gateway = Client(mosquitto.port, username="gw", password_file=tmp_path / "absent")
            await until(lambda: "unreachable" in gateway.events)
        await gateway.close()
        assert logs[0]["reason"] == f"AIO_MQTT_PASSWORD_FILE: there is no file '{tmp_path}/absent'"
        assert "mount the file" in logs[0]["fix"]

    @both_protocols
    async def test_refused_subscription_is_no_session(
        self, new_mosquitto: NewMosquitto, tmp_path: Path, protocol: Protocol
    ) -> None:
        if DYNAMIC_SECURITY is None:
            pytest.skip("an ACL file cannot refuse subscriptions, and the plugin that can is not installed")
        rules = tmp_path / "rules.json"
        rules.write_text('{"defaultACLAccess": {"subscribe": false, "publishClientSend": true}}')
        server = new_mosquitto(f"plugin {DYNAMIC_SECURITY}", f"plugin_opt_config_file {rules}")
        await server.start()
        with capture_logs() as logs:
            gateway = Client(server.port, protocol=protocol, subscriptions=("in/a", "in/b"))
            await until(lambda: gateway.events.count("subscribe_refused") >= 2)
            assert "connected" not in gateway.events
            assert not gateway.broker.connected
        await gateway.close()
        errors = [entry for entry in logs if entry["log_level"] == "error"]
        assert len(errors) == 1
        assert "'in/a'" in errors[0]["reason"]

    @both_protocols
    async def test_refused_optional_subscription_is_a_warning(
        self, new_mosquitto: NewMosquitto, tmp_path: Path, protocol: Protocol
    ) -> None:
        if DYNAMIC_SECURITY is None:
            pytest.skip("an ACL file cannot refuse subscriptions, and the plugin that can is not installed")
        allowed = {"acltype": "subscribeLiteral", "topic": "in", "allow": True}
        group = {"groupname": "all", "roles": [{"rolename": "camera"}]}
        access = {"subscribe": False, "publishClientSend": True, "publishClientReceive": True}
        rules = tmp_path / "rules.json"
        role = {"rolename": "camera", "acls": [allowed]}
        rules.write_text(
            json.dumps({"defaultACLAccess": access, "roles": [role], "groups": [group], "anonymousGroup": "all"})
        )
        server = new_mosquitto(f"plugin {DYNAMIC_SECURITY}", f"plugin_opt_config_file {rules}")
        await server.start()
        with capture_logs() as logs:
            gateway = Client(
                server.port, protocol=protocol, subscriptions=("in",), optional_subscriptions=("commands",)
            )
            await gateway.connected()
            await gateway.broker.publish(Publication("in", b"picture"))
            assert (await gateway.next()).payload == b"picture"
        await gateway.close()
        (warning,) = (entry for entry in logs if entry["log_level"] == "warning")
        assert warning["filter"] == "commands"
        assert "subscribe_refused" not in gateway.events

    async def test_refused_publication(self, new_mosquitto: NewMosquitto, tmp_path: Path) -> None:
        rules = tmp_path / "acl"
        rules.write_text("topic readwrite allowed/#\n")
        rules.chmod(0o600)
        server = new_mosquitto(f"acl_file {rules}")
        await server.start()
        async with running(MqttBroker(MqttSettings(client_id="gateway", port=server.port))) as gateway:
            await gateway.broker.publish(Publication("allowed/a", b""))
            with pytest.raises(PublishRefused, match="Not authorized"):
                await gateway.broker.publish(Publication("denied/a", b""))

    async def test_session_taken_over_is_final(self) -> None:
        async def take_over(peer: Peer) -> None:
            await peer.read()
            await peer.send(CONNACK)
            await peer.send(DISCONNECT_TAKEN_OVER)

        async with scripted_broker(take_over) as port:
            gateway = Client(port)
            with pytest.raises(BrokerUnavailable, match="client id 'gateway'") as error:
                async with asyncio.timeout(DEADLINE_S):
                    await gateway.task
        assert "AIO_MQTT_CLIENT_ID" in error.value.fix
        assert gateway.events == ["connected", "taken_over"]
        await gateway.close()

    async def test_mqtt_3_1_1_does_not_say_so_and_the_log_names_the_client_id(self) -> None:
        async def hang_up(peer: Peer) -> None:
            await peer.read()
            await peer.send(CONNACK_3_1_1)

        with capture_logs() as logs:
            async with scripted_broker(hang_up) as port:
                gateway = Client(port, protocol="3.1.1")
                await until(lambda: "lost" in gateway.events)
                await gateway.close()
        (lost,) = [entry for entry in logs if entry["event"] == "Lost the session with the broker"]
        assert "client with the id 'gateway'" in lost["fix"]


class TestLimits:
    async def test_packet_above_the_brokers_maximum_is_not_sent(self, new_mosquitto: NewMosquitto) -> None:
        server = new_mosquitto("max_packet_size 1000")
        await server.start()
        gateway = Client(server.port)
        await gateway.connected()
        head = 2 + 1 + 2 + len("out") + 2  # fixed header, property length, topic, packet identifier
        await gateway.broker.publish(Publication("out", bytes(1000 - head - 1)))
        with pytest.raises(PublishRefused, match="maximum packet size"):
            await gateway.broker.publish(Publication("out", bytes(1000 - head)))
        await gateway.close()
        assert gateway.events == ["connected", "lost"][: len(gateway.events)]

    async def test_publication_that_the_broker_hangs_up_on_gives_way(self, new_mosquitto: NewMosquitto) -> None:
        """MQTT 3.1.1 has no way to tell the maximum."""
        server = new_mosquitto("max_packet_size 1000")
        await server.start()
        gateway = Client(server.port, protocol="3.1.1")
        await gateway.connected()
        sizes = [10, 5000, 20, 30]
        publishing = [asyncio.create_task(gateway.broker.publish(Publication("out", bytes(size)))) for size in sizes]
        async with asyncio.timeout(DEADLINE_S):
            results = await asyncio.gather(*publishing, return_exceptions=True)
        await gateway.close()
        assert [type(result) for result in results] == [type(None), PublishRefused, type(None), type(None)]

    async def test_receive_maximum_of_the_broker_is_kept(self) -> None:
        received: list[Packet] = []
        go_on = asyncio.Event()

        async def two_at_a_time(peer: Peer) -> None:
            await peer.read()
            await peer.send(bytes.fromhex("20 06 00 00 03 21 00 02"))
            received.extend([await peer.read(), await peer.read()])
            await go_on.wait()
            for number in range(6):
                await peer.acknowledge(received[number])
                received.append(await peer.read())

        async with scripted_broker(two_at_a_time) as port:
            gateway = Client(port, keep_alive_s=600)
            await gateway.connected()
            publishing = [asyncio.create_task(gateway.broker.publish(Publication("out", b""))) for _ in range(8)]
            await until(lambda: len(received) == 2)
            go_on.set()
            await until(lambda: len(received) == 8)
            assert all(packet.kind == PUBLISH for packet in received)
            assert sum(task.done() for task in publishing) <= 6
            await gateway.close()
            results = await asyncio.gather(*publishing, return_exceptions=True)
        assert [result for result in results if result is not None and not isinstance(result, BrokerUnavailable)] == []

    @pytest.mark.parametrize(("count", "size"), [(2, 1_000_000), (100, 7000)])
    async def test_waiting_publications_are_bounded_and_the_rest_waits_with_its_caller(
        self, mosquitto: Mosquitto, count: int, size: int
    ) -> None:
        """The bound on bytes lets two in, too: each holds 1000 of its own."""
        gateway = MqttBroker(
            MqttSettings(
                client_id="gateway", port=mosquitto.port, max_waiting_publications=count, max_waiting_bytes=size
            )
        )
        publications = [Publication("out", bytes([number]) * 1000) for number in range(5)]
        waiting = [asyncio.create_task(gateway.publish(each)) for each in publications]
        await asyncio.sleep(0)
        assert gateway.backlog == 2 * held_by(publications[0])
        settings = MqttSettings(client_id="viewer", port=mosquitto.port, subscriptions=("out",))
        async with running(MqttBroker(settings)) as viewer, running(gateway):
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*waiting)
            assert [message.payload[0] for message in await viewer.take(5)] == [0, 1, 2, 3, 4]
            assert gateway.backlog == 0

    async def test_a_publication_beyond_the_bound_goes_alone_and_one_given_up_leaves_its_room(self) -> None:
        broker = MqttBroker(MqttSettings(client_id="gateway", max_waiting_bytes=5000))
        large = asyncio.create_task(broker.publish(Publication("out", bytes(10_000))))
        small = asyncio.create_task(broker.publish(Publication("out", b"")))
        await asyncio.sleep(0)
        assert broker.backlog > 10_000
        large.cancel()
        await until(lambda: broker.backlog == held_by(Publication("out", b"")))
        await broker.close()
        results = await asyncio.gather(large, small, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, BrokerUnavailable]
        assert broker.backlog == 0


class TestConnect:
    async def test_mqtt_5_never_cleans_the_session_and_sends_a_fresh_token(self, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text("first-token")
        connects: list[Packet] = []

        async def one_packet(peer: Peer) -> None:
            connects.append(await peer.read())
            token.write_text("second-token")

        async with scripted_broker(one_packet) as port:
            gateway = Client(port, sat_file=token, session_expiry_s=0x01020304, receive_maximum=7)
            await until(lambda: len(connects) >= 2)
            await gateway.close()
        for connect, expected in zip(connects, (b"first-token", b"second-token"), strict=False):
            assert connect.body[7] & 0b10 == 0  # Clean Start
            assert b"\x11\x01\x02\x03\x04" in connect.body  # Session Expiry Interval
            assert b"\x21\x00\x07" in connect.body  # Receive Maximum
            assert b"K8S-SAT" in connect.body
            assert expected in connect.body

    async def test_mqtt_3_1_1_keeps_its_version_and_session(self) -> None:
        connects: list[Packet] = []

        async def refuse_version(peer: Peer) -> None:
            connects.append(await peer.read())
            await peer.send(CONNACK_3_1_1[:3] + b"\x01")
            await peer.read()

        async with scripted_broker(refuse_version) as port:
            gateway = Client(port, protocol="3.1.1")
            await until(lambda: len(connects) >= 2)
            await gateway.close()
        assert set(gateway.events) <= {"connect_refused", "unreachable"}
        for connect in connects:
            assert connect.body[:7] == b"\x00\x04MQTT\x04"
            assert connect.body[7] & 0b10 == 0  # Clean Session


@both_protocols
async def test_session_without_expiry_is_forgotten_without_complaint(mosquitto: Mosquitto, protocol: Protocol) -> None:
    gateway = Client(mosquitto.port, protocol=protocol, session_expiry_s=0, subscriptions=("in",))
    await gateway.connected()
    await mosquitto.stop()
    await mosquitto.start()
    await until(lambda: gateway.events.count("connected") == 2)
    await gateway.close()
    assert "session_lost" not in gateway.events
    async with running(MqttBroker(MqttSettings(client_id="camera", port=mosquitto.port))) as camera:
        await camera.broker.publish(Publication("in", b"nobody gets this"))
        again = Client(mosquitto.port, protocol=protocol, subscriptions=("in",))
        await again.connected()
        await camera.broker.publish(Publication("in", b"first"))
        assert (await again.next()).payload == b"first"
        await again.close()


async def test_unknown_host_is_waited_for() -> None:
    with capture_logs() as logs:
        gateway = Client(1, host="broker.invalid")
        await until(lambda: "unreachable" in gateway.events)
        await gateway.close()
    assert logs[0]["event"] == "Waiting for the broker"
