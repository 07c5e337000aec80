"""What `edge-gateway serve` imports: each package costs memory and time at every start, on every site."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ROOT, start

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
import atexit, sys
from gateway.cli import main

atexit.register(lambda: print("modules", *sys.modules))
main()
"""
BEFORE = """
import sys
before = sys.meta_path[:], set(sys.modules)
import gateway, gateway.without_rich
assert sys.meta_path == before[0]
assert not {"rich", "pygments", "structlog", "httpx"} & (set(sys.modules) - before[1])
import structlog, httpx
assert structlog.dev.rich is not None, "whoever embeds the package has the structlog that he knows"
assert "rich.table" in sys.modules, "nor is httpx another one"
"""
AMONG_THREADS = """
import sys, threading
from gateway.without_rich import import_without_rich
there = threading.Event()
threading.Thread(target=there.wait, daemon=True).start()
import_without_rich("structlog")
assert sys.modules["structlog"].dev.rich is not None
"""
ALONE = """
import sys
from gateway.without_rich import import_without_rich
for name in ("structlog", "httpx"):
    import_without_rich(name)
assert not {"rich", "pygments"} & set(sys.modules), "they are put back"
assert sys.modules["structlog"].dev.rich is None
import rich.table, pygments.lexers
import_without_rich("no_such_module")
"""


def imported(folder: Path) -> set[str]:
    """The modules of a gateway that has tried to reach its broker, and so has all that it needs for that."""
    repository = folder / "models"
    repository.mkdir()
    settings = {
        "GATEWAY_ID": "imports",
        "MODEL_REPOSITORY": str(repository),
        "MODEL_STATE_DIR": str(folder / "state"),
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "0",
        "AIO_BROKER_HOSTNAME": "127.0.0.1",
        "AIO_BROKER_TCP_PORT": "1",
        "TRITON_GRPC_URL": "127.0.0.1:1",
    }
    with start("serve", program=PROGRAM, **settings) as gateway:
        gateway.says("Waiting for the broker")
        gateway.says("Waiting for Triton")
        gateway.interrupt(signal.SIGTERM)
        assert gateway.wait() == 0, gateway.err
    return set(next(line for line in gateway.out if line.startswith("modules ")).split()[1:])


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_serve_imports_only_what_it_needs(tmp_path: Path) -> None:
    modules = imported(tmp_path)
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    given = {name for name in packages if not name.startswith(("_", "cython"))}  # but what compiled modules leave there
    assert given - set(ALLOWED) - set(ONLY_IF_INSTALLED) == {"gateway"}
    assert not modules.intersection(LAZY)


@pytest.mark.parametrize("program", [BEFORE, AMONG_THREADS], ids=["import gateway", "among threads"])
def test_nobody_else_is_without_rich(program: str) -> None:
    done = python(program)
    assert done.returncode == 0, done.stderr


def test_rich_is_hidden_for_one_import_and_there_again() -> None:
    done = python(ALONE)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


def test_what_is_not_installed_on_site_is_not_in_the_lock() -> None:
    lock = (ROOT / "requirements" / "gateway.txt").read_text("utf-8")
    locked = set(re.findall(r"^([A-Za-z0-9_.-]+)==", lock, re.MULTILINE))
    assert not locked & {"brotli", "dnspython", "greenlet"}
