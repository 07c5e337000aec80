"""The embedded Triton: NVIDIA's tritonserver from the nvidia-pytriton wheel, with our two backends."""

from __future__ import annotations

import http.client
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.errors import StackError
from gateway.local.backend_directory import PYTHON_VERSION, build_backend_directory, cache_folder, find_wheel
from gateway.local.debian import find_shared_library, install_package
from gateway.local.embedded import EmbeddedServer
from gateway.local.processes import LOOPBACK, ChildProcess, free_ports, port_is_free, require_free_port
from gateway.local.segments import SegmentOwner

START_TIMEOUT_S = 180.0
EXIT_TIMEOUT_S = 2  # Triton needs over 1 s for each stub process to end in order, and nothing is lost by force
STOP_GRACE_S = 3.0
STUB_TIMEOUT_S = 120  # importing torch takes long on a small, busy machine
ATTEMPTS = 3
TRACES_EVERY_MS = 1000


class EmbeddedTriton(EmbeddedServer):
    """A tritonserver on loopback ports in explicit model control mode; a context manager.

    Ports not given are chosen free at the first start and kept, so kill() and start() come back under the
    same addresses. Blocking: use asyncio.to_thread(triton.start) in an event loop.
    """

    title = "the embedded Triton"

    def __init__(
        self,
        repository: Path,
        *,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        traces_to: str | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.repository = repository.resolve()
        self.traces_to = traces_to
        """The URL of an OpenTelemetry receiver, for spans of those requests that bring a trace context."""
        self._given = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self._ports: dict[str, int] = {}
        self._extra_args = list(extra_args)
        self._env = dict(env or {})
        self._segments: SegmentOwner | None = None

    @property
    def grpc_url(self) -> str:
        """host:port, as tritonclient.grpc takes it."""
        return f"{LOOPBACK}:{self._ports['grpc']}"

    @property
    def http_url(self) -> str:
        """http://host:port of the KServe HTTP API."""
        return f"http://{LOOPBACK}:{self._ports['http']}"

    @property
    def metrics_url(self) -> str:
        """The address of the Prometheus metrics."""
        return f"http://{LOOPBACK}:{self._ports['metrics']}/metrics"

    def start(self) -> None:
        """Start Triton and wait until it is live; StackError says why it is not."""
        self._require_stopped()
        if not self.repository.is_dir():
            raise StackError(
                f"there is no model repository at {self.repository}",
                fix="Name an existing folder with --repository; `make sample-models` fills ./model_repository",
            )
        wheel = find_wheel()
        backends = build_backend_directory(wheel)
        environment = self._environment()
        for attempt in range(1, ATTEMPTS + 1):
            self._choose_ports()
            try:
                self._start_once(wheel, backends, environment)
            except StackError:
                # A free port can be taken by somebody else before Triton listens on it: then once more.
                if attempt == ATTEMPTS or all(self._given.values()) or not self._port_was_lost():
                    raise
                self._ports = {}
            else:
                return

    def _start_once(self, wheel: Path, backends: Path, environment: dict[str, str]) -> None:
        self._segments = SegmentOwner(cache_folder() / "running")
        process = ChildProcess(
            "the embedded Triton",
            [str(wheel / "bin" / "tritonserver"), *self._arguments(backends, self._segments.prefix)],
            env=environment,
        )
        self._process = process
        process.start()
        try:
            process.wait_ready(
                self.is_live, START_TIMEOUT_S, fix="If the lines do not say why, run it again with more free memory"
            )
        except BaseException:  # also Ctrl-C: nothing that was started may stay
            self.kill()
            raise

    def _choose_ports(self) -> None:
        if not self._ports:
            chosen = iter(free_ports(len(self._given)))
            self._ports = {name: given or next(chosen) for name, given in self._given.items()}
        for name, given in self._given.items():
            if given:
                require_free_port(given, f"Triton's {name}", f"--{name}-port")

    def _port_was_lost(self) -> bool:
        return not all(port_is_free(port) for port in self._ports.values())

    def _arguments(self, backends: Path, segment_prefix: str) -> list[str]:
        return [
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            # Explicit: the gateway decides what is served. Strict readiness would call the whole server not
            # ready while one model loads or has failed.
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self._ports['grpc']}",
            f"--http-address={LOOPBACK}",
            f"--http-port={self._ports['http']}",
            "--http-thread-count=2",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self._ports['metrics']}",
            "--allow-metrics=true",
            "--metrics-interval-ms=2000",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={segment_prefix}",
            *(_trace_arguments(self.traces_to) if self.traces_to else ()),
            *self._extra_args,
        ]

    def _environment(self) -> dict[str, str]:
        """The stub takes the first python3 on PATH, and the libpython of that Python."""
        folder = Path(sys.executable).parent
        if not (folder / "python3").exists():
            raise StackError(
                f"there is no python3 beside {sys.executable}, which Triton's backends need",
                fix="Run the gateway from a virtual environment (python3 -m venv .venv)",
            )
        environment = {**os.environ, **self._env}
        environment["PATH"] = os.pathsep.join([str(folder), environment.get("PATH", os.defpath)])
        libraries = python_library_folder()
        if libraries is not None:
            known = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(libraries), *([known] if known else [])])
        return environment

    def is_live(self) -> bool:
        """Whether Triton answers its liveness endpoint."""
        connection = http.client.HTTPConnection(LOOPBACK, self._ports["http"], timeout=1)
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """Unload the models and end; killed if that takes more than a few seconds. Harmless when not running."""
        if self._process is not None:
            self._process.stop(STOP_GRACE_S)
            self._remove_shared_memory()

    def kill(self) -> None:
        """End it like a crash (SIGKILL), with its stub processes; start() brings it back on the same ports."""
        if self._process is not None:
            self._process.kill()
            self._remove_shared_memory()

    def _remove_shared_memory(self) -> None:
        if self._segments is not None:
            self._segments.release()
            self._segments = None


def _trace_arguments(endpoint: str) -> list[str]:
    """With a rate of 0 Triton traces what brings a trace context and nothing else: the gateway decides."""
    settings = (
        "mode=opentelemetry",
        f"opentelemetry,url={endpoint.rstrip('/')}/v1/traces",
        f"opentelemetry,bsp_schedule_delay={TRACES_EVERY_MS}",
        "level=TIMESTAMPS",
        "rate=0",
        "count=-1",
    )
    return [f"--trace-config={setting}" for setting in settings]


def python_library_folder() -> Path | None:
    """The folder of this Python's shared library, which the stub is linked to; None when the system finds it.

    Debian's python3 is linked statically and comes without it: then it is installed, if that is possible.
    """
    name = f"libpython{PYTHON_VERSION}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")):
        if folder and (Path(folder) / name).exists():
            return Path(folder)
    if find_shared_library(name) or install_package(f"libpython{PYTHON_VERSION}", f"Triton's backends need {name}"):
        return None
    raise StackError(
        f"{name} is missing, which Triton's backends need",
        fix=f"Install it (Debian, Ubuntu: apt-get install libpython{PYTHON_VERSION}) or use a Python that has it",
    )
