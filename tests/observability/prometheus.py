"""A real Prometheus with the project's rules, and an exporter for what a machine without a GPU does not have."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml

from gateway.local.debian import find_program, install_package
from gateway.local.processes import ChildProcess, free_ports
from tests.command_line import ROOT

RULES = ROOT / "compose" / "prometheus" / "rules.yml"
RULES_TEST = RULES.with_name("rules_test.yml")
CONFIGURATION = RULES.with_name("prometheus.yml")
START_TIMEOUT_S = 30.0


def program(name: str) -> str:
    """A program of Debian's package prometheus, which is installed where that is possible; else the test is skipped."""
    found = find_program(name)
    if found is None and install_package("prometheus", "The tests need a real Prometheus"):
        found = find_program(name)
    if found is None:
        pytest.skip("there is no Prometheus here, and it cannot be installed")
    return str(found)


class Prometheus:
    """Scrapes every second, under the job names that the rules and dashboards ask for; a context manager."""

    def __init__(self, folder: Path, jobs: Mapping[str, list[str]]) -> None:
        """`jobs` has the addresses of each job, as host:port."""
        self._port = free_ports(1)[0]
        shutil.copy(RULES, folder / RULES.name)
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [RULES.name],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": targets}]} for name, targets in jobs.items()
            ],
        }
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(configuration))
        arguments = [
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        ]
        self._process = ChildProcess("Prometheus", [program("prometheus"), *arguments])

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now; an expression that is refused fails the test."""
        return list(self._get("query", {"query": expression})["result"])

    def label_values(self, label: str, selector: str) -> list[str]:
        """What `label_values(selector, label)` of a dashboard offers."""
        return list(self._get(f"label/{label}/values", {"match[]": selector}))

    def _get(self, path: str, parameters: dict[str, str]) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}"
        answer = httpx.get(url, params=parameters, timeout=10, trust_env=False).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def _is_ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self._port}/-/ready"
            return httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def __enter__(self) -> Self:
        self._process.start()
        try:
            self._process.wait_ready(self._is_ready, START_TIMEOUT_S, fix="See its lines")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # its data is a temporary folder


class Exporter:
    """Says the same page of metrics to everybody who asks; a context manager."""

    def __init__(self, page: str) -> None:
        body = page.encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
