"""TLS and mutual TLS to Triton: over gRPC's own wire, to its metrics page, and to a real tritonserver."""

from __future__ import annotations

import asyncio
import functools
import http.server
import threading
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from structlog.testing import capture_logs
from tritonclient.grpc import service_pb2 as messages

from gateway.adapters.triton import TritonServer
from gateway.adapters.triton_memory import GPU_TOTAL_GAUGE, GPU_USED_GAUGE, MemoryMetrics
from gateway.credentials import TRITON, TlsFiles
from gateway.local.tritonserver import EmbeddedTriton
from gateway.ports import GpuMemory
from tests.adapters.triton_wire import listening
from tests.certificates import Authority, Pair, server_context


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def files_of(ca: Authority, pair: Pair) -> TlsFiles:
    return TlsFiles(TRITON, ca.path, pair.certificate, pair.key)


def mutual(ca: Authority) -> Any:
    pair = ca.issue("server")
    keys = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    return grpc.ssl_server_credentials(keys, ca.path.read_bytes(), require_client_auth=True)


async def test_renewed_certificate_is_shown_while_calls_that_run_come_to_their_end(ca: Authority) -> None:
    shown: list[bytes] = []
    go_on = asyncio.Event()

    async def live(_: bytes, context: Any) -> bytes:
        shown.append(context.auth_context()["x509_common_name"][0])
        return bytes(messages.ServerLiveResponse(live=True).SerializeToString())

    async def slow(_: bytes, context: Any) -> bytes:
        await go_on.wait()
        return bytes(messages.ModelMetadataResponse(name="m", versions=["3"]).SerializeToString())

    pair = ca.issue("client")
    async with listening(mutual(ca), "localhost") as (wire, url):
        wire.answers |= {"ServerLive": live, "ModelMetadata": slow}
        server = TritonServer(url, tls=files_of(ca, pair), look_at_files_s=0, health_timeout_s=20)
        assert await server.is_ready()
        running = asyncio.create_task(server.serving("m"))
        await asyncio.sleep(0)
        with capture_logs() as logs:
            pair.certificate.write_bytes(b"half writ")  # by somebody who copies slowly
            for _ in range(3):
                assert await server.is_ready()
            pair.replace_by(ca.issue("renewed"))
            while b"renewed" not in shown:
                assert await server.is_ready()
        go_on.set()
        assert await running == (3,)
        await server.close()
    assert set(shown) == {b"client", b"renewed"}
    assert [(entry["log_level"], entry.get("setting")) for entry in logs] == [
        ("warning", "TRITON_TLS_CERT_FILE"),
        ("info", None),
    ]


async def test_metrics_over_https_use_the_same_files(ca: Authority, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    page = f'{GPU_USED_GAUGE}{{gpu_uuid="a"}} 5\n{GPU_TOTAL_GAUGE}{{gpu_uuid="a"}} 9\n'
    (tmp_path / "web" / "metrics").write_text(page)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        web.socket = server_context(ca.issue("web"), ca.path, alpn="http/1.1").wrap_socket(web.socket, server_side=True)
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"https://localhost:{web.server_address[1]}/metrics"
            metrics, stranger = MemoryMetrics(url, files_of(ca, ca.issue("client"))), MemoryMetrics(url)
            assert await metrics.gpu() == GpuMemory(5, 9)
            assert await stranger.gpu() is None
            await metrics.close()
            await stranger.close()
        finally:
            await asyncio.to_thread(web.shutdown)
            thread.join()


@pytest.mark.triton
async def test_mutual_tls_to_a_real_triton(ca: Authority, tmp_path: Path) -> None:
    pair, repository = ca.issue("triton"), tmp_path / "models"
    repository.mkdir()
    flags = ["--grpc-use-ssl=1", "--grpc-use-ssl-mutual=1", f"--grpc-server-cert={pair.certificate}"]
    flags += [f"--grpc-server-key={pair.key}", f"--grpc-root-cert={ca.path}"]
    embedded = EmbeddedTriton(repository, extra_args=flags)
    await asyncio.to_thread(embedded.start)
    try:
        url = embedded.grpc_url.replace("127.0.0.1", "localhost")
        client = ca.issue("client")
        server = TritonServer(url, tls=files_of(ca, client), look_at_files_s=0)
        nobody, plain = TritonServer(url, tls=TlsFiles(TRITON, ca.path)), TritonServer(url)
        strange = TritonServer(url, tls=files_of(ca, Authority(tmp_path, "stranger").issue("strange")))
        assert await server.is_ready()
        assert server.trouble is None
        assert not await nobody.is_ready()
        assert not await plain.is_ready()
        assert not await strange.is_ready()
        said = [str(each.trouble) for each in (nobody, plain, strange)]
        ca.issue("client")  # over the one that is used
        with capture_logs() as logs:
            while not logs:
                assert await server.is_ready()
        for each in (server, nobody, plain, strange):
            await each.close()
    finally:
        await asyncio.to_thread(embedded.stop)
    assert "wants a certificate of the gateway" in said[0]
    assert "Set TRITON_TLS_CERT_FILE and TRITON_TLS_KEY_FILE" in said[0]
    assert "TRITON_USE_TLS is false" in said[1]
    assert "refuses the certificate" in said[2]
    assert "renewed credentials" in logs[0]["event"]
