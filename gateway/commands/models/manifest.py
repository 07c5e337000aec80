"""`edge-gateway models manifest`: the SHA256SUMS of a drop, which tells the gateway when it is complete."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.commands.models.reading import log_to_stderr
from gateway.commands.models.target import (
    MODEL,
    VERSION,
    Target,
    files_in_words,
    find_target,
    read_digests,
    replace_file,
    require_replaceable,
    written_json,
)
from gateway.commands.options import CONFIG, JSON, examples
from gateway.config_reading import load_settings
from gateway.errors import ConfigError

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
@JSON
def write_manifest(model: str, version: int | None, config: Path | None, as_json: bool) -> None:
    """Write SHA256SUMS over all files of one version.

    NAME_OR_DIR is a model of MODEL_REPOSITORY, or the folder of a model.yaml, whose Triton models lie beside it.
    Without VERSION, the highest on disk. With it beside model.yaml, a drop is read when all files are there and match,
    however slowly they are copied; copy it last. Of an older one the lines of other versions that are there stay.
    """
    from gateway.models.drop_files import SUMS_FILE
    from gateway.models.manifest import manifest_text

    log_to_stderr()
    target = find_target(model, version, load_settings(config))
    path = target.model.path.parent / SUMS_FILE
    require_replaceable(path, FIX)
    drop = target.take()
    digests = {**_of_other_versions(target), **read_digests(drop, quiet=as_json)}
    replace_file(path, manifest_text(digests).encode(), FIX)
    click.echo(written_json(drop, manifest=path) if as_json else f"{files_in_words(drop)}, written to {path}")


def _of_other_versions(target: Target) -> dict[str, str]:
    """What the manifest there is says of the other version folders of the model; nothing where it is damaged."""
    from gateway.models.drop import versions_on_disk
    from gateway.models.drop_files import scope_of
    from gateway.models.manifest import read_manifest

    try:
        before = read_manifest(target.model.path.parent)
    except ConfigError:
        return {}
    versions = set(versions_on_disk(target.model, target.repository)) - {target.version}
    scopes = [scope_of(target.model, target.repository, version) for version in versions]
    return {
        path: digest
        for path, digest in (before.digests if before else {}).items()
        if any(scope.in_version_folder(path) for scope in scopes) and (target.repository / path).is_file()
    }
