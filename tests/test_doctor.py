"""`edge-gateway doctor` against real servers, against none, and against those that behave badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import tritonclient.grpc as grpc
from paho.mqtt.enums import CallbackAPIVersion
from tritonclient.utils import InferenceServerException

from gateway.doctor.findings import Area, Check, Level, as_json, as_text, examine
from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import free_ports
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.threads import apart
from tests.command_line import ROOT, environment, leading_to, one_line, run, start
from tests.e2e.site import Client, RealSite, until
from tests.harness import write_model
from tests.mosquitto_server import Mosquitto

REPOSITORY = ROOT / "model_repository"
DYNAMIC_SECURITY = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
STATUS = "edge-ai/default/default/gw/ai/status"


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        if running.protocol != "5":
            pytest.skip("there is no Mosquitto here, and it cannot be installed")
        yield running


@pytest.fixture(scope="module")
def triton() -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(REPOSITORY) as running:
        yield running


def nowhere() -> dict[str, str]:
    """Settings that lead to closed ports."""
    mqtt, grpc = free_ports(2)
    return {
        "AIO_BROKER_HOSTNAME": "127.0.0.1",
        "AIO_BROKER_TCP_PORT": str(mqtt),
        "TRITON_GRPC_URL": f"127.0.0.1:{grpc}",
        "MODEL_REPOSITORY": str(REPOSITORY),
        "GATEWAY_ID": "gw",
    }


def examined(code: int, **settings: str) -> list[dict[str, str]]:
    """The findings, after the exit code and the shape of the whole have been checked."""
    done = run("doctor", "--json", **settings)
    assert (done.returncode, done.stderr) == (code, ""), done
    body = json.loads(done.stdout)
    assert set(body) == {"ok", "counts", "findings"}
    assert body["ok"] is (code == 0)
    for finding in body["findings"]:
        assert set(finding) == {"level", "area", "what", "where", "fix"}
        assert finding["fix"] or finding["level"] in ("ok", "unknown"), finding
    return list(body["findings"])


def of(findings: list[dict[str, str]], area: str, level: str) -> list[str]:
    """`where: what` of the findings of one area and level."""
    return [f"{f['where']}: {f['what']}" for f in findings if (f["area"], f["level"]) == (area, level)]


# --- nothing there --------------------------------------------------------------------------------------


def test_nothing_there_is_two_problems_and_no_wait() -> None:
    settings = nowhere()
    findings = examined(1, **settings)
    (broker,) = of(findings, "Broker", "problem")
    assert broker.startswith(f"127.0.0.1:{settings['AIO_BROKER_TCP_PORT']}: ")
    assert "refused" in broker
    (triton,) = of(findings, "Triton", "problem")
    assert triton.startswith(f"{settings['TRITON_GRPC_URL']}: cannot be reached")
    assert len(of(findings, "Models", "ok")) == 2 * len(list(REPOSITORY.glob("*/model.yaml")))
    assert of(findings, "Clock", "unknown")


def test_servers_that_accept_and_say_nothing_are_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mqtt, socket.create_server(("127.0.0.1", 0)) as grpc:
        settings = {
            **nowhere(),
            "AIO_BROKER_TCP_PORT": str(mqtt.getsockname()[1]),
            "TRITON_GRPC_URL": f"127.0.0.1:{grpc.getsockname()[1]}",
            "TRITON_METRICS_URL": f"http://127.0.0.1:{grpc.getsockname()[1]}/metrics",
        }
        findings = examined(1, **settings)
    assert "No CONNACK came" in of(findings, "Broker", "problem")[0]
    assert of(findings, "Triton", "problem")
    assert "the metrics cannot be read" in of(findings, "Triton", "warning")[0]


def test_settings_that_cannot_be_used_are_one_line() -> None:
    assert "TRITON_GRPC_URL: must be host:port" in one_line("doctor", TRITON_GRPC_URL="x")
    assert "nowhere.yaml: cannot be read" in one_line("doctor", "--config", "nowhere.yaml")


def test_the_list_is_plain_in_a_pipe() -> None:
    done = run("doctor", **nowhere())
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    done.stdout.encode("ascii")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "Configuration", "Broker", "Triton", "Models", "Clock", "Machine",
        "2 things to fix (2 problems), the most important first:",
    ]  # fmt: skip
    assert [line[:12] for line in lines[-4::2]] == ["  1. Broker:", "  2. Triton:"]
    refused = next(index for index, line in enumerate(lines) if line.startswith("  problem 127.0.0.1"))
    assert lines[refused + 1].strip().startswith("Start the broker")


# --- the real servers -----------------------------------------------------------------------------------


def test_all_is_well_between_real_servers(broker: EmbeddedBroker, triton: EmbeddedTriton) -> None:
    at = {
        **leading_to(broker),
        "TRITON_GRPC_URL": triton.grpc_url,
        "TRITON_METRICS_URL": triton.metrics_url,
        "MODEL_REPOSITORY": str(REPOSITORY),
        "MQTT_INPUT_TOPICS": "a/+/b,$share/group/c/{camera}",
    }
    findings = examined(0, **at)
    said = "\n".join(of(findings, "Broker", "ok"))
    assert f"{broker.host}:{broker.port}: lets us in without a user, MQTT 5, not encrypted" in said
    assert "the gateway is 'edge-gateway-gw'" in said
    assert "a/+/b: subscription granted with QoS 1" in said
    assert "$share/group/c/+: subscription granted with QoS 1" in said
    assert f"{STATUS.replace('status', 'inference/vision')}/doctor: takes messages of ours below RESULT_TOPIC, " in said
    assert "keeps the session of a gateway that is away for 86400 s" in said
    assert "has retained messages, has shared subscriptions" in said
    said = "\n".join(of(findings, "Triton", "ok"))
    assert f"{triton.grpc_url}: triton 2." in said
    assert "--model-control-mode=explicit" in said
    assert f"{triton.metrics_url}: metrics can be read" in said
    assert all("not loaded; the gateway will do that; its files fit" in text for text in of(findings, "Models", "ok"))
    assert not of(findings, "Broker", "warning")


def test_a_running_gateway_does_not_notice(broker: EmbeddedBroker, triton: EmbeddedTriton) -> None:
    """Neither its session nor its models; and no session of ours stays."""
    with RealSite(broker, triton) as site:
        site.start()
        site.wait_ready()
        before = site.metric("edge_gateway_broker_events_total")
        topics = f"edge-ai/{site.unit}/{{facility}}/{{gateway_id}}/camera/snapshots"
        findings = examined(
            0,
            **leading_to(broker),
            TRITON_GRPC_URL=triton.grpc_url,
            MODEL_REPOSITORY=str(REPOSITORY),
            MQTT_INPUT_TOPICS=topics,
            AIO_MQTT_CLIENT_ID=f"gateway-{site.unit}",
            BUSINESS_UNIT=site.unit,
            TRITON_METRICS_URL=triton.metrics_url,
        )
        served = of(findings, "Models", "ok")
        expected = "industrial-safety/onnx: serves version 1 and fits model.yaml (input images, 256 high"
        assert any(text.startswith(expected) for text in served)
        # The samples for ONNX ask for TensorRT, and here is no GPU.
        fell_back = "asks for TensorRT and runs on the CPU, as its backend says"
        assert of(findings, "Models", "warning") == [
            f"{name}/onnx: {fell_back}" for name in ("industrial-safety", "walkway")
        ]
        as_meant = [text for text in served if ", runs on the CPU, as its backend says, " in text]
        assert len(as_meant) == 4
        assert len(served) == 6
        assert site.metric("edge_gateway_broker_events_total") == before
        assert site.is_ready()
    (said,) = (text for text in of(findings, "Broker", "ok") if "asked as '" in text)
    client_id = said.split("asked as '")[1].split("'")[0]
    assert not any(session_present(broker.port, each) for each in (client_id, f"{client_id}-x"))


def session_present(port: int, client_id: str) -> bool:
    """Whether the broker has kept a session under this client id."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=paho.MQTTv5)
    kept: list[bool] = []
    client.on_connect = lambda _client, _data, flags, *_: kept.append(flags.session_present)
    client.connect("127.0.0.1", port, clean_start=False)
    client.loop_start()
    until(lambda: bool(kept), "CONNACK")
    client.disconnect()
    client.loop_stop()
    return kept[0]


def test_a_triton_that_decides_itself_is_a_problem(tmp_path: Path) -> None:
    write_model(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    with EmbeddedTriton(tmp_path / "theirs", extra_args=["--model-control-mode=none"]) as triton:
        at = {**nowhere(), "TRITON_GRPC_URL": triton.grpc_url, "MODEL_REPOSITORY": str(tmp_path / "ours")}
        findings = examined(1, **at)
    assert ": does not load models when it is asked to" in of(findings, "Triton", "problem")
    (fix,) = {f["fix"] for f in findings if f["what"].startswith("does not load")}
    assert "--model-control-mode=explicit" in fix
    assert all("Triton does not see a model 'detector-" in text for text in of(findings, "Models", "problem"))


def test_a_model_that_does_not_fit_what_serves_is_a_problem(
    tmp_path: Path, broker: EmbeddedBroker, triton: EmbeddedTriton
) -> None:
    for name in ("industrial-safety-onnx", "industrial-safety-torch"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    folder = write_model(tmp_path, "industrial-safety", preprocessing={"resize": [64, 64]})
    (folder / "labels.txt").write_text("a\nperson_without_helmet\nc")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.yaml").write_text("nmae: x")
    at = {**leading_to(broker), "TRITON_GRPC_URL": triton.grpc_url, "MODEL_REPOSITORY": str(tmp_path)}
    problems = of(examined(1, **at), "Models", "problem")
    assert any("broken/model.yaml" in text and "did you mean 'name'?" in text for text in problems)
    assert sum("preprocessing.resize says [64, 64]" in text for text in problems) == 2


def test_a_model_that_triton_could_not_load_has_its_own_fix_and_no_frames_of_python(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    for name in ("industrial-safety", "industrial-safety-onnx", "industrial-safety-torch"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    (tmp_path / "industrial-safety-onnx" / "1" / "model.onnx").write_bytes(b"not a model")
    with EmbeddedTriton(tmp_path) as triton:
        client = grpc.InferenceServerClient(triton.grpc_url)
        with pytest.raises(InferenceServerException):
            client.load_model("industrial-safety-onnx", client_timeout=120)
        client.close()
        at = {"TRITON_GRPC_URL": triton.grpc_url, "MODEL_REPOSITORY": str(tmp_path)}
        findings = examined(1, **leading_to(broker), **at)
        listed = run("models", "list", **at).stdout
    (found,) = (each for each in findings if "could not load" in each["what"])
    (line,) = (each for each in listed.splitlines() if "industrial-safety-onnx  versions" in each)
    for text in (found["what"], line):
        assert "At:" not in text
        assert "edge_backend" not in text
        assert "Error:" not in text
    assert found["fix"] != "See Triton's log for the details"
    assert found["fix"] in line


# --- brokers that say no --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def mosquitto(folder: Path, *lines: str, anonymous: bool = True) -> Any:
    server = Mosquitto(folder, *lines, anonymous=anonymous)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_refused_subscription_is_named(tmp_path: Path, protocol: str) -> None:
    if DYNAMIC_SECURITY is None:
        pytest.skip("an ACL file cannot refuse subscriptions, and the plugin that can is not installed")
    rules = tmp_path / "rules.json"
    acls = [{"acltype": "subscribeLiteral", "topic": "allowed/+", "allow": True}]
    body = {
        "defaultACLAccess": {"subscribe": False, "publishClientSend": True},
        "roles": [{"rolename": "camera", "acls": acls}],
        "groups": [{"groupname": "all", "roles": [{"rolename": "camera"}]}],
        "anonymousGroup": "all",
    }
    rules.write_text(json.dumps(body))
    async with mosquitto(tmp_path, f"plugin {DYNAMIC_SECURITY}", f"plugin_opt_config_file {rules}") as server:
        at = {
            **nowhere(),
            "AIO_BROKER_TCP_PORT": str(server.port),
            "MQTT_INPUT_TOPICS": "allowed/+,forbidden/{camera}",
            "MQTT_PROTOCOL": protocol,
        }
        findings = await asyncio.to_thread(lambda: examined(1, **at))
    assert "allowed/+: subscription granted with QoS 1" in of(findings, "Broker", "ok")
    (text,) = of(findings, "Broker", "problem")
    assert text.startswith("forbidden/+: refuses the subscription: ")
    unsaid = any(text.startswith(": tells no limits") for text in of(findings, "Broker", "unknown"))
    assert unsaid is (protocol == "3.1.1")


async def test_a_refused_message_and_small_packets_are_told(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("topic read #\n")
    rules.chmod(0o600)
    async with mosquitto(tmp_path, f"acl_file {rules}", "max_packet_size 20000") as server:
        at = {**nowhere(), "AIO_BROKER_TCP_PORT": str(server.port)}
        findings = await asyncio.to_thread(lambda: examined(1, **at))
    warnings = of(findings, "Broker", "warning")
    (text,) = (text for text in warnings if "refuses a message" in text)
    assert "below RESULT_TOPIC, " in text
    assert "STATUS_TOPIC" in text
    assert ": Not authorized; " in text
    assert any("takes packets of 20000 bytes at most" in text for text in warnings)
    assert not of(findings, "Broker", "problem")


async def test_a_broker_without_retained_messages_is_a_warning(tmp_path: Path) -> None:
    async with mosquitto(tmp_path, "retain_available false") as server:
        at = {**nowhere(), "AIO_BROKER_TCP_PORT": str(server.port)}
        findings = await asyncio.to_thread(lambda: examined(1, **at))
    assert any(": has no retained messages: who" in text for text in of(findings, "Broker", "warning"))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_refused_login_says_what_to_check(tmp_path: Path, protocol: str) -> None:
    async with mosquitto(tmp_path, anonymous=False) as server:
        at = {**nowhere(), "AIO_BROKER_TCP_PORT": str(server.port), "MQTT_PROTOCOL": protocol}
        findings = await asyncio.to_thread(lambda: examined(1, **at))
    (text,) = of(findings, "Broker", "problem")
    assert "The broker refused the connection: Not authorized" in text
    (fix,) = {f["fix"] for f in findings if "refused the connection" in f["what"]}
    assert "AIO_MQTT_USERNAME" in fix


def make_certificate(folder: Path, days: int) -> None:
    """ca.pem and key.pem for 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made += ["-days", str(days), "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, "-keyout", "key.pem", "-out", "ca.pem"], cwd=folder, check=True, capture_output=True)


async def test_tls_is_told_and_so_is_the_end_of_its_certificate(tmp_path: Path) -> None:
    await asyncio.to_thread(make_certificate, tmp_path, days=5)
    async with mosquitto(tmp_path, f"certfile {tmp_path}/ca.pem", f"keyfile {tmp_path}/key.pem") as server:
        at = {**nowhere(), "AIO_BROKER_TCP_PORT": str(server.port), "AIO_MQTT_USE_TLS": "true"}
        trusted = await asyncio.to_thread(lambda: examined(1, **at, AIO_TLS_CA_FILE=str(tmp_path / "ca.pem")))
        untrusted = await asyncio.to_thread(lambda: examined(1, **at))
    assert "MQTT 5, TLSv1.3, " in "\n".join(of(trusted, "Broker", "ok"))
    (text,) = (text for text in of(trusted, "Broker", "warning") if "certificate" in text)
    assert text.startswith(": its certificate ends in 5 days, on 20")
    assert "it is that of 'localhost', for whom 'localhost' vouches" in text
    assert any(
        "ca.pem' holds a certificate that ends in 5 days" in text for text in of(trusted, "Configuration", "warning")
    )
    assert "not signed by an authority that this system" in of(untrusted, "Broker", "problem")[0]


def test_the_probe_is_seen_once_below_each_topic_of_ours_and_nowhere_else(broker: EmbeddedBroker) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    viewer = Client(
        broker.port, "#", on_message=lambda m: None if m.retain else seen.append((m.topic, json.loads(m.payload)))
    )
    examined(1, **{**nowhere(), **leading_to(broker)})
    kinds = ("inference/vision", "inference/sensor", "inference/comparison", "errors", "alerts", "status", "metrics")
    topics = [STATUS.replace("status", kind) for kind in (*kinds, "models/doctor")]
    until(lambda: len(seen) == len(topics), "the messages of the doctor")
    viewer.close()
    assert sorted(topic for topic, _ in seen) == sorted(f"{topic}/doctor" for topic in topics)
    assert {body["message_type"] for _, body in seen} == {"ai_doctor"}


def test_a_shared_subscription_keeps_its_messages(broker: EmbeddedBroker) -> None:
    """As a member of the group the doctor would be handed snapshots that nobody else gets."""
    seen: list[bytes] = []
    member = Client(broker.port, "$share/plant/snaps/+", on_message=lambda message: seen.append(bytes(message.payload)))
    camera, sent = Client(broker.port), 0
    at = {**nowhere(), **leading_to(broker), "MQTT_INPUT_TOPICS": "$share/plant/snaps/{camera}"}
    with start("doctor", **at) as doctor:
        while doctor.process.poll() is None:
            camera.publish("snaps/one", str(sent).encode())
            sent += 1
        doctor.wait()
    until(lambda: len(seen) == sent, f"all {sent} messages")
    for client in (member, camera):
        client.close()


# --- the clock, the disks -------------------------------------------------------------------------------


class _Metrics(BaseHTTPRequestHandler):
    """A metrics page behind a proxy, which says its time: an hour ago; or without one, as Triton serves it."""

    page = b"nv_inference_count 1\n"

    status = 200
    dated = True

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        if self.dated:
            self.send_header("Date", self.date_time_string(int(time.time()) - 3600))
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_: Any) -> None:
        return


@contextlib.contextmanager
def metrics_page(page: bytes, status: int = 200, *, dated: bool = True) -> Iterator[str]:
    handler = type("Page", (_Metrics,), {"page": page, "status": status, "dated": dated})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join(5)


def test_a_clock_that_is_off_is_told_where_the_time_can_be_had() -> None:
    with metrics_page(b"nv_inference_count 1\n") as url:
        findings = examined(1, **nowhere(), TRITON_METRICS_URL=url)
    (text,) = of(findings, "Clock", "warning")
    assert "s ahead of that of what serves Triton's metrics" in text
    with metrics_page(b"up 1\n") as url:
        findings = examined(1, **nowhere(), TRITON_METRICS_URL=url)
    assert "that page is not Triton's metrics" in of(findings, "Triton", "warning")[0]
    with metrics_page(b"nv_inference_count 1\n", dated=False) as url:
        findings = examined(1, **nowhere(), TRITON_METRICS_URL=url)
    (text,) = of(findings, "Clock", "unknown")
    assert "was not compared with those of the broker and of Triton" in text


@pytest.mark.parametrize(("page", "status"), [(b"nv_inference_count 1\n", 200), (b"up 1\n", 200), (b"", 401)])
def test_the_password_of_the_metrics_is_not_shown(page: bytes, status: int) -> None:
    with metrics_page(page, status) as url:
        secret = url.replace("//", "//admin:hunter2@")
        done = run("doctor", "--json", **nowhere(), TRITON_METRICS_URL=secret)
    assert "hunter2" not in done.stdout + done.stderr
    assert url.replace("//", "//***@") in done.stdout


@pytest.mark.parametrize("url", ["http://admin:hunter2@a\x01b/metrics", "http://admin:hunter2@\u2603..x/metrics"])
def test_an_address_that_cannot_be_asked_shows_no_password_either(url: str) -> None:
    findings = examined(1, **nowhere(), TRITON_METRICS_URL=url)
    (text,) = (text for text in of(findings, "Triton", "warning") if "metrics" in text)
    assert "***@" in text
    assert "hunter2" not in text


def test_a_file_from_the_future_is_told(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    ahead = time.time() + 7200
    os.utime(folder / "labels.txt", (ahead, ahead))
    findings = examined(1, **{**nowhere(), "MODEL_REPOSITORY": str(tmp_path)})
    (text,) = of(findings, "Clock", "warning")
    assert "labels.txt: was changed" in text


def test_a_missing_repository_is_a_problem_among_the_others() -> None:
    findings = examined(1, **{**nowhere(), "MODEL_REPOSITORY": "nowhere"})
    assert of(findings, "Models", "problem") == ["MODEL_REPOSITORY=nowhere: no such folder"]
    assert of(findings, "Machine", "unknown")


# --- checks side by side --------------------------------------------------------------------------------


async def test_a_check_that_takes_its_time_is_named_meanwhile() -> None:
    slow, quick, told = Area("Slow"), Area("Quick"), asyncio.Event()
    said: list[list[str]] = []

    async def well() -> list[Any]:
        return [quick.ok("well")]

    async def waits() -> list[Any]:
        await told.wait()
        return [slow.ok("well")]

    def hear(areas: list[str]) -> None:
        said.append(areas)
        told.set()

    found = await examine([Check(slow, waits(), 5), Check(quick, well(), 5)], hear, slow_s=0.01)
    assert said == [["Slow"]]
    assert [each.area for each in found] == ["Slow", "Quick"]


async def test_checks_that_hang_or_break_end_no_others() -> None:
    area = Area("Area")
    never = threading.Event()

    async def broken() -> list[Any]:
        raise RuntimeError("a defect")

    async def well() -> list[Any]:
        return [area.ok("well")]

    hanging = apart(lambda: [area.ok(str(never.wait()))])
    found = await examine([Check(area, hanging, 0.05), Check(area, broken(), 5), Check(area, well(), 5)])
    never.set()
    assert [each.level for each in found] == [Level.PROBLEM, Level.UNKNOWN, Level.OK]
    assert "no answer within 0.05 s" in found[0].what
    assert "a defect" in found[1].what
    assert as_json(found)["counts"] == {"ok": 1, "warning": 0, "problem": 1, "unknown": 1}


def test_on_a_terminal_there_are_marks_and_colours() -> None:
    area = Area("Broker")
    found = [area.ok("well"), area.warning("hm", fix="Mend it"), area.problem("\x1b[2Jno", fix="Mend it", where="x")]
    text = as_text(found, colour=True)
    assert "\x1b[32m✓\x1b[0m well" in text
    assert "\x1b[31m✗\x1b[0m x:  [2Jno" in text, "what a server says does not steer the terminal"
    summary = text.split("\n\n")[-1]
    assert summary.splitlines() == [
        "2 things to fix (1 problem and 1 warning), the most important first:",
        "  1. Broker: x:  [2Jno",
        "     Mend it",
        "  2. Broker: hm",
        "     Mend it",
    ]
    assert as_text(found[:1], colour=False).endswith("Nothing to complain about.")


@pytest.mark.parametrize(
    ("colour", "marks"), [({}, "\x1b[31m✗\x1b[0m 127.0.0.1:"), ({"NO_COLOR": "1"}, "problem 127.")]
)
def test_marks_and_colours_are_for_terminals_that_want_them(colour: dict[str, str], marks: str) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        command = [sys.executable, "-m", "gateway", "doctor"]
        settings = environment(**nowhere(), **colour, PYTHONIOENCODING="utf-8")
        with subprocess.Popen(command, env=settings, cwd=ROOT, stdout=theirs, stderr=theirs) as doctor:
            os.close(theirs)
            said = bytearray()
            with contextlib.suppress(OSError):  # how the end of a terminal reads on Linux
                while data := terminal.read(65_536):
                    said += data
            assert doctor.wait(30) == 1
    text = said.decode()
    assert marks in text
    assert ("\x1b[3" in text) is (not colour)
