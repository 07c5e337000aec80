"""The link between two parts: whole, cut, silent, slow."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.local.processes import LOOPBACK
from tests.chaos.proxy import Link

TEXT = bytes(range(256)) * 1000


class Echo(socketserver.BaseRequestHandler):
    """Gives everything back."""

    def handle(self) -> None:
        while data := self.request.recv(65_536):
            self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    """Ends with its test, whoever is still connected."""

    daemon_threads = True
    block_on_close = False


@pytest.fixture
def link() -> Iterator[Link]:
    with EchoServer((LOOPBACK, 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with Link(server.server_address[1]) as link:
            yield link
        server.shutdown()
        thread.join()


def echoed(connection: socket.socket, data: bytes = TEXT) -> bool:
    """False when the connection ends first."""
    received = b""
    try:
        connection.sendall(data)
        while len(received) < len(data) and (part := connection.recv(65_536)):
            received += part
    except ConnectionError:
        return False
    return received == data


def dial(link: Link) -> socket.socket:
    return socket.create_connection((LOOPBACK, link.port), timeout=10)


def ask_in_vain(connection: socket.socket) -> None:
    connection.sendall(b"are you there?")
    connection.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)


def test_everything_comes_through_unchanged(link: Link) -> None:
    with dial(link) as connection:
        assert echoed(connection)


def test_a_cut_ends_connections_and_takes_no_new_ones_until_it_is_mended(link: Link) -> None:
    with dial(link) as connection:
        assert echoed(connection)
        link.cut()
        assert not echoed(connection)
        with dial(link) as another:
            assert not echoed(another)
    link.mend()
    with dial(link) as connection:
        assert echoed(connection)


def test_silence_keeps_the_connection_and_loses_nothing(link: Link) -> None:
    with dial(link) as connection:
        assert echoed(connection)
        link.silence()
        ask_in_vain(connection)
        link.mend()
        assert connection.recv(100) == b"are you there?"


def test_what_is_swallowed_is_gone_and_its_connection_with_it(link: Link) -> None:
    with dial(link) as connection:
        assert echoed(connection)
        link.swallow()
        ask_in_vain(connection)
        link.mend()
        assert not echoed(connection)
    with dial(link) as connection:
        assert echoed(connection)


def test_a_delay_holds_in_both_directions_and_not_for_each_piece_again(link: Link) -> None:
    with dial(link) as connection:
        link.delay(0.1)
        began = time.monotonic()
        assert echoed(connection, TEXT)
        assert 0.2 <= time.monotonic() - began < 2
        link.mend()
        assert echoed(connection)
