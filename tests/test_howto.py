"""The files on the how-to pages can be used as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.adapters.triton_config import read_config
from gateway.errors import ConfigError, SnapshotError
from gateway.models.spec import read_spec
from tests.command_line import ROOT

RUNNING = {"batching", "home-assistant", "pinning", "shared-memory", "sizing", "terminal", "tracing", "workers"}
"""Pages on how to run the gateway; they show no model."""
PAGES = sorted(page for page in (ROOT / "docs" / "howto").glob("*.md") if page.stem not in RUNNING)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PATH = re.compile(r"# (model_repository/[\w-]+/[\w.]+)\n")
MAX_LINES = 15
MOST_LINES_OF_YOLO = 12
"""The most usual model of all takes least."""


def blocks(kind: str) -> list[tuple[Path, str]]:
    """All blocks of one kind, and the pages that they stand on."""
    return [(page, text) for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == kind]


def written(text: str, folder: Path) -> Path:
    """A block as the file that its first line names."""
    named = PATH.match(text)
    assert named is not None, f"its first line is no path: {text[:80]}"
    path = folder / named[1]
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def identify(value: object) -> str:
    """A block's page and path, in the name of its test."""
    return value.stem if isinstance(value, Path) else str(value).partition("\n")[0].partition("/")[2]


@pytest.mark.parametrize(("page", "text"), blocks("yaml"), ids=identify)
def test_every_model_yaml_can_be_read(page: Path, text: str, tmp_path: Path) -> None:
    path = written(text, tmp_path)
    spec = read_spec(path)
    assert path.name == "model.yaml"
    assert spec.name == path.parent.name
    assert text.count("\n") <= (MOST_LINES_OF_YOLO if page.stem == "yolo" else MAX_LINES)
    assert all(triton.startswith(spec.name) for triton in spec.variants.values())


@pytest.mark.parametrize(("page", "text"), blocks("pbtxt"), ids=identify)
def test_every_config_pbtxt_is_complete(page: Path, text: str, tmp_path: Path) -> None:
    path = written(text, tmp_path)
    config = read_config(path)
    assert path.name == "config.pbtxt"
    assert config.platform == "pytorch_libtorch"
    assert config.signature.inputs
    assert config.signature.outputs


def test_a_torchscript_variant_has_its_config_on_the_page() -> None:
    for page, text in blocks("yaml"):
        if "torch: " not in text:
            continue
        named = re.search(r"torch: ([\w-]+)", text)
        assert named is not None
        assert f"# model_repository/{named[1]}/config.pbtxt" in page.read_text()


def test_no_two_pages_use_one_name(tmp_path: Path) -> None:
    for _, text in (*blocks("yaml"), *blocks("pbtxt")):
        written(text, tmp_path)  # fails where the folder is there already


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.stem))
def test_every_page_says_how_to_check_and_try(page: Path) -> None:
    text = page.read_text()
    assert "edge-gateway models check model_repository/" in text
    assert "edge-gateway send " in text
    assert "/v1/infer" in text


def test_a_mistake_on_a_page_would_be_found(tmp_path: Path) -> None:
    page, text = blocks("yaml")[0]
    with pytest.raises(ConfigError, match="preprocesing"):
        read_spec(written(text.replace("preprocessing:", "preprocesing:"), tmp_path))
    assert page.exists()


def test_the_runbook_has_every_code() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    assert set(re.findall(r"^### ([A-Z_]+)$", text, re.MULTILINE)) == {
        kind.code for kind in SnapshotError.__subclasses__()
    }
