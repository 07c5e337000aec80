"""`edge-gateway models fetch`: model folders from an archive, verified before anything of them is unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import click

from gateway.commands.models.reading import log_to_stderr
from gateway.commands.options import CONFIG, FILE, JSON, examples, require_folder
from gateway.config_reading import load_settings
from gateway.errors import ConfigError
from gateway.regular_file import open_regular

REMEMBERED = ".fetched"
"""Hidden folder of the repository with a file for each digest whose archive has been unpacked: what was in it."""
CHUNK_BYTES = 1 << 20
MAX_REMEMBERED_BYTES = 1 << 20
AS_IT_IS = {"Accept-Encoding": "identity"}
"""The digest is that of the archive, so nobody may compress it on the way."""
TIMEOUT_S = 60.0
"""For each part of an answer, not for all of it."""


def _digest(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not re.fullmatch(r"[0-9A-Fa-f]{64}", value):
        raise click.BadParameter("it is 64 hexadecimal digits, as sha256sum prints them", context, parameter)
    return value.lower()


@click.command(
    epilog=examples(
        "edge-gateway models fetch https://models.example/helmets-3.tar.gz --sha256 3f5a...",
        "edge-gateway models fetch helmets-3.tar.gz --repository /srv/models",
        "tar -C model_repository -cz helmets helmets-onnx | edge-gateway models fetch -",
    )
)
@click.argument("source")
@click.option("--sha256", "sha256", default="", callback=_digest, help="Digest of the archive; needed for a URL.")
@click.option("--repository", type=FILE, help="Folder of the models.  [default: MODEL_REPOSITORY]")
@CONFIG
@JSON
def fetch(source: str, sha256: str, repository: Path | None, config: Path | None, as_json: bool) -> None:
    """Bring model folders from an archive into the repository.

    SOURCE is a URL, a file, or - for standard input: a tar, compressed by gzip or not, of folders as they lie in the
    repository. The digest is compared before anything is unpacked. Version folders that are there already stay; with
    another content they are refused. An archive with a digest that was unpacked before is not fetched again.
    """
    log_to_stderr()
    settings = load_settings(config)
    root = repository or settings.model_repository
    require_folder(root)
    name = _shown(source)
    if _is_url(source) and not sha256:
        raise ConfigError("a URL needs a digest", where=name, fix="Give --sha256, as `sha256sum` prints it")
    if sha256 and _is_there(root, sha256):
        _say(as_json, name, [])
        return
    content, moved = _fetch(source, name, sha256, root, settings.max_model_bytes)
    if sha256:
        mark = root / REMEMBERED / sha256
        with _told(mark):
            mark.parent.mkdir(exist_ok=True)
            mark.write_text(json.dumps(content))
    _say(as_json, name, moved)


def _is_there(root: Path, sha256: str) -> bool:
    """Whether an archive with this digest was unpacked here, and all of it is still there."""
    try:
        with open_regular(root / REMEMBERED / sha256) as file:
            content = json.loads(file.read(MAX_REMEMBERED_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(content, list) and all((root / str(path)).exists() for path in content)


def _fetch(source: str, name: str, sha256: str, root: Path, max_bytes: int) -> tuple[list[str], list[str]]:
    """What was in the archive, down to versions, and what of that was moved into the repository."""
    from gateway.commands.models.archive import put_in_place, unpack
    from gateway.commands.models.staging import Staging

    # On the volume itself: who has room for the models has not always as much in TMPDIR.
    with Staging(root, "fetch") as staging, _told(root), tempfile.TemporaryFile(dir=staging.root) as archive:
        found = _copy(source, name, archive, max_bytes)
        if sha256 and found != sha256:
            raise ConfigError(
                f"has the digest {found}, not {sha256}", where=name, fix="Get the archive, or the digest, anew"
            )
        archive.seek(0)
        folders = unpack(archive, staging, name, max_bytes)
        content = [f"{each}/{entry.name}" for each in folders for entry in sorted((staging.root / each).iterdir())]
        return content, put_in_place(staging, folders, root)


def _copy(source: str, name: str, into: IO[bytes], max_bytes: int) -> str:
    """Write the archive into a file; its digest."""
    digest, total = hashlib.sha256(), 0
    for chunk in _chunks(source, name):
        total += len(chunk)
        if total > max_bytes:
            raise ConfigError(
                f"is larger than {max_bytes / 2**20:.0f} MiB", where=name, fix="Raise MAX_MODEL_BYTES, or send less"
            )
        digest.update(chunk)
        into.write(chunk)
    return digest.hexdigest()


def _chunks(source: str, name: str) -> Iterator[bytes]:
    if _is_url(source):
        yield from _from_url(source, name)
        return
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if source == "-" else open_regular(Path(source)) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", where=name, fix="Check the path and its permissions") from error


def _from_url(source: str, name: str) -> Iterator[bytes]:
    """Proxies and authorities are those of the environment: HTTPS_PROXY, SSL_CERT_FILE."""
    import httpx

    try:
        with httpx.stream("GET", source, headers=AS_IT_IS, follow_redirects=True, timeout=TIMEOUT_S) as answer:
            if answer.status_code != httpx.codes.OK:
                fix = "Check the address, and whether it still holds where it was signed for a time"
                raise ConfigError(f"the server answers {answer.status_code}", where=name, fix=fix)
            yield from answer.iter_raw(CHUNK_BYTES)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"cannot be fetched: {reason}", where=name, fix="Check the address, the network and HTTPS_PROXY"
        ) from error


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _shown(source: str) -> str:
    """Without what a signed address is signed with, and without a password."""
    if not _is_url(source):
        return "standard input" if source == "-" else source
    try:
        parts = urlsplit(source)
    except ValueError:
        return "the URL"
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


@contextlib.contextmanager
def _told(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "Check the free space, and that this user may write there"
        raise ConfigError(f"cannot be written: {error.strerror or error}", where=str(where), fix=fix) from error


def _say(as_json: bool, name: str, moved: list[str]) -> None:
    if as_json:
        found: dict[str, Any] = {"source": name, "moved": moved}
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        click.echo(f"{name}: {', '.join(moved)}" if moved else f"{name}: nothing new; all of it is there")
