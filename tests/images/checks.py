"""What must hold of the images and of the running site; each check returns a line for the report."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from compose.images.images import ROOT, Engine, ImageError, compressed_size
from tests.images.site import TIMEOUT_S, Site, container, wait

LARGEST_GATEWAY = 100e6
PICTURE = ROOT / "model_repository" / "industrial-safety" / "golden" / "scene-210009.jpg"
RESULTS = "edge-ai/+/+/+/ai/inference/#"
UID = "10001"


def require(holds: bool, otherwise: str) -> None:
    """Raise ImageError with what is wrong."""
    if not holds:
        raise ImageError(otherwise)


def size(podman: Engine, image: str, largest: float | None = None) -> str:
    """Compressed, as a registry keeps it."""
    found = compressed_size(podman, image)
    require(largest is None or found <= largest, f"{image} has {found / 1e6:.1f} MB compressed")
    return f"{image}: {found / 1e6:.1f} MB compressed"


def no_shell(podman: Engine, image: str) -> str:
    """Nothing in the gateway's image can be executed but its Python and itself."""
    program = (
        "import os, sysconfig; print(*(os.path.join(folder, name) for top in ('/usr', '/bin', '/sbin', '/opt')"
        " for folder, _, names in os.walk(top) for name in names"
        " if os.access(os.path.join(folder, name), os.X_OK) and '.so' not in name), sep='\\n')"
    )
    listed = podman.run("run", "--rm", "--entrypoint=python3", image, "-c", program, capture=True).split()
    names = {Path(path).name for path in listed if not path.endswith(".py")}
    shells = names & {"sh", "bash", "dash", "busybox", "pip", "pip3", "apt", "apt-get", "dpkg", "curl", "wget", "perl"}
    require(not shells, f"{image} holds {', '.join(shells)}")
    require({"edge-gateway", "python3"} <= names, f"{image} lacks its own programs: {names}")
    return f"{image}: no shell, no package manager ({len(names)} programs)"


def confined(site: Site, name: str) -> str:
    """As the container runs: another user than root, nothing writable, no rights, none to be had."""
    status = _status(site, name)
    require(status["Uid"].split() == [UID] * 4, f"{name} runs as {status['Uid']}")
    require(int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, f"{name} has capabilities {status['CapBnd']}")
    require(status["NoNewPrivs"] == "1", f"{name} may get new privileges")
    writes = "open('/usr/lib/written', 'w')"
    require(not site.succeeds(name, "python3", "-c", writes), f"{name} can write its root")
    host = site.inspect(name)["HostConfig"]
    require(host["ReadonlyRootfs"], f"{name}: the root of the container is not read-only")
    return f"{name}: user {UID}, read-only, no capabilities, no new privileges"


def _status(site: Site, name: str) -> dict[str, str]:
    """/proc/1/status inside a container."""
    program = "print(open('/proc/1/status').read())"
    text = site.podman.run("exec", container(name), "python3", "-c", program, capture=True)
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def answered(site: Site) -> str:
    """One snapshot in by a camera's account, its result out by a viewer's."""
    secrets = site.secrets()
    subscribed, results = threading.Event(), queue.SimpleQueue[bytes]()
    viewer = Client(CallbackAPIVersion.VERSION2)
    viewer.username_pw_set("viewer", secrets["mqtt-viewer"])
    viewer.on_subscribe = lambda *_: subscribed.set()
    viewer.on_message = lambda _client, _userdata, message: results.put(bytes(message.payload))
    viewer.connect("127.0.0.1", int(site.environment["MQTT_PORT"]))
    viewer.loop_start()
    wait(viewer.is_connected, "the viewer has no session with the broker")
    viewer.subscribe(RESULTS, qos=1)
    try:
        require(subscribed.wait(TIMEOUT_S), f"the viewer could not subscribe:\n{site.log('mosquitto')}")
        _send(site, secrets["mqtt-camera"])
        result: dict[str, Any] = json.loads(results.get(timeout=TIMEOUT_S))
    except queue.Empty:
        raise ImageError("no result came back") from None
    finally:
        viewer.disconnect()
        viewer.loop_stop()
    require(bool(result["predictions"]), f"nothing was found in {PICTURE.name}: {result}")
    found = ", ".join(sorted({each["class"] for each in result["predictions"]}))
    return f"snapshot in, result out: {found} by {result['backend_used']} of {result['model_name']}"


def _send(site: Site, password: str) -> None:
    """As a camera, from outside of the containers."""
    line = [sys.executable, "-m", "gateway", "send", str(PICTURE), "--model", "industrial-safety"]
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(password)
        file.flush()
        environment = {
            **os.environ,
            "AIO_BROKER_HOSTNAME": "127.0.0.1",
            "AIO_BROKER_TCP_PORT": site.environment["MQTT_PORT"],
            "AIO_MQTT_USERNAME": "camera",
            "AIO_MQTT_PASSWORD_FILE": file.name,
            **{name: site.environment[name] for name in ("BUSINESS_UNIT", "FACILITY", "GATEWAY_ID")},
        }
        done = subprocess.run(line, env=environment, cwd=ROOT, check=False, capture_output=True, text=True)
    require(done.returncode == 0, f"nothing could be sent: {done.stderr}")


def by_shared_memory(site: Site) -> str:
    """What the gateway sent to Triton went through the memory that both have."""
    _, text = site.get("GATEWAY_PORT", "/metrics")
    counts = [line for line in text.decode().splitlines() if line.startswith("edge_gateway_tensor_transfers_total{")]
    require(any('"shared_memory"' in line for line in counts), f"no tensor went by shared memory: {counts}")
    return f"tensors by shared memory: {'; '.join(counts)}"


def scraped(site: Site) -> str:
    """Prometheus sees both targets, and our rules are loaded."""
    targets: dict[str, str] = {}

    def both_up() -> bool:
        status, body = site.get("PROMETHEUS_PORT", "/api/v1/targets")
        if status == 200:
            active = json.loads(body)["data"]["activeTargets"]
            targets.update({each["labels"]["job"]: each["health"] for each in active})
        return targets.get("edge-gateway") == targets.get("triton") == "up"

    wait(both_up, f"Prometheus says {targets}")
    rules = json.loads(site.get("PROMETHEUS_PORT", "/api/v1/rules")[1])["data"]["groups"]
    require(bool(rules), "Prometheus has no rules")
    return f"Prometheus: {targets}, {sum(len(group['rules']) for group in rules)} rules"


def only_where_it_may(site: Site) -> str:
    """Triton reaches nobody outside of its network, and nobody but the gateway and Prometheus is in that."""
    name = next(name for name in site.started if name.startswith("triton"))
    program = "import socket; socket.create_connection(('mosquitto', 1883), 3)"
    require(not site.succeeds(name, "python3", "-c", program), "Triton reaches the broker")
    return "Triton reaches no broker"


def ends_in_order(site: Site, seconds: Callable[[], float]) -> str:
    """SIGTERM ends the gateway as PID 1, with exit code 0, long before anybody would kill it."""
    began = seconds()
    site.podman.run("stop", "--time", "30", container("gateway"), capture=True)
    code = site.inspect("gateway")["State"]["ExitCode"]
    require(code == 0, f"the gateway ended with {code}:\n{site.log('gateway')}")
    return f"the gateway ended in order after {seconds() - began:.1f} s"
