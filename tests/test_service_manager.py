"""What systemd hears of `edge-gateway serve`, and that a gateway that hangs is not heard any more."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gateway.local.processes import free_ports
from gateway.service_manager import ServiceManager
from tests.command_line import start
from tests.harness import until

LIMIT_S = 60.0
BEAT_US = "200000"


class Listener:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(LIMIT_S)

    def next(self) -> str:
        return self._socket.recv(4096).decode()

    def until(self, state: str) -> list[str]:
        """All that comes, up to this state and with it."""
        heard = [self.next()]
        while heard[-1] != state:
            heard.append(self.next())
        return heard

    def waiting(self) -> list[str]:
        """What has come and was not read, without waiting for more."""
        self._socket.setblocking(False)
        heard = []
        try:
            while True:
                heard.append(self.next())
        except BlockingIOError:
            return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Listener]:
    listener = Listener(tmp_path)
    yield listener
    listener.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_says_when_it_is_up_that_it_lives_and_that_it_stops(systemd: Listener, tmp_path: Path, workers: str) -> None:
    port = str(free_ports(1)[0])
    settings = {
        "WORKERS": workers,
        "AIO_BROKER_HOSTNAME": "127.0.0.1",
        "AIO_BROKER_TCP_PORT": str(free_ports(1)[0]),  # nobody is there: that is no reason for a restart
        "MODEL_REPOSITORY": str(tmp_path),
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": port,
        "DRAIN_TIMEOUT_S": "1",
    }
    with start("serve", NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC=BEAT_US, **settings) as gateway:
        assert systemd.next() == "READY=1"
        with socket.create_connection(("127.0.0.1", int(port)), timeout=LIMIT_S):
            pass  # somebody listens
        assert [systemd.next() for _ in range(3)] == ["WATCHDOG=1"] * 3
        for child in psutil.Process(gateway.process.pid).children():
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(child.environ())
        gateway.interrupt(signal.SIGTERM)
        assert set(systemd.until("STOPPING=1")[:-1]) <= {"WATCHDOG=1"}
        assert gateway.wait() == 0
        assert set(systemd.waiting()) == {"WATCHDOG=1"}, "it is still heard while it finishes"


async def test_an_event_loop_that_hangs_says_nothing(systemd: Listener) -> None:
    environment = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": BEAT_US, "WATCHDOG_PID": str(os.getpid())}
    manager = ServiceManager.of(environment)
    assert environment == {}
    telling = asyncio.create_task(manager.tell(asyncio.Event()))
    heard: list[str] = []
    await until(lambda: heard.extend(systemd.waiting()) or "WATCHDOG=1" in heard, "a beat")  # type: ignore[func-returns-value]
    time.sleep(3 * int(BEAT_US) / 1e6)  # noqa: ASYNC251 - this is the hang
    assert systemd.waiting() == []
    telling.cancel()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ["READY=1", "STOPPING=1"]),
        ({"WATCHDOG_USEC": BEAT_US, "WATCHDOG_PID": "1"}, ["READY=1", "STOPPING=1"]),
        ({"WATCHDOG_USEC": "soon"}, ["READY=1", "STOPPING=1"]),
    ],
    ids=["no watchdog", "another process is watched", "no number"],
)
async def test_nobody_who_does_not_ask_for_beats_gets_any(
    systemd: Listener, variables: dict[str, str], expected: list[str]
) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": systemd.address, **variables})
    stop = asyncio.Event()
    telling = asyncio.create_task(manager.tell(stop))
    assert await asyncio.to_thread(systemd.next) == expected[0]
    stop.set()
    await telling
    assert systemd.waiting() == expected[1:]


async def test_a_name_without_a_file_is_one_too() -> None:
    name = f"edge-gateway-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        stop = asyncio.Event()
        stop.set()
        await ServiceManager.of({"NOTIFY_SOCKET": f"@{name}"}).tell(stop)
        assert listener.recv(100) == b"READY=1"


async def test_a_socket_that_is_not_there_is_said_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = asyncio.Event()
    stop.set()
    await ServiceManager(str(tmp_path / "nobody")).tell(stop)
    assert "service manager could not be told" in capsys.readouterr().out
