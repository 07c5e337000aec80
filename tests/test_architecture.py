"""The rules of the design that code alone can break: who may import what, and how large things grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gateway"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOREIGN = {"paho", "tritonclient", "grpc", "opentelemetry"}
OUTSIDERS = {"adapters", "bench"}
"""Who may use them: the bench looks at the gateway from outside, by plain clients of its own."""
# Who may import whom, innermost first; each may import itself and what stands in its list.
ALLOWED = {
    "layouts": {"layouts"},
    "models": {"models", "layouts"},
    "flow": {"flow", "models", "layouts"},
    "adapters": {"adapters", "models"},
    "rollout": {"rollout", "flow", "models", "layouts"},
    "admin": {"admin", "flow", "models", "layouts", "rollout"},
    "workers": {"workers", "admin", "flow"},
    "testing": {"testing"},
    "terminal": {"terminal"},
    "cameras": {"cameras", "terminal"},
    "doctor": {"doctor", "adapters", "models", "layouts", "terminal"},
    "local": {"local", "adapters", "terminal", "flow"},
    "bench": {"bench", "local", "adapters", "terminal", "flow", "models", "layouts"},
}
# flow/acks names a ticket in messages, messages a model of the catalogue: for the type checker only.
COMPOSITION = {"app", "cli", "__main__"}
# The commands put parts together too, each for itself, and import them when they run.
COMMANDS = "commands"
LAZY = ("gateway.adapters", "gateway.local", "gateway.doctor", "gateway.bench")


def imports(path: Path) -> set[str]:
    """All modules that a file imports at run time, inside functions too, but not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(tree)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_adapters_import_paho_and_tritonclient(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imports(path)} & FOREIGN
    assert not foreign or path.parts[-2] in OUTSIDERS, f"{path} imports {foreign}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_inwards(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    folders = {name.split(".")[1] for name in imports(path) if name.startswith("gateway.")} & {*ALLOWED, COMMANDS}
    if len(parts) == 1:
        if path.stem not in COMPOSITION:
            assert not folders, f"{path} is below {folders}"
    elif parts[0] != COMMANDS:
        assert folders <= ALLOWED[parts[0]], f"{path} imports {folders - ALLOWED[parts[0]]}"


def test_no_step_knows_the_next() -> None:
    steps = {"ingest", "route", "schedule", "preprocess", "variants", "infer", "postprocess", "compare", "publish"}
    # postprocess undoes what preprocess did to the coordinates, so it shares its arithmetic.
    known = {("postprocess", "preprocess"), ("ingest", "acks")}
    for step in steps:
        for name in imports(PACKAGE / "flow" / f"{step}.py"):
            if name.startswith("gateway.flow."):
                other = name.split(".")[2]
                assert other not in steps or other == step or (step, other) in known, f"{step} imports {other}"


def test_importing_the_package_brings_no_foreign_client() -> None:
    core = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    core = [name.removesuffix(".__init__") for name in core if not name.startswith(LAZY)]
    core = [name for name in core if name != "gateway.__main__"]
    code = f"import {', '.join(core)}, sys; print([m for m in {sorted(FOREIGN)} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.strip() == "[]"


def test_the_gateway_needs_no_framework() -> None:
    for path in MODULES:
        if path.parts[-2] != "local":
            roots = {name.split(".")[0] for name in imports(path)}
            assert not roots & {"torch", "onnxruntime", "onnx", "pytriton", "cv2", "amqtt", "av"}, path


def test_the_command_line_starts_without_what_its_commands_need() -> None:
    heavy = ["av", "google.protobuf", "grpc", "httpx", "numpy", "paho", "PIL", "aiohttp", "gateway.app"]
    code = f"import gateway.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.strip() == "[]"


def test_no_module_is_a_grab_bag() -> None:
    assert not [path for path in MODULES if path.stem in {"utils", "util", "helpers", "common", "misc"}]
    long = {path.name: n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"
