"""TLS and mutual TLS to a real Mosquitto, with a throw-away CA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.messages import Publication
from tests.adapters.mqtt_client import Client, run_program
from tests.broker_session import until
from tests.mosquitto_server import Mosquitto, NewMosquitto

pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem; server.pem for localhost and client.pem signed by it, with their keys; other.pem, a stranger's CA."""
    folder = tmp_path_factory.mktemp("certificates")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        subject = ("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
        run_program("openssl", "req", "-x509", *new_key, *subject, folder=folder)
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "client"):
        subject = ("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        run_program("openssl", "req", *new_key, *subject, folder=folder)
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        run_program("openssl", "x509", "-req", "-in", f"{name}.csr", *signed_by, "-out", f"{name}.pem", folder=folder)
    return folder


@pytest.fixture
async def tls_port(certificates: Path, new_mosquitto: NewMosquitto) -> int:
    files = (
        f"cafile {certificates}/ca.pem",
        f"certfile {certificates}/server.pem",
        f"keyfile {certificates}/server.key",
    )
    server = new_mosquitto(*files, "require_certificate true")
    await server.start()
    return server.port


async def test_large_and_oversize_messages_over_mutual_tls(tls_port: int, certificates: Path) -> None:
    trust: dict[str, Any] = {
        "tls": True,
        "ca_file": certificates / "ca.pem",
        "cert_file": certificates / "client.pem",
        "key_file": certificates / "client.key",
    }
    gateway = Client(tls_port, subscriptions=("in",), max_payload_bytes=1_000_000, **trust)
    await gateway.connected()
    for size in (1_000_000, 3_000_000, 10):
        await gateway.broker.publish(Publication("in", bytes(size)))
    messages = await gateway.take(3)
    await gateway.close()
    assert [len(message.payload) for message in messages] == [1_000_000, 0, 10]
    assert [message.oversize.size if message.oversize else None for message in messages] == [None, 3_000_000, None]


@pytest.mark.parametrize(("ca", "host"), [("other.pem", "localhost"), ("ca.pem", "127.0.0.1")])
async def test_stranger_is_not_trusted(tls_port: int, certificates: Path, ca: str, host: str) -> None:
    with capture_logs() as logs:
        gateway = Client(tls_port, host=host, tls=True, ca_file=certificates / ca)
        await until(lambda: "unreachable" in gateway.events)
        await gateway.close()
    assert "AIO_TLS_CA_FILE" in logs[0]["fix"]


async def test_client_without_certificate_gets_no_session(tls_port: int, certificates: Path) -> None:
    gateway = Client(tls_port, tls=True, ca_file=certificates / "ca.pem")
    await until(lambda: "unreachable" in gateway.events)
    await gateway.close()
    assert "connected" not in gateway.events


async def test_tls_towards_a_plain_listener(mosquitto: Mosquitto) -> None:
    gateway = Client(mosquitto.port, tls=True, connect_timeout_s=1.0)
    await until(lambda: "unreachable" in gateway.events)
    await gateway.close()
