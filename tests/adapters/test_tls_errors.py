"""Each way in which TLS fails is one clear error that names the file or setting at fault: to broker and Triton."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.adapters.mqtt_probe import probe_broker
from gateway.adapters.mqtt_settings import MqttSettings
from gateway.adapters.triton import TritonServer
from gateway.credentials import TRITON, TlsFiles
from gateway.errors import BackendUnavailable, BrokerUnavailable
from gateway.messages import Publication
from tests.adapters.mqtt_client import Client
from tests.broker_session import until
from tests.certificates import Authority, Pair, server_context

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@dataclass(frozen=True)
class Case:
    """A server, our files, and what is then said and advised of it."""

    said: str
    fix: str
    server: str = "good"
    ca: str = "ca.pem"
    client: str = ""
    host: str = "localhost"
    newest: ssl.TLSVersion | None = None


CASES = {
    "stranger": Case(r"not signed by an authority that {CA} \('.*stranger.pem'\) trusts", "{CA}", ca="stranger.pem"),
    "expired": Case("the certificate of {peer} has expired", "clock, which says 20", "expired"),
    "not yet": Case("the certificate of {peer} is not yet valid", "clock, which says 20", "future"),
    "old ca": Case(r"the certificates in {CA} \('.*old.pem'\) have expired", "new authority", "of-old", ca="old.pem"),
    "name": Case("the certificate of {peer} is not for 'localhost'", "{ADDRESS} to a name", "elsewhere"),
    "address": Case("the certificate of {peer} is not for '127.0.0.1'", "{ADDRESS} to a name", host="127.0.0.1"),
    "no certificate": Case("wants a certificate of the gateway", "{CERT} and {KEY}", "mutual", newest=TLS13),
    "none in 1.2": Case("wants a certificate of the gateway", "{CERT} and {KEY}", "mutual", newest=TLS12),
    "refused": Case(r"refuses the certificate '.*strange.crt' of {CERT}", "Renew it", "mutual", client="strange"),
    "ours expired": Case(r"'.*late.crt' of {CERT} \(certificate expired\)", "Renew it", "mutual", client="late"),
    "plain": Case("speaks no TLS", "{SWITCH}=false", "plain"),
    "no file": Case("there is no file '.*absent.pem'", "mount the file", ca="absent.pem"),
}
MQTT_NAMES = {
    "peer": "the broker", "CA": "AIO_TLS_CA_FILE", "CERT": "AIO_TLS_CERT_FILE", "KEY": "AIO_TLS_KEY_FILE",
    "SWITCH": "AIO_MQTT_USE_TLS", "ADDRESS": "AIO_BROKER_HOSTNAME",
}  # fmt: skip
TRITON_NAMES = {
    "peer": "Triton", "CA": "TRITON_TLS_CA_FILE", "CERT": "TRITON_TLS_CERT_FILE", "KEY": "TRITON_TLS_KEY_FILE",
    "SWITCH": "TRITON_USE_TLS", "ADDRESS": "TRITON_GRPC_URL",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Authorities ca, stranger and old; servers and clients that they have signed."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, stranger = Authority(folder), Authority(folder, "stranger")
    for name in ("good", "mutual"):
        ca.issue(name)
    ca.issue("expired", days=(-5, -1))
    ca.issue("late", days=(-5, -1))
    ca.issue("future", days=(1, 5))
    ca.issue("elsewhere", "elsewhere.example")
    stranger.issue("strange")
    Authority(folder, "old", days=(-9, -1)).issue("of-old")
    return folder


@contextlib.asynccontextmanager
async def listener(case: Case, folder: Path) -> AsyncIterator[int]:
    """Accepts, reads, and says nothing over TLS; over plain text it answers like a web server."""
    context = None
    if case.server != "plain":
        pair = Pair(folder / f"{case.server}.crt", folder / f"{case.server}.key")
        context = server_context(pair, folder / "ca.pem" if case.server == "mutual" else None, case.newest)

    class Serving(socketserver.BaseRequestHandler):
        """In a thread: asyncio's servers hang up without the alert that says why."""

        def handle(self) -> None:
            self.request.settimeout(5.0)
            with self.request.dup() as wire, contextlib.suppress(OSError):
                wire.settimeout(5.0)
                if context is None:
                    wire.recv(1000)
                    wire.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return
                with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as secured:
                    secured.recv(1000)
                wire.shutdown(socket.SHUT_WR)
                while wire.recv(1000):  # closed with bytes unread, the alert could be lost
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Serving) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            await asyncio.to_thread(server.shutdown)
            thread.join()


def files_of(case: Case, folder: Path) -> tuple[Path, Path | None, Path | None]:
    if not case.client:
        return folder / case.ca, None, None
    return folder / case.ca, folder / f"{case.client}.crt", folder / f"{case.client}.key"


@pytest.mark.parametrize("name", CASES)
async def test_of_the_broker(name: str, folder: Path) -> None:
    """In the log once, however often it is tried, in what /ready says, and in the doctor's words."""
    case = CASES[name]
    ca, certificate, key = files_of(case, folder)
    given: dict[str, Any] = {"host": case.host, "tls": True, "ca_file": ca, "cert_file": certificate, "key_file": key}
    async with listener(case, folder) as port:
        with capture_logs() as logs:
            gateway = Client(port, **given)
            await until(lambda: gateway.events.count("unreachable") >= 2)
            trouble = gateway.broker.trouble
            await gateway.close()
        settings = MqttSettings(client_id="doctor", port=port, session_expiry_s=0, **given)
        with pytest.raises(BrokerUnavailable) as raised:
            await asyncio.to_thread(probe_broker, settings, [Publication("t", b"")], 0, 5.0)
    (entry,) = [entry for entry in logs if entry["event"] == "Waiting for the broker"]
    assert re.search(case.said.format(**MQTT_NAMES), entry["reason"])
    assert case.fix.format(**MQTT_NAMES) in entry["fix"]
    assert trouble == entry["reason"]
    assert (raised.value.message, raised.value.fix) == (entry["reason"], entry["fix"])


@pytest.mark.parametrize("name", CASES)
async def test_of_triton(name: str, folder: Path) -> None:
    """gRPC would say "failed to connect to all addresses"."""
    case = CASES[name]
    async with listener(case, folder) as port:
        triton = TritonServer(f"{case.host}:{port}", tls=TlsFiles(TRITON, *files_of(case, folder)))
        assert not await triton.is_ready()
        trouble = triton.trouble
        with pytest.raises(BackendUnavailable) as raised:
            await triton.serving("m")
        await triton.close()
    assert trouble is not None
    for error in (raised.value, trouble):
        assert re.search(case.said.format(**TRITON_NAMES), error.message)
        assert case.fix.format(**TRITON_NAMES) in error.fix


async def test_of_plain_text_to_a_tls_port(folder: Path) -> None:
    async with listener(Case("", ""), folder) as port:
        with capture_logs() as logs:
            gateway = Client(port, host="localhost")
            await until(lambda: gateway.events.count("unreachable") >= 1)
            await gateway.close()
        triton = TritonServer(f"localhost:{port}")
        assert not await triton.is_ready()
        trouble = triton.trouble
        await triton.close()
    assert "AIO_MQTT_USE_TLS is false" in f"{logs[0]['reason']} {logs[0]['fix']}"
    assert trouble is not None
    assert "TRITON_USE_TLS is false" in trouble.message


async def test_plain_text_is_never_sent_when_tls_is_wanted(folder: Path, tmp_path: Path) -> None:
    """Neither at first nor after failures: a listener gets nothing but the ClientHello of TLS."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4000))
        with contextlib.suppress(OSError):
            writer.write(b"\x20\x03\x00\x00\x00")  # as if all were well
            heard.append(b"\x16\x03" + await reader.read(4000))
        writer.close()

    token = tmp_path / "token"
    token.write_text("secret-token")
    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    gateway = Client(port, host="localhost", tls=True, ca_file=folder / "ca.pem", sat_file=token, username="secret")
    triton = TritonServer(f"localhost:{port}", tls=TlsFiles(TRITON, folder / "ca.pem"))
    for _ in range(3):
        assert not await triton.is_ready()
    await until(lambda: gateway.events.count("unreachable") >= 3)
    await gateway.close()
    await triton.close()
    server.close()
    assert len(heard) >= 8
    assert all(data.startswith(b"\x16\x03") for data in heard if data)
    wire = b"".join(heard)
    assert not [word for word in (b"MQTT", b"PRI * HTTP", b"secret", b"gateway") if word in wire]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"-----BEGIN CERTIFICATE-----\nMIIB", "holds no certificate in PEM form"), (b"", "is empty")],
)
async def test_of_a_file_for_triton_that_cannot_be_used(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    triton = TritonServer("localhost:1", tls=TlsFiles(TRITON, path))
    assert not await triton.is_ready()
    assert triton.trouble is not None
    with pytest.raises(BackendUnavailable, match=f"TRITON_TLS_CA_FILE: '{path}' {said}"):
        await triton.serving("m")
    await triton.close()
