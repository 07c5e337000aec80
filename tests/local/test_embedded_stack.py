"""The embedded Triton and broker as processes: start, crash, restart, and never an orphan."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.errors import StackError
from gateway.local.backend_directory import build_backend_directory, find_wheel
from gateway.local.broker import EmbeddedBroker, Kind
from gateway.local.debian import find_program, install_package
from gateway.local.processes import LOOPBACK, ChildProcess, free_ports, port_is_free
from gateway.local.segments import SHARED_MEMORY, SegmentOwner
from gateway.local.tritonserver import EmbeddedTriton
from tests.local.conftest import Server

DEADLINE_S = 60.0
ONES = np.ones((1, 3), np.float32)
needs_mosquitto = pytest.param("mosquitto", marks=pytest.mark.mosquitto)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Ended, be it still listed because nobody has asked for its exit code."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# --- child processes


def test_a_child_that_dies_at_its_start_shows_its_last_lines() -> None:
    child = ChildProcess("the helper", [sys.executable, "-c", "print('no such device'); raise SystemExit(3)"])
    child.start()
    with pytest.raises(StackError, match=r"(?s)the helper ended at its start \(exit code 3\).*no such device"):
        child.wait_ready(lambda: False, DEADLINE_S, fix="")
    assert not child.running


def test_a_child_that_is_never_ready_is_ended() -> None:
    child = ChildProcess("the helper", [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
    child.start()
    wait_for(lambda: child.log_tail() == ["up"], "its first line")
    with pytest.raises(StackError, match="was not ready within 0 s"):
        child.wait_ready(lambda: False, 0.0, fix="")
    assert is_gone(child.pid)


def test_a_child_outlives_the_thread_that_started_it() -> None:
    child = ChildProcess("the helper", [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
    starter = threading.Thread(target=child.start)
    starter.start()
    starter.join()
    wait_for(lambda: child.log_tail() == ["up"], "its first line")
    assert child.running
    child.kill()


def test_a_child_that_ignores_sigterm_is_killed_with_its_children() -> None:
    script = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
        time.sleep(600)
    """
    child = ChildProcess("the helper", [sys.executable, "-c", textwrap.dedent(script)])
    child.start()
    wait_for(lambda: len(child.log_tail()) == 1, "the id of its child")
    assert child.stop(grace=0.1) == -signal.SIGKILL
    wait_for(lambda: is_gone(int(child.log_tail()[0])), "the child's child to end")


PARENT = """
    import sys, time
    from pathlib import Path
    from gateway.local.broker import EmbeddedBroker
    from gateway.local.tritonserver import EmbeddedTriton
    with EmbeddedBroker(kind=sys.argv[2]) as broker, EmbeddedTriton(Path(sys.argv[1])) as triton:
        print(broker.pid, triton.pid, triton.grpc_url, flush=True)
        time.sleep(600)
"""


@pytest.mark.triton
@pytest.mark.parametrize("kind", [needs_mosquitto, "amqtt"])
def test_the_children_die_with_a_killed_parent(
    repository: Path, add_double: Callable[..., Path], kind: str, tmp_path: Path
) -> None:
    add_double(tmp_path, "orphan", "onnx", max_batch_size=2)
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        broker, triton, url = parent.stdout.readline().split()
        import tritonclient.grpc as grpc

        with grpc.InferenceServerClient(url) as client:
            client.load_model("orphan", client_timeout=DEADLINE_S)
        family = [int(broker), int(triton), *(child.pid for child in psutil.Process(int(triton)).children())]
        assert len(family) > 2
        parent.kill()
    wait_for(lambda: all(is_gone(pid) for pid in family), "broker, Triton and its stubs to end")


def test_segments_of_a_dead_owner_are_removed_and_those_of_a_live_one_kept(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gateway.local.segments import SegmentOwner;"
        "print(SegmentOwner(Path(sys.argv[1])).prefix)"
    )
    dead = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()
    live = SegmentOwner(tmp_path)
    left, kept = SHARED_MEMORY / f"{dead}x", SHARED_MEMORY / f"{live.prefix}x"
    # The first live owner has cleaned up already: bring back what a crash leaves.
    (tmp_path / dead).touch()
    for segment in (left, kept):
        segment.touch()
    another = SegmentOwner(tmp_path)
    assert not left.exists()
    assert kept.exists()
    live.release()
    another.release()
    assert not kept.exists()
    assert not list(tmp_path.iterdir())


# --- Triton


@pytest.mark.triton
def test_a_second_triton_runs_beside_the_first(
    server: Server, repository: Path, add_double: Callable[..., Path]
) -> None:
    add_double(repository, "beside", "onnx", max_batch_size=2)
    with EmbeddedTriton(repository) as second:
        assert second.grpc_url != server.triton.grpc_url
        other = Server(second)
        other.load("beside")
        np.testing.assert_array_equal(other.ask("beside", {"x": ONES}, ["y"])["y"], ONES * 2)
        assert not server.client.is_model_ready("beside")
        other.client.close()
    assert server.triton.is_live()


@pytest.mark.triton
def test_triton_comes_back_on_its_ports_after_a_crash(tmp_path: Path, add_double: Callable[..., Path]) -> None:
    add_double(tmp_path, "survivor", "onnx", max_batch_size=2)
    grpc_port, http_port, metrics_port = free_ports(3)
    triton = EmbeddedTriton(tmp_path, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)
    with triton:
        assert triton.grpc_url == f"{LOOPBACK}:{grpc_port}"
        server = Server(triton)
        server.load("survivor")
        stubs = [stub.pid for stub in server.stubs("survivor")]
        server.client.close()
        triton.kill()
        assert not triton.running
        wait_for(lambda: all(is_gone(pid) for pid in stubs), "the stubs to end")
        triton.start()
        server = Server(triton)
        server.load("survivor")
        np.testing.assert_array_equal(server.ask("survivor", {"x": ONES}, ["y"])["y"], ONES * 2)
        server.client.close()
    assert not triton.running
    assert all(port_is_free(port) for port in (grpc_port, http_port, metrics_port))


@pytest.mark.triton
async def test_triton_starts_from_an_event_loop(tmp_path: Path) -> None:
    triton = EmbeddedTriton(tmp_path)
    await asyncio.to_thread(triton.start)
    assert triton.is_live()
    await asyncio.to_thread(triton.stop)


@pytest.mark.triton
def test_backend_directories_can_be_built_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: build_backend_directory(find_wheel()), range(8)))
    (folder,) = folders
    assert not list(folder.parent.glob("draft-*")), "those of earlier versions may lie there, but no half of one"
    assert (folder / "pytorch" / "model.py").is_file()
    assert not (folder / "python" / "libtriton_python.so").is_symlink()


def test_a_taken_port_is_one_line_with_the_fix(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} for Triton's grpc is taken") as error:
            EmbeddedTriton(tmp_path, grpc_port=port).start()
        assert "--grpc-port" in error.value.fix
        with pytest.raises(StackError, match=f"port {port} for the MQTT broker is taken") as error:
            EmbeddedBroker(port=port, kind="amqtt").start()
        assert "--mqtt-port" in error.value.fix


def test_a_missing_repository_is_an_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no model repository") as error:
        EmbeddedTriton(tmp_path / "nowhere").start()
    assert "--repository" in error.value.fix


def test_a_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StackError, match="not installed") as error:
        find_wheel()
    assert "pip install 'triton-edge-gateway[local]'" in error.value.fix


# --- the broker


def new_client(broker: EmbeddedBroker, client_id: str) -> paho.Client:
    """With a session that lasts, in the version that the broker speaks."""
    if broker.protocol == "5":
        return paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
    return paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)


class Listener:
    """A subscriber at QoS 1 that keeps what comes."""

    def __init__(self, broker: EmbeddedBroker, topic: str) -> None:
        self.received: queue.Queue[bytes] = queue.Queue()
        self.subscribed = threading.Event()
        self._topic = topic
        self._client = new_client(broker, "listener")
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self.subscribed.set()
        self._client.on_message = lambda _client, _data, message: self.received.put(bytes(message.payload))
        lasting = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        lasting.SessionExpiryInterval = 3600
        if broker.protocol == "5":
            self._client.connect(broker.host, broker.port, clean_start=False, properties=lasting)
        else:
            self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        assert self.subscribed.wait(DEADLINE_S)

    def _on_connect(
        self, client: paho.Client, data: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        client.subscribe(self._topic, qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def publish(broker: EmbeddedBroker, topic: str, payload: bytes) -> None:
    """At QoS 1, until the broker has acknowledged it."""
    client = new_client(broker, "publisher")
    client.connect(broker.host, broker.port)
    client.loop_start()
    client.publish(topic, payload, qos=1).wait_for_publish(DEADLINE_S)
    client.disconnect()
    client.loop_stop()


@pytest.mark.parametrize("kind", [needs_mosquitto, "amqtt"])
def test_a_message_goes_through_before_and_after_a_crash_of_the_broker(kind: Kind) -> None:
    with EmbeddedBroker(kind=kind) as broker:
        assert broker.name.startswith(kind)
        assert broker.protocol == {"mosquitto": "5", "amqtt": "3.1.1"}[kind]
        port = broker.port
        for payload in (b"before", b"after"):
            listener = Listener(broker, "cameras/+/snapshots")
            publish(broker, "cameras/7/snapshots", payload)
            assert listener.received.get(timeout=DEADLINE_S) == payload
            listener.close()
            broker.kill()
            assert not broker.running
            broker.start()
            assert broker.port == port


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.mosquitto
def test_mosquitto_keeps_a_session_and_its_queue_over_a_restart(crash: bool) -> None:
    with EmbeddedBroker(kind="mosquitto", save_each_change=True) as broker:
        Listener(broker, "kept").close()
        publish(broker, "kept", b"while away")
        if crash:
            saved = Path(broker.data_folder) / "mosquitto.db"
            wait_for(lambda: saved.exists() and b"while away" in saved.read_bytes(), "the message on disk")
            broker.kill()
            broker.start()
        else:
            broker.restart()
        listener = Listener(broker, "kept")
        assert listener.received.get(timeout=DEADLINE_S) == b"while away"
        listener.close()


def test_nothing_is_installed_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert not install_package("no-such-package", "A test")


def test_programs_are_found_outside_of_a_users_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_program("ldconfig") is not None


# --- in the foreground

TRACES_TO = "http://127.0.0.1:9"
STACK = "import sys; from pathlib import Path; from gateway.local.stack import {0}; sys.exit({0}(Path(sys.argv[1])))"


@pytest.fixture(params=["run_stack", "run_triton"])
def foreground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command in a process of its own, with its first lines."""
    command = [sys.executable, "-u", "-c", STACK.format(request.param), str(tmp_path)]
    traced = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": TRACES_TO}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=traced) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        yield process, lines
        process.kill()


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_stack_says_what_to_export_and_ends_at_a_signal(
    foreground: tuple[subprocess.Popen[str], list[str]], number: signal.Signals
) -> None:
    process, lines = foreground
    exports = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
    assert {"TRITON_GRPC_URL", "TRITON_METRICS_URL", "MODEL_REPOSITORY"} <= set(exports)
    assert exports["OTEL_EXPORTER_OTLP_ENDPOINT"] == TRACES_TO
    children = psutil.Process(process.pid).children(recursive=True)
    assert any(f"--trace-config=opentelemetry,url={TRACES_TO}/v1/traces" in child.cmdline() for child in children)
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == 0
    assert all(is_gone(child.pid) for child in children)


@pytest.mark.triton
def test_the_stack_ends_with_an_error_when_a_part_dies(
    foreground: tuple[subprocess.Popen[str], list[str]],
) -> None:
    process, _ = foreground
    (triton,) = [child for child in psutil.Process(process.pid).children() if child.name() == "tritonserver"]
    os.kill(triton.pid, signal.SIGKILL)
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.wait(DEADLINE_S) == 1
    assert "Triton has died unexpectedly" in said
    assert "Started GRPCInferenceService" in said
