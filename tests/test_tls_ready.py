"""The whole gateway between a broker and a Triton whose certificates it must not trust."""

from __future__ import annotations

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from gateway.commands.serve import compose
from gateway.config import Settings
from tests.adapters.test_tls_errors import Case, listener
from tests.broker_session import until
from tests.certificates import Authority


async def test_ready_and_the_log_say_why_and_name_the_files(tmp_path: Path) -> None:
    ca, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    ca.issue("expired", days=(-5, -1))
    ca.issue("good")
    (tmp_path / "models").mkdir()
    async with listener(Case("", "", "expired"), tmp_path) as broker, listener(Case("", ""), tmp_path) as triton:
        settings = Settings(
            aio_broker_tcp_port=broker,
            aio_mqtt_use_tls=True,
            aio_tls_ca_file=ca.path,
            triton_grpc_url=f"localhost:{triton}",
            triton_use_tls=True,
            triton_tls_ca_file=stranger.path,
            model_repository=tmp_path / "models",
            http_host="127.0.0.1",
            http_port=0,
        )
        gateway = compose(settings)
        with capture_logs() as logs:
            running = asyncio.create_task(gateway.run())
            await until(lambda: sum(": " in reason for reason in gateway.health.report().reasons) == 2)
            reasons = gateway.health.report().reasons
            gateway.stop()
            await running
    assert "the broker session is not up: the certificate of the broker has expired" in reasons
    (reason,) = [reason for reason in reasons if reason.startswith("Triton cannot be reached: ")]
    assert f"TRITON_TLS_CA_FILE ('{stranger.path}')" in reason
    said = {entry["event"]: entry for entry in logs if entry["event"].startswith("Waiting for")}
    assert "clock" in said["Waiting for the broker"]["fix"]
    assert "TRITON_TLS_CA_FILE" in said["Waiting for Triton"]["fix"]
