"""The embedded broker: Mosquitto where it is or can be had, else amqtt, a broker in pure Python."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from gateway.errors import StackError
from gateway.local.debian import find_program, install_package
from gateway.local.embedded import EmbeddedServer
from gateway.local.processes import LOOPBACK, ChildProcess, free_ports, port_is_free, require_free_port

Kind = Literal["mosquitto", "amqtt"]
Protocol = Literal["5", "3.1.1"]

START_TIMEOUT_S = 20.0
STOP_GRACE_S = 3.0
ATTEMPTS = 3
# How much may wait for a consumer that is away. Mosquitto's own limit of 1000 messages is 17 minutes of
# one camera, and it drops what comes after that without a word.
MAX_QUEUED_BYTES = 512 * 1024 * 1024
# An MQTT 3.1.1 CONNECT without a client id and with a clean session, and the CONNACK that accepts it.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00"
_CONNACK = b"\x20\x02\x00\x00"

# Anonymous, for it listens on the loopback address only.
_MOSQUITTO_CONFIG = """\
listener {port} {host}
allow_anonymous true
# Stay root when started by root: a change of user would cancel the signal at the parent's death.
user root
set_tcp_nodelay true
# Sessions and their queues survive a restart of the broker. Saved about every two seconds (and at its
# end): kill -9 loses at most what came since. Saving at each change instead (save_each_change) narrows
# that to one message, but writes all queued pictures anew for every one that comes.
persistence true
persistence_location {folder}/
autosave_on_changes {on_changes}
autosave_interval 1
max_queued_messages 0
max_queued_bytes {queued_bytes}
# More than the 20 of the default: the gateway acknowledges a snapshot only after its result is out.
max_inflight_messages 200
# No limit of our own on size (MQTT's is 256 MB): the gateway must see an oversize snapshot to answer it.
message_size_limit 0
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
"""


class EmbeddedBroker(EmbeddedServer):
    """A broker on a loopback port; a context manager. Blocking, like EmbeddedTriton.

    `kind` forces one of the two. `save_each_change` makes Mosquitto's sessions survive kill -9 nearly
    without loss, at the price of speed. The port and the sessions stay over kill() and start().
    """

    title = "the embedded broker"

    def __init__(self, *, port: int | None = None, kind: Kind | None = None, save_each_change: bool = False) -> None:
        super().__init__()
        self.host = LOOPBACK
        self.name = ""
        self._given_port = port
        self._port = 0
        self._kind = kind
        self._save_each_change = save_each_change
        self._folder: Path | None = None
        self._program: Path | None = None

    @property
    def port(self) -> int:
        """Where it listens; known after start()."""
        return self._port

    @property
    def data_folder(self) -> Path:
        """Its configuration and, with Mosquitto, its saved sessions; removed by stop()."""
        if self._folder is None:
            raise RuntimeError("the embedded broker has not been started")
        return self._folder

    @property
    def protocol(self) -> Protocol:
        """The highest version of MQTT that it speaks, as MQTT_PROTOCOL takes it."""
        return "5" if self._kind == "mosquitto" else "3.1.1"

    def start(self) -> None:
        """Start the broker and wait until it accepts a client; StackError says why it does not."""
        self._require_stopped()
        self._choose_kind()
        self._choose_port()
        fresh = self._folder is None
        if fresh:
            self._folder = Path(tempfile.mkdtemp(prefix="edge-gateway-broker-"))
        try:
            self._start()
        except BaseException:
            if fresh:
                self._forget()
            raise

    def _start(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_once(self.data_folder)
            except StackError:
                # A free port can be taken by somebody else before the broker listens on it: then once more.
                if attempt == ATTEMPTS or self._given_port or port_is_free(self._port):
                    raise
                self._port = free_ports(1)[0]
            else:
                return

    def _choose_kind(self) -> None:
        if self.name:
            return
        if self._kind != "amqtt":
            self._program = find_program("mosquitto")
            if self._program is None and install_package("mosquitto", "There is no Mosquitto here"):
                self._program = find_program("mosquitto")
        if self._program is not None:
            self._kind = "mosquitto"
            self.name = f"mosquitto {_mosquitto_version(self._program)}"
            return
        if self._kind == "mosquitto":
            raise StackError("there is no Mosquitto here", fix="Install it (Debian, Ubuntu: apt-get install mosquitto)")
        if importlib.util.find_spec("amqtt") is None:
            raise StackError(
                "there is neither Mosquitto nor amqtt here",
                fix="Install Mosquitto (Debian, Ubuntu: apt-get install mosquitto), "
                "or: pip install 'triton-edge-gateway[local]'",
            )
        import amqtt

        if self._kind is None:
            text = "No Mosquitto to be had: using amqtt, which speaks MQTT 3.1.1 and forgets its sessions when it ends"
            print(text, file=sys.stderr, flush=True)
        self._kind = "amqtt"
        self.name = f"amqtt {amqtt.__version__}"

    def _choose_port(self) -> None:
        if not self._port:
            self._port = self._given_port or free_ports(1)[0]
        if self._given_port:
            require_free_port(self._given_port, "the MQTT broker", "--mqtt-port")

    def _start_once(self, folder: Path) -> None:
        command = self._mosquitto_command(folder) if self._program else self._amqtt_command(folder)
        process = ChildProcess("the embedded broker", command)
        self._process = process
        process.start()
        try:
            process.wait_ready(
                self.accepts_clients, START_TIMEOUT_S, fix="Try again, or give it a port of its own with --mqtt-port"
            )
        except BaseException:  # also Ctrl-C: nothing that was started may stay
            self.kill()
            raise

    def _mosquitto_command(self, folder: Path) -> list[str]:
        config = folder / "mosquitto.conf"
        config.write_text(
            _MOSQUITTO_CONFIG.format(
                port=self._port,
                host=LOOPBACK,
                folder=folder,
                queued_bytes=MAX_QUEUED_BYTES,
                on_changes="true" if self._save_each_change else "false",
            )
        )
        return [str(self._program), "-c", str(config)]

    def _amqtt_command(self, folder: Path) -> list[str]:
        config = folder / "amqtt.json"  # JSON is YAML
        config.write_text(
            json.dumps(
                {
                    "listeners": {"default": {"type": "tcp", "bind": f"{LOOPBACK}:{self._port}"}},
                    "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
                }
            )
        )
        return [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(config)]

    def accepts_clients(self) -> bool:
        """Whether an MQTT broker answers on the port and lets a client in."""
        try:
            with socket.create_connection((LOOPBACK, self._port), timeout=1) as connection:
                connection.sendall(_CONNECT)
                accepted = connection.recv(4) == _CONNACK
                connection.sendall(b"\xe0\x00")  # DISCONNECT
                return accepted
        except OSError:
            return False

    def stop(self) -> None:
        """End it in order and forget its sessions. Harmless when not running."""
        if self._process is not None:
            self._process.stop(STOP_GRACE_S)
        self._forget()

    def _forget(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """End it like a crash (SIGKILL); start() brings it back on the same port with the saved sessions."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """End it in order and start it again on the same port; Mosquitto keeps its sessions."""
        if self._process is not None:
            self._process.stop(STOP_GRACE_S)
        self.start()


def _mosquitto_version(program: Path) -> str:
    shown = subprocess.run([str(program), "-h"], capture_output=True, text=True, check=False).stdout
    words = shown.split()
    return words[words.index("version") + 1] if "version" in words else "(unknown version)"
