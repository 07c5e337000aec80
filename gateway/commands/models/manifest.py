"""`edge-gateway models manifest`: the SHA256SUMS of a drop, which tells the gateway when it is complete."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.commands.models.target import (
    MODEL,
    VERSION,
    files_in_words,
    find_target,
    replace_file,
    require_replaceable,
)
from gateway.commands.options import CONFIG, examples
from gateway.config import load_settings

FIX = "Check the free space, and that this user may write there"


@click.command(
    "manifest",
    epilog=examples(
        "edge-gateway models manifest helmets",
        "edge-gateway models manifest model_repository/helmets 2",
        "(cd model_repository && sha256sum -c helmets/SHA256SUMS)",
    ),
)
@MODEL
@VERSION
@CONFIG
def write_manifest(model: str, version: int | None, config: Path | None) -> None:
    """Write SHA256SUMS over all files of one version.

    NAME_OR_DIR is a model of MODEL_REPOSITORY, or the folder of a model.yaml, whose Triton models lie beside it.
    Without VERSION, the highest on disk. With it beside model.yaml, a drop is read when all files are there and match,
    however slowly they are copied; copy it last. An older one is replaced.
    """
    from gateway.models.drop import digests_of
    from gateway.models.drop_files import SUMS_FILE
    from gateway.models.manifest import manifest_text

    target = find_target(model, version, load_settings(config))
    path = target.model.path.parent / SUMS_FILE
    require_replaceable(path, FIX)
    drop = target.take()
    replace_file(path, manifest_text(digests_of(drop)).encode(), FIX)
    click.echo(f"{files_in_words(drop)}, written to {path}")
