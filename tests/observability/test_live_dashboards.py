"""Every panel has data: a real Prometheus scrapes a real gateway and its Triton under traffic, with faults."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.camera_counts import MOST_CAMERAS
from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.send import json_snapshot
from tests.e2e.site import REPOSITORY, RealSite, until
from tests.observability.dashboards import FILES, models, queries, variables
from tests.observability.prometheus import Exporter, Prometheus

GOLDEN = sorted((REPOSITORY / "industrial-safety" / "golden").glob("*.jpg"))
DATA_TIMEOUT_S = 60.0
ALL = dict.fromkeys(("instance", "model", "device", "triton", "triton_model"), ".*")
"""What a dashboard opens with: all values of each variable."""

DEFAULT = " or vector(0)"
"""What a panel shows where there is nothing."""

# What this machine or these few seconds do not have: a GPU, several Tritons, certificates, a rollout with an error in
# it, a camera that was there. As Triton documents it and the gateway says it; the scrape has other instances than the
# real ones.
TRITON_WITH_GPU = """\
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-2f1c"} 0.37
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-2f1c"} 8585740288
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-2f1c"} 1929379840
# HELP nv_gpu_power_usage GPU power usage in watts
# TYPE nv_gpu_power_usage gauge
nv_gpu_power_usage{gpu_uuid="GPU-2f1c"} 41.2
# HELP nv_gpu_power_limit GPU power management limit in watts
# TYPE nv_gpu_power_limit gauge
nv_gpu_power_limit{gpu_uuid="GPU-2f1c"} 70
"""
GATEWAY_WITH_MORE = """\
# TYPE edge_gateway_build_info gauge
edge_gateway_build_info{version="recorded"} 1
# TYPE edge_gateway_camera_last_snapshot_timestamp_seconds gauge
edge_gateway_camera_last_snapshot_timestamp_seconds{device_id="silent"} 1700000000
# TYPE edge_gateway_certificate_expiry_timestamp_seconds gauge
edge_gateway_certificate_expiry_timestamp_seconds{setting="AIO_TLS_CA_FILE"} 4102444800
# TYPE edge_gateway_triton_endpoint_up gauge
edge_gateway_triton_endpoint_up{endpoint="gpu-1:8001"} 0
# TYPE edge_gateway_triton_endpoint_outstanding gauge
edge_gateway_triton_endpoint_outstanding{endpoint="gpu-1:8001"} 0
# TYPE edge_gateway_triton_endpoint_requests_total counter
edge_gateway_triton_endpoint_requests_total{endpoint="gpu-1:8001",outcome="answered"} 4
# TYPE edge_gateway_triton_endpoint_ejections_total counter
edge_gateway_triton_endpoint_ejections_total{endpoint="gpu-1:8001"} 1
# TYPE edge_gateway_trial_answers_total counter
edge_gateway_trial_answers_total{model="industrial-safety"} 25
# TYPE edge_gateway_trial_errors_total counter
edge_gateway_trial_errors_total{code="BACKEND_INVALID_RESPONSE",model="industrial-safety"} 1
"""


@contextlib.contextmanager
def traffic(site: RealSite, token: str) -> Iterator[None]:
    """Cameras of which each does something else, a sensor, and somebody who asks over HTTP, until the end."""
    pictures = [path.read_bytes() for path in GOLDEN]
    done = threading.Event()

    def send() -> None:
        number = 0
        while not done.wait(0.25):
            number += 1
            picture = pictures[number % len(pictures)]
            site.send(json_snapshot(picture, "gate", backend_preference="dual"))
            site.send(picture, site.raw_topic("hall"))
            site.send(b"\xff\xd8 no picture", site.raw_topic("broken"))
            reading = {"sensor_id": "thermometer", "timestamp": time.time(), "values": [21.0 + number % 3]}
            site.send(json.dumps(reading).encode(), site.sensor_topic("thermometer"))
            for frame in range(20):
                site.send(picture[:100] + bytes([number % 256, frame]), site.raw_topic("too-fast"), qos=0)
            if number % 10 == 0:
                command(site, "wrong token")
                command(site, token)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def invent_cameras(site: RealSite) -> None:
    """So many that not all of them are told apart."""
    for number in range(MOST_CAMERAS):
        site.send(b"no picture", site.raw_topic(f"invented-{number}"), qos=0)


def command(site: RealSite, token: str) -> None:
    """Load a model that is loaded."""
    url = f"http://127.0.0.1:{site.http_port}/api/models/walkway/load"
    httpx.post(url, headers={"Authorization": f"Bearer {token}"}, json={}, timeout=30, trust_env=False)


def has_data(prometheus: Prometheus, expression: str) -> bool:
    """Whether an expression gives something that is not made up; but of alerts, for none fires within seconds."""
    if "ALERTS{" not in expression:
        expression = expression.removesuffix(DEFAULT)
    return any(not math.isnan(float(sample["value"][1])) for sample in prometheus.query(expression))


def check_variables(prometheus: Prometheus, site: RealSite) -> None:
    """Each variable offers what is there."""
    offered: dict[str, list[str]] = {}
    for model in models().values():
        for name, definition in variables(model).items():
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", definition)
            assert found is not None, definition
            offered[name] = prometheus.label_values(found[2], re.sub(r"\$\w+", ".*", found[1]))
    assert offered.keys() == ALL.keys()
    assert f"127.0.0.1:{site.http_port}" in offered["instance"]
    assert {"industrial-safety", "walkway"} <= set(offered["model"])
    assert {"gate", "hall", "broken"} <= set(offered["device"])
    assert {"industrial-safety-onnx", "industrial-safety-torch"} <= set(offered["triton_model"])


def wait_for_data(prometheus: Prometheus) -> None:
    """Until every expression of every panel gives something."""
    missing = list(queries())

    def none_is_missing() -> bool:
        nonlocal missing
        missing = [query for query in missing if not has_data(prometheus, query.filled(ALL))]
        return not missing

    with contextlib.suppress(AssertionError):
        until(none_is_missing, "data in every panel", DATA_TIMEOUT_S)
    assert not [f"{query.dashboard}: {query.panel}: {query.expression}" for query in missing]


@pytest.mark.triton
@pytest.mark.mosquitto
def test_every_panel_of_every_dashboard_has_data(tmp_path: Path) -> None:
    assert len(FILES) == 4
    token = tmp_path / "token"
    token.write_text("a-token-of-this-test-alone")
    config = tmp_path / "gateway.yaml"
    config.write_text("infer_timeout_ms: 5000\n")
    with contextlib.ExitStack() as running:
        broker = running.enter_context(EmbeddedBroker())
        if broker.protocol != "5":
            pytest.skip("there is no Mosquitto here, and it cannot be installed")
        triton = running.enter_context(EmbeddedTriton(REPOSITORY, extra_args=["--allow-cpu-metrics=true"]))
        recorded = [running.enter_context(Exporter(page)).address for page in (GATEWAY_WITH_MORE, TRITON_WITH_GPU)]
        site = running.enter_context(RealSite(broker, triton))
        site.start(
            GATEWAY_CONFIG=str(config), API_TOKEN_FILE=str(token), SPOOL_DIR=str(tmp_path / "spool"),
            RATE_LIMIT_PER_DEVICE="6", BREAKER_FAILURES="2", MODEL_STATE_DIR=str(tmp_path / "state"),
        )  # fmt: skip
        (tmp_path / "prometheus").mkdir()
        jobs = {
            "edge-gateway": [f"127.0.0.1:{site.http_port}", recorded[0]],
            "triton": [triton.metrics_url.removeprefix("http://").removesuffix("/metrics"), recorded[1]],
        }
        prometheus = running.enter_context(Prometheus(tmp_path / "prometheus", jobs))
        site.wait_ready()
        running.enter_context(traffic(site, token.read_text()))
        until(lambda: site.metric("edge_gateway_snapshots_total") > 50, "traffic")
        invent_cameras(site)
        unload = f"{triton.http_url}/v2/repository/models/industrial-safety-onnx/unload"
        httpx.post(unload, timeout=30, trust_env=False).raise_for_status()
        until(lambda: site.metric("edge_gateway_fallbacks_total") > 0, "answers of the other variant")
        config.write_text("infer_timeout_ms: 1\n")
        until(lambda: site.metric("edge_gateway_circuit_breaker_opened_total") > 0, "a breaker that opens")
        config.write_text("infer_timeout_ms: 5000\n")
        wait_for_data(prometheus)
        for series in re.findall(r"^(\w+\{.*)\} ", GATEWAY_WITH_MORE, re.MULTILINE):
            really = f'{series},instance="127.0.0.1:{site.http_port}"}}'
            assert not prometheus.query(really), f"{series} need not be recorded"
        assert not has_data(prometheus, "count(edge_gateway_that_nobody_exports) or vector(0)")
        check_variables(prometheus, site)
