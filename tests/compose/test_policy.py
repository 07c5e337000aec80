"""What holds for every container of the compose files, and that their figures fit the gateway's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.commands.broker import RECEIVE_MARGIN
from gateway.commands.camera import camera
from gateway.config import Settings
from gateway.ports import MAX_PROPERTIES_BYTES
from tests.compose.files import EXAMPLE, FILE, FOLDER, TLS_FILE, example, mounts, number_of_bytes, services, variables
from tests.observability.prometheus import program

SERVICES = services()
LASTING = {name: service for name, service in SERVICES.items() if name != "setup"}
CONF = (FOLDER / "mosquitto" / "mosquitto.conf").read_text()
OWN = ("gateway", "camera")
"""Those that read settings of the gateway."""


def limit(name: str) -> int:
    """A number in mosquitto.conf."""
    found = re.search(rf"^{name} (\d+)$", CONF, re.MULTILINE)
    assert found, name
    return int(found[1])


@pytest.mark.parametrize("path", [FILE, TLS_FILE], ids=lambda path: path.name)
def test_the_files_are_valid(path: Path) -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_variable_is_in_the_example_and_every_one_there_is_used() -> None:
    read_by_compose_itself = {"COMPOSE_PROFILES", "COMPOSE_FILE"}
    assert variables(FILE) | variables(TLS_FILE) | read_by_compose_itself == set(example())


def test_images_are_pinned_by_variables() -> None:
    used = re.findall(r"image: (.*)", FILE.read_text())
    assert all(re.fullmatch(r"\$\{[A-Z_]+_IMAGE:\?[^}]*\}", text) for text in used)
    images = {name: image for name, image in example().items() if name.endswith("_IMAGE")}
    for name, image in images.items():
        tag = image.split("@")[0].rpartition(":")[2]
        assert re.search(r"\d", tag), f"{name} is not pinned: {image}"
    version = re.search(r'__version__ = "(.*)"', (FOLDER.parent / "gateway" / "__init__.py").read_text())
    assert version
    for name in ("GATEWAY_IMAGE", "CAMERA_IMAGE", "TRITON_CPU_IMAGE"):
        assert images[name].endswith(f":{version[1]}"), name


def test_images_that_are_built_here_are_asked_of_no_registry() -> None:
    own = ("GATEWAY_IMAGE", "CAMERA_IMAGE", "TRITON_CPU_IMAGE")
    for service in SERVICES.values():
        built_here = service["image"] in {example()[name] for name in own}
        assert service.get("pull_policy") == ("never" if built_here else None)


def test_each_port_is_opened_by_a_variable_of_its_own() -> None:
    opened = re.findall(r'ports: \["\$\{([A-Z_]+)', FILE.read_text())
    assert len(opened) == len(set(opened)) == 4


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_may_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "devices", "userns_mode"} & set(service)
    assert service.get("network_mode") == ("none" if name == "setup" else None)
    if name == "setup":  # gives files to their readers, and ends
        assert (service["user"], service["cap_add"], service["restart"]) == ("0:0", ["CHOWN"], "no")
    else:
        assert not re.match(r"(0|root)\b", service["user"])
        assert "cap_add" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_has_limits(name: str) -> None:
    service = SERVICES[name]
    assert number_of_bytes(service["mem_limit"]) >= 64 * 2**20
    assert 0 < service["pids_limit"] <= 2000
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    for tmpfs in service.get("tmpfs", ()):
        assert "size=" in tmpfs


@pytest.mark.parametrize("name", LASTING)
def test_every_service_is_looked_after(name: str) -> None:
    service = LASTING[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"  # CMD-SHELL needs a shell in the image
    assert {"interval", "timeout", "retries", "start_period"} < set(service["healthcheck"])
    assert re.fullmatch(r"\d+s(10000ms)?", service["stop_grace_period"])


def test_ports_are_this_machine_s_alone_unless_said_otherwise() -> None:
    published = [
        port for path in (FILE, TLS_FILE) for each in services(path).values() for port in each.get("ports", ())
    ]
    assert len(published) == 5
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_secrets_come_by_files() -> None:
    for path in (FILE, TLS_FILE):
        for service in services(path).values():
            for name in service.get("environment", {}):
                assert not re.search("PASSWORD|TOKEN|SECRET|KEY", name) or name.endswith("_FILE"), name
    assert not [name for name in example() if re.search("PASSWORD|TOKEN|SECRET", name)]


def test_what_is_mounted_is_there() -> None:
    for path in (FILE, TLS_FILE):
        named = yaml.safe_load(path.read_text()).get("volumes") or yaml.safe_load(FILE.read_text())["volumes"]
        for service in services(path).values():
            for source in mounts(service).values():
                if source.startswith("."):
                    assert (FOLDER / source).exists() or source.startswith("./tls"), source
                else:
                    assert source in named


def test_settings_are_the_gateway_s() -> None:
    for path in (FILE, TLS_FILE):
        for name in OWN:
            environment: dict[str, Any] = services(path)[name]["environment"]
            assert {key.lower() for key in environment} <= {*Settings.model_fields, "gateway_config"}


def test_the_camera_s_options_exist() -> None:
    options = {option for parameter in camera.params for option in parameter.opts}
    command = [*SERVICES["camera"]["command"], *SERVICES["camera"]["healthcheck"]["test"]]
    assert {word for word in command if word.startswith("--")} <= options


def test_the_gateway_has_its_drain_time_and_ten_seconds() -> None:
    assert SERVICES["gateway"]["stop_grace_period"] == f"{example()['DRAIN_TIMEOUT_S']}s10000ms"
    assert str(SERVICES["gateway"]["environment"]["DRAIN_TIMEOUT_S"]) == example()["DRAIN_TIMEOUT_S"]


def test_gateway_and_triton_share_memory_as_one_user() -> None:
    volume = yaml.safe_load(FILE.read_text())["volumes"]["tensors"]["driver_opts"]
    for name in ("gateway", "triton-cpu", "triton-gpu"):
        assert mounts(SERVICES[name])["/dev/shm"] == "tensors"
        assert SERVICES[name]["user"] == "10001:10001"
    assert "uid=10001,gid=10001,mode=0700" in volume["o"]
    assert number_of_bytes(example()["SHARED_MEMORY"]) >= 8 * Settings.model_fields["shared_memory_max_bytes"].default


def test_both_tritons_are_the_same_for_those_who_ask() -> None:
    cpu, gpu = SERVICES["triton-cpu"], SERVICES["triton-gpu"]
    assert cpu["networks"] == gpu["networks"] == {"inference": {"aliases": ["triton"]}}
    assert [*cpu["command"], "--allow-client-shm=true"] == gpu["command"]
    assert "--strict-readiness=false" in cpu["command"]
    assert SERVICES["gateway"]["environment"]["TRITON_GRPC_URL"] == "triton:8001"


def test_the_broker_s_limits_fit_the_gateway_s() -> None:
    fields = Settings.model_fields
    topic_and_headers = 2**16 + MAX_PROPERTIES_BYTES + 64
    assert limit("max_packet_size") >= fields["max_payload_bytes"].default + topic_and_headers
    held = fields["queue_max_messages"].default + fields["max_in_flight"].default
    assert limit("max_inflight_messages") >= held + RECEIVE_MARGIN
    assert limit("max_queued_messages") >= 20_000
    assert 2 * limit("max_queued_bytes") < number_of_bytes(example()["MOSQUITTO_MEMORY"])
    assert 0 < limit("autosave_interval") <= 5  # what a broker that is killed forgets: README and compose.md say 6 s
    assert "\nautosave_on_changes" not in CONF


def test_every_role_has_its_listener_by_password_alone() -> None:
    for path in sorted(FOLDER.glob("mosquitto/*/listener.conf")):
        lines = path.read_text().splitlines()
        assert {"allow_anonymous false", "acl_file /mosquitto/config/roles.acl"} <= set(lines), path
    assert CONF.count("allow_anonymous true") == 1
    assert "listener 1880 127.0.0.1" in CONF


def test_prometheus_takes_its_configuration_and_scrapes_what_is_there() -> None:
    folder = FOLDER / mounts(SERVICES["prometheus"])["/etc/prometheus"]
    config = folder / "prometheus.yml"
    done = subprocess.run(
        [program("promtool"), "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    targets = {
        target
        for job in yaml.safe_load(config.read_text())["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    assert targets == {"gateway:8080", "triton:8002"}
    for name in ("gateway", "triton-cpu", "triton-gpu"):
        assert "inference" in SERVICES[name]["networks"]
    assert "inference" in SERVICES["prometheus"]["networks"]


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    grafana = SERVICES["grafana"]
    provisioning = FOLDER / mounts(grafana)["/etc/grafana/provisioning"]
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert set(grafana["networks"]) & set(SERVICES["prometheus"]["networks"])
    provider = yaml.safe_load((provisioning / "dashboards" / "edge-gateway.yaml").read_text())["providers"][0]
    assert len(list((FOLDER / mounts(grafana)[provider["options"]["path"]]).glob("*.json"))) == 4


def test_the_example_says_how_it_is_used() -> None:
    assert EXAMPLE.read_text().startswith("# Copy this file to .env")
    assert "cp -n .env.example .env && docker compose up -d --wait" in FILE.read_text()
