"""`edge-gateway stack` and `edge-gateway triton`: the embedded parts in the foreground until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from gateway.adapters.triton import TritonServer
from gateway.errors import GatewayError
from gateway.local.backend_directory import find_stub, find_wheel
from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from gateway.terminal.progress import busy, progress

WATCH_PERIOD_S = 0.2
TRACES_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"

Say = Callable[[str], None]


def say_at_once(line: str) -> None:
    """print() that a pipe does not hold back."""
    print(line, flush=True)


def run_stack(
    repository: Path,
    *,
    mqtt_port: int | None = None,
    grpc_port: int | None = None,
    http_port: int | None = None,
    metrics_port: int | None = None,
    say: Say = say_at_once,
    as_json: bool = False,
) -> int:
    """Broker and Triton until SIGINT or SIGTERM (0), or until one of them dies (1); StackError if none starts.

    With `as_json` all that is said is one JSON object, as soon as everything is up.
    """
    broker = EmbeddedBroker(port=mqtt_port)
    triton = _triton(repository, grpc_port, http_port, metrics_port)
    return _run([broker, triton], say, as_json=as_json)


def run_triton(
    repository: Path,
    *,
    grpc_port: int | None = None,
    http_port: int | None = None,
    metrics_port: int | None = None,
    say: Say = say_at_once,
    as_json: bool = False,
) -> int:
    """Triton alone; otherwise like run_stack."""
    return _run([_triton(repository, grpc_port, http_port, metrics_port)], say, as_json=as_json)


def _triton(repository: Path, grpc_port: int | None, http_port: int | None, metrics_port: int | None) -> EmbeddedTriton:
    return EmbeddedTriton(
        repository, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, traces_to=traces_to()
    )


def traces_to() -> str | None:
    """Where the environment wants traces sent, those of the gateway and those of Triton alike."""
    return os.environ.get(TRACES_VARIABLE) or None


def _run(parts: list[EmbeddedBroker | EmbeddedTriton], say: Say, *, as_json: bool) -> int:
    find_stub(find_wheel())  # says what is not installed before anything is started
    tell = _nothing if as_json else say
    with contextlib.ExitStack() as stack, terminate_like_interrupt():
        try:
            for part in parts:
                with busy(f"Starting {_title(part)}", quiet=as_json):
                    stack.enter_context(part)
                tell(_describe(part))
            triton = next(part for part in parts if isinstance(part, EmbeddedTriton))
            refused = asyncio.run(_load_models(triton, tell, quiet=as_json))
            if as_json:
                say(_as_json(parts, refused))
            else:
                for line in _instructions(parts):
                    say(line)
            return _watch(parts, _say_to_stderr if as_json else say)
        except KeyboardInterrupt:
            tell("\nStopping ...")
            return 0


def _nothing(_line: str) -> None:
    """What a person would read, and a machine need not."""


def _say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _as_json(parts: list[EmbeddedBroker | EmbeddedTriton], refused: dict[str, str]) -> str:
    """Addresses and what to export, in one line: whoever starts it reads a line and goes on."""
    body: dict[str, object] = {
        "environment": {key: value for part in parts for key, value in environment(part).items()}
    }
    for part in parts:
        if isinstance(part, EmbeddedBroker):
            body["broker"] = {"host": part.host, "port": part.port, "protocol": part.protocol, "name": part.name}
        else:
            body["triton"] = {"grpc": part.grpc_url, "http": part.http_url, "metrics": part.metrics_url}
    return json.dumps({**body, "not_loaded": refused}, ensure_ascii=False)


async def _load_models(triton: EmbeddedTriton, say: Say, *, quiet: bool) -> dict[str, str]:
    """Load what lies in the repository, so that a gateway finds its models serving.

    A bad one is said and left out; returns these with the reason.
    """
    names = sorted({path.parent.name for path in triton.repository.glob("*/[0-9]*") if path.is_dir()})
    if not names:
        return {}
    say(f"Loading      {', '.join(names)}")
    server = TritonServer(triton.grpc_url)
    with progress("Loading models", len(names), quiet=quiet) as bar:

        async def load(name: str) -> None:
            await server.load(name)
            bar.advance()

        outcomes = await asyncio.gather(*map(load, names), return_exceptions=True)
    await server.close()
    refused = {}
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, GatewayError):
            refused[name] = outcome.message
            say(f"Not loaded   {name}: {outcome.message}")
        elif outcome is not None:
            raise outcome
    return refused


def _watch(parts: list[EmbeddedBroker | EmbeddedTriton], say: Say) -> int:
    while all(part.running for part in parts):
        time.sleep(WATCH_PERIOD_S)
    for part in parts:
        if not part.running:
            say(f"{_title(part)} has died unexpectedly{part.log_excerpt()}")
    return 1


def _title(part: EmbeddedBroker | EmbeddedTriton) -> str:
    return "The MQTT broker" if isinstance(part, EmbeddedBroker) else "Triton"


def _describe(part: EmbeddedBroker | EmbeddedTriton) -> str:
    if isinstance(part, EmbeddedBroker):
        return f"MQTT broker  {part.host}:{part.port}  ({part.name}, MQTT {part.protocol})"
    return (
        f"Triton       gRPC {part.grpc_url}, HTTP {part.http_url}, metrics {part.metrics_url}\n"
        f"Models       {part.repository}"
    )


def environment(part: EmbeddedBroker | EmbeddedTriton) -> dict[str, str]:
    """What the gateway needs in its environment to use this part."""
    if isinstance(part, EmbeddedBroker):
        return {
            "AIO_BROKER_HOSTNAME": part.host,
            "AIO_BROKER_TCP_PORT": str(part.port),
            "AIO_MQTT_USE_TLS": "false",
            "MQTT_PROTOCOL": part.protocol,
        }
    return {
        "TRITON_GRPC_URL": part.grpc_url,
        "TRITON_METRICS_URL": part.metrics_url,
        "MODEL_REPOSITORY": str(part.repository),
        **({TRACES_VARIABLE: part.traces_to} if part.traces_to else {}),
    }


def _instructions(parts: list[EmbeddedBroker | EmbeddedTriton]) -> Iterator[str]:
    yield "\nFor the gateway, in another terminal:"
    for part in parts:
        for key, value in environment(part).items():
            yield f"  export {key}={value}"
    yield "  edge-gateway serve"
    yield "\nCtrl-C stops all of it."


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt like SIGINT does, so that both take the same way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
