"""Drops for tests: a logical model with two Triton models, whose files are only bytes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.models.drop import Drop, take_drop
from gateway.models.repository import LogicalModel, read_model
from tests.harness import write_model

LIMIT = 2**30
NOBODY = 65534


def write_drop(repository: Path, version: int = 1, *variants: str, content: bytes = b"weights") -> None:
    """Version folders of `detector`; without variants of both."""
    if not (repository / "detector").exists():
        write_model(repository)
    for variant, name in {"onnx": "model.onnx", "torch": "model.pt"}.items():
        folder = repository / f"detector-{variant}"
        if not variants or variant in variants:
            (folder / str(version)).mkdir(parents=True, exist_ok=True)
            (folder / str(version) / name).write_bytes(content + variant.encode())
            (folder / "config.pbtxt").write_text('backend: "none"')


def logical(repository: Path) -> LogicalModel:
    """`detector`, as its model.yaml reads now."""
    return read_model(repository / "detector" / "model.yaml", repository)


def taken(repository: Path, version: int = 1, **more: Any) -> Drop:
    """What take_drop finds of a version of `detector`."""
    return take_drop(logical(repository), repository, version, **{"max_bytes": LIMIT, **more})


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """As a user to whom permissions apply."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
