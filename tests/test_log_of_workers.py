"""The log of a front and its workers: one to read, and one level for all of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import httpx

from tests.admin.commanded import with_token
from tests.command_line import Running, start

READ_AGAIN = "Configuration read again"


def test_it_is_one_to_read_and_its_level_holds_for_all(tmp_path: Path) -> None:
    config, models = tmp_path / "gateway.yaml", tmp_path / "models"
    models.mkdir()
    config.write_text("log_level: info\n")
    settings = {
        "AIO_BROKER_HOSTNAME": "127.0.0.1",
        "AIO_BROKER_TCP_PORT": "1",
        "TRITON_GRPC_URL": "127.0.0.1:1",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "0",
        "MODEL_REPOSITORY": str(models),
        "API_TOKEN_FILE": str(with_token(tmp_path)),
    }
    with start("serve", "--config", str(config), "--workers", "2", **settings) as gateway:
        url = f"http://127.0.0.1:{port_of(gateway)}"
        headers = {"Authorization": "Bearer s3cret"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:

            def workers_saying(event: str) -> list[int | None]:
                events = client.get("/api/log", params={"contains": event, "limit": 500}).json()["events"]
                assert [each["timestamp"] for each in events] == sorted(each["timestamp"] for each in events)
                return sorted(each.get("worker", 0) for each in events if each["event"] == event)

            gateway.until(lambda: workers_saying("Gateway starts") == [0, 1, 2], "the log of all")
            gateway.until(lambda: workers_saying("Not ready") == [0, 1, 2], "workers that follow")
            assert client.post("/api/log-level", json={"level": "error"}).json()["level"] == "error"
            config.write_text("log_level: warning\n")
            gateway.interrupt(signal.SIGHUP)
            gateway.until(lambda: client.get("/api/log").json()["configured"] == "warning", "the reload at the front")
            assert workers_saying(READ_AGAIN) == []
            assert client.post("/api/log-level", json={"level": "info"}).json()["level"] == "info"
            gateway.interrupt(signal.SIGHUP)
            gateway.until(lambda: workers_saying(READ_AGAIN) == [1, 2], "workers at the level that was chosen")
        gateway.interrupt(signal.SIGTERM)
        assert gateway.wait() == 0
    for line in gateway.err:
        json.loads(line)


def port_of(gateway: Running) -> int:
    """Where the front listens."""
    gateway.says("Gateway starts")
    entries = [json.loads(line) for line in gateway.err]
    return int(next(each["http_port"] for each in entries if "worker" not in each and "http_port" in each))
