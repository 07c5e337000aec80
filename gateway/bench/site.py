"""The parts that are measured, as processes: one broker, one Triton, gateways and scripts between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import yaml

from gateway.adapters.triton import TritonServer
from gateway.bench.plan import SAMPLE_SIZE, Case
from gateway.bench.stub_model import MEAN, STD, VARIANTS, write_stub
from gateway.config import Settings
from gateway.errors import StackError
from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import LOOPBACK, ChildProcess, free_ports
from gateway.local.stack import environment
from gateway.local.tritonserver import EmbeddedTriton

SAMPLE = "industrial-safety"
SCRIPT = "straightforward.py"
READY_TIMEOUT_S = 180.0
GRACE_S = 10.0
ANSWER_TOPICS = ("edge-ai/+/plant/gw/ai/inference/vision", "edge-ai/+/plant/gw/ai/errors")
_CHECKOUT_SCRIPTS = Path(__file__).resolve().parents[2] / "tests" / "bench"
# Becomes the program that follows, on the cores that are named first: threads and pools see them from the start.
_PINNED = (
    "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model in the repository; `variants` are names in Triton."""

    name: str
    variants: Mapping[str, str]
    height: int
    width: int
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)


class Contender:
    """One gateway or one script: a process and the topic that it listens on."""

    def __init__(self, process: ChildProcess, topic: str) -> None:
        self.process = process
        self.topic = topic

    @property
    def pid(self) -> int:
        """Of the process itself."""
        return self.process.pid

    def stop(self) -> None:
        """End it in order."""
        self.process.stop(GRACE_S)


class BenchSite:
    """Broker and Triton on a repository of their own, with the stub models and, where there is one, the sample model.

    A context manager; what it starts ends with it, and its folder goes. Blocking.
    """

    def __init__(self, repository: Path, sizes: Sequence[int], settings: Mapping[str, str]) -> None:
        """`settings` are handed to every gateway."""
        self._source = repository
        self._sizes = sorted(set(sizes))
        self.settings = dict(settings)
        self._stack = contextlib.ExitStack()
        self._count = 0
        self.models: dict[int, Model] = {}
        """By size; 0 is the sample model."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="edge-gateway-bench-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._fill(self.folder / "models")
            # Answers are matched by the correlation data of MQTT 5, which amqtt does not have.
            self.broker = stack.enter_context(EmbeddedBroker(kind="mosquitto"))
            self.triton = stack.enter_context(EmbeddedTriton(self.folder / "models"))
            asyncio.run(self._load([*self.models.values()]))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _fill(self, repository: Path) -> None:
        repository.mkdir()
        for size in (size for size in self._sizes if size != SAMPLE_SIZE):
            name = write_stub(repository, size)
            self.models[size] = Model(name, {v: f"{name}-{v}" for v in VARIANTS}, size, size, MEAN, STD)
        manifest = self._source / SAMPLE / "model.yaml"
        if SAMPLE_SIZE in self._sizes and manifest.is_file():
            spec = yaml.safe_load(manifest.read_text())
            self.models[SAMPLE_SIZE] = Model(SAMPLE, spec["variants"], *spec["preprocessing"]["resize"])
            for name in (SAMPLE, *spec["variants"].values()):
                shutil.copytree(self._source / name, repository / name)

    def reload(self, size: int) -> None:
        """Have Triton read a model's files again."""
        asyncio.run(self._load([self.models[size]]))

    async def _load(self, models: Sequence[Model]) -> None:
        server = TritonServer(self.triton.grpc_url)
        try:
            for model in models:
                for name in model.variants.values():
                    await server.load(name)
        finally:
            await server.close()

    def start_gateway(self, *, cores: Sequence[int] = (), **settings: str) -> Contender:
        """A gateway process that is ready, on these cores only if any are named."""
        self._count += 1
        unit, port = f"bench{self._count}", free_ports(1)[0]
        pinned = [sys.executable, "-c", _PINNED, ",".join(map(str, cores))] if cores else []
        command = [*pinned, sys.executable, "-m", "gateway", "serve"]
        process = ChildProcess("the gateway", command, env=self._environment(unit, port) | settings)
        process.start()
        contender = Contender(process, _topic(unit))
        try:
            process.wait_ready(lambda: _is_ready(port), READY_TIMEOUT_S, fix="See its log above")
        except BaseException:
            process.kill()
            raise
        return contender

    def start_script(self, case: Case) -> Contender:
        """The straightforward script for the model of this case, listening."""
        self._count += 1
        unit, model = f"bench{self._count}", self.models[case.size]
        models = model.variants.values() if case.mode == "dual" else [model.variants["onnx"]]
        arguments = {
            "--port": str(self.broker.port),
            "--triton": self.triton.grpc_url,
            "--models": ",".join(models),
            "--height": str(model.height),
            "--width": str(model.width),
            "--mean": ",".join(map(str, model.mean)),
            "--std": ",".join(map(str, model.std)),
            "--subscribe": _topic(unit),
            "--publish": f"edge-ai/{unit}/plant/gw/ai/inference/vision",
        }
        flat = [part for pair in arguments.items() for part in pair]
        process = ChildProcess("the script", [sys.executable, str(find_script()), *flat])
        process.start()
        try:
            process.wait_ready(lambda: "ready" in process.log_tail(), READY_TIMEOUT_S, fix="See its log above")
        except BaseException:
            process.kill()
            raise
        return Contender(process, _topic(unit))

    def _environment(self, unit: str, port: int) -> dict[str, str]:
        """Of a gateway: nothing of what is set for a site, but for what was asked for on the command line."""
        known = {field.upper() for field in Settings.model_fields} | {"GATEWAY_CONFIG"}
        given = {
            **environment(self.broker),
            **environment(self.triton),
            "MODEL_STATE_DIR": str(self.folder / "state"),
            "MQTT_INPUT_TOPICS": _topic(unit).replace("/plant/gw/", "/{facility}/{gateway_id}/"),
            "BUSINESS_UNIT": unit,
            "GATEWAY_ID": "gw",
            "AIO_MQTT_CLIENT_ID": unit,
            "HTTP_HOST": LOOPBACK,
            "HTTP_PORT": str(port),
            "LOG_LEVEL": "warning",
            **self.settings,
        }
        return {**{name: value for name, value in os.environ.items() if name.upper() not in known}, **given}


def find_script() -> Path:
    """The straightforward script: beside this file in an installed wheel, in tests/ of a source checkout."""
    for folder in (Path(__file__).resolve().parent, _CHECKOUT_SCRIPTS):
        if (folder / SCRIPT).is_file():
            return folder / SCRIPT
    raise StackError(
        "the script to compare with is missing from this installation",
        fix="Install the package again: pip install --force-reinstall 'triton-edge-gateway[local]'",
    )


def _topic(unit: str) -> str:
    return f"edge-ai/{unit}/plant/gw/camera/snapshots"


def _is_ready(port: int) -> bool:
    try:
        answer = httpx.get(f"http://{LOOPBACK}:{port}/ready", timeout=5.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK
