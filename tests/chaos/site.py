"""Mosquitto, Triton, two links, a small disk and the gateway as a process under a supervisor."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import LOOPBACK, describe_exit
from gateway.local.tritonserver import EmbeddedTriton
from tests.chaos.disk import SmallDisk
from tests.chaos.proxy import Link
from tests.e2e.site import RealSite, until
from tests.rollouts.drops import AT_ONCE, Model

TERM_GRACE_S = 30.0
"""More than DRAIN_TIMEOUT_S, after which the gateway has to have gone by itself."""
SAVE_TAKES_S = 1.0
"""At most, from the state that Mosquitto writes down to the time of its file."""
MODEL = "detector"
_LOADING = re.compile(r'^I(\d{4} \d\d:\d\d:\d\d\.\d+) .*"loading: ([^"]+):\d+"')
_LOADED = re.compile(r"^[IE](\d{4} \d\d:\d\d:\d\d\.\d+) .*\"(?:successfully loaded|failed to load) '([^']+)'")


def end_in_order() -> None:
    """Have SIGTERM end this program as Ctrl-C does, so that it leaves no child and no file system behind; Ctrl-C too
    where a shell has it ignored.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)


class Supervisor:
    """Starts the gateway, and starts it again when it has ended, as systemd would; an end that nobody asked for is kept
    in `unexpected`.
    """

    def __init__(self, gateway: RealSite, log_file: Path) -> None:
        self._gateway = gateway
        self._log_file = log_file
        self._lock = threading.Lock()
        self._wanted = False
        self.starts = 0
        self.unexpected: list[str] = []
        gateway.launcher = ("/bin/sh", "-c", f'exec "$0" "$@" >>"{log_file}" 2>&1')

    def start(self) -> None:
        """Start it; does not wait."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        self._wanted = True
        self.starts += 1
        self._gateway.start()

    def kill(self) -> None:
        """SIGKILL."""
        with self._lock:
            self._wanted = False
            self._gateway.process.kill()

    def terminate(self) -> None:
        """SIGTERM, upon which it has to end in time and with 0."""
        with self._lock:
            self._wanted = False
            code = self._gateway.process.stop(TERM_GRACE_S)
            if code != 0:
                self.unexpected.append(f"after SIGTERM: {describe_exit(code)}{self._excerpt()}")

    def look(self) -> None:
        """Start it again if it has ended by itself."""
        with self._lock:
            if self._wanted and not self._gateway.process.running:
                code = self._gateway.process.kill()
                self.unexpected.append(f"by itself: {describe_exit(code)}{self._excerpt()}")
                self._start()

    @property
    def pid(self) -> int | None:
        """Of the gateway while it runs."""
        return self._gateway.process.pid if self._wanted and self._gateway.process.running else None

    def _excerpt(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()
        kept = [line for line in lines if "No result for a snapshot" not in line][-15:]
        return "; its last lines:\n" + "\n".join(line[:600] for line in kept)


class TritonKeeper:
    """Starts Triton again when it has crashed by itself, as an orchestrator would; each crash is kept in `crashes`.

    A crash of Triton is none of the gateway's, which has to come back with it.
    """

    def __init__(self, triton: EmbeddedTriton) -> None:
        self._triton = triton
        self._lock = threading.Lock()
        self._wanted = True
        self.crashes: list[str] = []
        self.came_back_at = 0.0
        """After its last crash."""

    def end(self, how: Callable[[], None]) -> None:
        """Kill or stop it."""
        with self._lock:
            self._wanted = False
            how()

    def start(self) -> None:
        """Start it; returns when it is live."""
        with self._lock:
            self._triton.start()
            self._wanted = True

    def look(self) -> None:
        """Start it again if it has ended by itself; returns when it is live."""
        with self._lock:
            if self._wanted and not self._triton.running:
                self.crashes.append(self._triton.log_excerpt().strip())
                self._triton.kill()
                self._triton.start()
                self.came_back_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Sample:
    """What the gateway's process takes at one moment."""

    at: float
    rss_mb: float
    fds: int
    threads: int


class ChaosSite:
    """All parts, with the gateway between two links; a context manager that ends them all.

    `variants` of the one model: the first answers, the others stand in for it. `content` is what they are made of, if
    not the usual. Without `linked` nothing is between the gateway and the others.
    """

    def __init__(
        self,
        folder: Path,
        variants: tuple[str, ...] = ("onnx", "torch"),
        *,
        content: bytes | None = None,
        linked: bool = True,
        **environment: str,
    ) -> None:
        self._folder = folder
        self.model = Model(folder / "repository", MODEL, variants)
        self._content = content
        self._linked = linked
        self._environment = environment
        self._stack = ExitStack()
        self.broker_saved_at = 0.0

    @property
    def main_model(self) -> str:
        """The Triton model of the variant that answers."""
        return self.model.triton_model(self.model.variants[0])

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        self.model.repository.mkdir(parents=True)
        self.model.write_logical(rollout=AT_ONCE, golden=False, backend=self.model.variants[0])
        for variant in self.model.variants:
            self.model.write(variant, 1, self._content or self.model.content(variant, 1))
        self.broker = stack.enter_context(EmbeddedBroker(kind="mosquitto"))
        self.triton = stack.enter_context(EmbeddedTriton(self.model.repository))
        self.triton_keeper = TritonKeeper(self.triton)
        self.disk = stack.enter_context(SmallDisk(self._folder / "disk"))
        environment = {
            **(self._link(stack) if self._linked else {}),
            "MODEL_REPOSITORY": str(self.model.repository),
            "MODEL_STATE_DIR": str(self.disk.folder / "state"),
            "SPOOL_DIR": str(self.disk.folder / "spool"),
            "SPOOL_MAX_BYTES": str(8 * 2**20),
            **self._environment,
        }
        self.gateway = RealSite(self.broker, self.triton, **environment)
        self.supervisor = Supervisor(self.gateway, self._folder / "gateway.log")
        self.supervisor.start()
        stack.callback(self.supervisor.kill)
        self.gateway.wait_ready()

    def _link(self, stack: ExitStack) -> dict[str, str]:
        """The gateway's settings with which it comes through the links."""
        targets = {"broker-link": self.broker.port, "triton-link": int(self.triton.grpc_url.rpartition(":")[2])}
        self.links = {name: stack.enter_context(Link(port)) for name, port in targets.items()}
        return {
            "AIO_BROKER_TCP_PORT": str(self.links["broker-link"].port),
            "TRITON_GRPC_URL": f"{LOOPBACK}:{self.links['triton-link'].port}",
        }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def answers(self) -> tuple[str, ...]:
        """The topics on which the gateway answers."""
        return tuple(f"edge-ai/{self.gateway.unit}/+/+/ai/{what}" for what in ("inference/vision", "errors"))

    # --- the broker ---------------------------------------------------------------------------------

    def stop_broker(self) -> None:
        """SIGTERM, at which it writes its sessions down."""
        os.kill(self.broker.pid, signal.SIGTERM)
        until(lambda: not self.broker.running, "the end of Mosquitto")
        self.broker.kill()

    def kill_broker(self) -> None:
        """SIGKILL; what it took in since `broker_saved_at` it may have forgotten then."""
        self.broker.kill()
        file = self.broker.data_folder / "mosquitto.db"
        age = time.time() - file.stat().st_mtime if file.exists() else float("inf")
        self.broker_saved_at = time.monotonic() - age - SAVE_TAKES_S

    # --- what can be seen of the gateway and of Triton ----------------------------------------------

    def sample(self) -> Sample | None:
        """None while the gateway does not run."""
        pid = self.supervisor.pid
        try:
            process = psutil.Process(pid) if pid else None
            if process is None:
                return None
            rss_mb = process.memory_info().rss / 1e6
            return Sample(time.monotonic(), round(rss_mb, 2), process.num_fds(), process.num_threads())
        except psutil.Error:
            return None

    def tally(self) -> tuple[int, int] | None:
        """Snapshots received, and the sum of their outcomes; None while the gateway does not tell."""
        url = f"http://{LOOPBACK}:{self.gateway.http_port}/metrics"
        try:
            text = httpx.get(url, timeout=2, trust_env=False).text
        except httpx.HTTPError:
            return None
        values = {"edge_gateway_snapshots_received_total": 0.0, "edge_gateway_snapshots_total": 0.0}
        for line in text.splitlines():
            name = re.split(r"[ {]", line, maxsplit=1)[0]
            if name in values:
                values[name] += float(line.rpartition(" ")[2])
        received, settled = values.values()
        return int(received), int(settled)

    def loading_s(self, since: float, to: float) -> float:
        """For how long, between two moments, Triton was loading models, by its own log."""
        offset = time.time() - time.monotonic()
        begun: dict[str, float] = {}
        spans = []
        for line in self.triton.log_tail(500):
            if found := _LOADING.match(line):
                begun[found[2]] = _moment(found[1]) - offset
            elif (found := _LOADED.match(line)) and found[2] in begun:
                spans.append((max(since, begun.pop(found[2])), min(to, _moment(found[1]) - offset)))
        covered, last = 0.0, since
        for start, end in sorted((start, end) for start, end in spans if end > start):
            covered += max(0.0, end - max(start, last))
            last = max(last, end)
        return covered


def _moment(text: str) -> float:
    """Of a line of Triton's log, `1122 06:54:03.392940`, which has no year."""
    return datetime.strptime(f"{datetime.now().year}{text}", "%Y%m%d %H:%M:%S.%f").timestamp()  # noqa: DTZ005, DTZ007
