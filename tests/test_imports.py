"""What `edge-gateway serve` imports: each package costs memory and time at every start, on every site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "aiohttp": "HTTP: health, metrics, API",
    "aiohappyeyeballs": "aiohttp's",
    "aiosignal": "aiohttp's",
    "annotated_types": "pydantic's",
    "anyio": "watchfiles' and httpx's",
    "attr": "aiohttp's",
    "click": "the command line",
    "cykooz_resizer": "resizes pictures several times as fast as Pillow",
    "dotenv": "pydantic_settings'",
    "frozenlist": "aiohttp's",
    "google": "protobuf, Triton's messages",
    "grpc": "to Triton",
    "httpx": "Triton's metrics",
    "idna": "yarl's",
    "msgspec": "JSON of messages",
    "multidict": "aiohttp's",
    "numpy": "tensors",
    "paho": "MQTT",
    "PIL": "decodes pictures",
    "prometheus_client": "metrics",
    "propcache": "aiohttp's",
    "pybase64": "pictures in JSON",
    "pydantic": "settings and model.yaml",
    "pydantic_core": "pydantic's",
    "pydantic_settings": "settings",
    "structlog": "the log",
    "tritonclient": "Triton's messages; its client, which is slow to import, is not used",
    "typing_extensions": "pydantic's",
    "typing_inspection": "pydantic's",
    "watchfiles": "dropped models, as soon as they are there",
    "yaml": "gateway.yaml and model.yaml",
    "yarl": "aiohttp's",
}
ONLY_IF_INSTALLED = {
    "brotli": "aiohttp's",
    "dns": "paho's",
    "greenlet": "looked for by what is there",
}
"""Taken by others where they find it; not installed on site."""
LAZY = (
    "tritonclient.grpc", "gateway.admin.home_assistant", "gateway.local", "gateway.bench.site",
    "gateway.doctor.broker", "sqlite3",
)  # fmt: skip
"""For other commands, or for settings that few have."""
PROGRAM = """
import asyncio, sys
from gateway.cli import main
from gateway.commands.serve import compose
from gateway.config_reading import load_settings
from gateway.metrics import Metrics

async def serve():
    metrics = Metrics()
    gateway = compose(load_settings(None), metrics=metrics)
    running = asyncio.create_task(gateway.run())
    while not running.done():  # it has tried to connect: all that it needs for that is there
        if metrics.value("broker_events_total", event="unreachable"):
            gateway.stop()
        await asyncio.sleep(0.01)
    assert running.result() == 0

asyncio.run(serve())
print("modules", *sys.modules)
"""


def imported(folder: Path) -> set[str]:
    """The modules of a gateway that has tried to reach its broker and its Triton."""
    repository = folder / "models"
    repository.mkdir()
    given = {
        "GATEWAY_ID": "imports",
        "MODEL_REPOSITORY": str(repository),
        "MODEL_STATE_DIR": str(folder / "state"),
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "0",
        "AIO_BROKER_HOSTNAME": "127.0.0.1",
        "AIO_BROKER_TCP_PORT": "1",
        "TRITON_GRPC_URL": "127.0.0.1:1",
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(next(line for line in done.stdout.splitlines() if line.startswith("modules ")).split()[1:])


def test_serve_imports_only_what_it_needs(tmp_path: Path) -> None:
    modules = imported(tmp_path)
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    given = {name for name in packages if not name.startswith(("_", "cython"))}  # but what compiled modules leave there
    assert given - set(ALLOWED) - set(ONLY_IF_INSTALLED) == {"gateway"}
    assert not modules.intersection(LAZY)


def test_what_is_not_installed_on_site_is_not_in_the_lock() -> None:
    lock = (ROOT / "requirements" / "gateway.txt").read_text("utf-8")
    locked = set(re.findall(r"^([A-Za-z0-9_.-]+)==", lock, re.MULTILINE))
    assert not locked & {"brotli", "dnspython", "greenlet"}
