"""`edge-gateway models fetch`: model folders from an archive, verified before anything of them is unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
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

CHUNK_BYTES = 1 << 20
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
@click.option("--check", type=FILE, help="Fetch nothing; make this file when all is there, else remove it.")
@CONFIG
@JSON
def fetch(
    source: str, sha256: str, repository: Path | None, check: Path | None, config: Path | None, as_json: bool
) -> None:
    """Bring model folders from an archive into the repository.

    SOURCE is a URL, a file, or - for standard input: a tar, compressed by gzip or not, of folders as they lie in the
    repository. The digest is compared before anything is unpacked. Version folders that are there already stay; with
    another content they are refused. An archive with a digest that was unpacked before is not fetched again while its
    files are as they were in it. One fetch at a time works in a repository; others wait.
    """
    from gateway.commands.models.fetched import alone, is_there
    from gateway.commands.models.staging import remove_leftovers

    log_to_stderr()
    settings = load_settings(config)
    root = repository or settings.model_repository
    require_folder(root)
    name = _shown(source)
    if (_is_url(source) or check) and not sha256:
        what = "--check" if check else "a URL"
        raise ConfigError(f"{what} needs a digest", where=name, fix="Give --sha256, as `sha256sum` prints it")
    if check:
        _answer(check, is_there(root, sha256))
        return
    signal.signal(signal.SIGTERM, _stop)
    with _told(root), alone(root):
        remove_leftovers(root)
        known = bool(sha256) and is_there(root, sha256)
        moved = [] if known else _fetch(source, name, sha256, root, settings.max_model_bytes)
    _say(as_json, name, moved)


def _stop(*_: object) -> None:
    """End as SIGTERM would, but with what was staged removed."""
    sys.exit(128 + signal.SIGTERM)


def _answer(file: Path, is_so: bool) -> None:
    with _told(file):
        if is_so:
            file.touch()
        else:
            file.unlink(missing_ok=True)


def _fetch(source: str, name: str, sha256: str, root: Path, max_bytes: int) -> list[str]:
    """What was moved into the repository, which remembers what was in the archive."""
    from gateway.commands.models.archive import put_in_place, unpack
    from gateway.commands.models.fetched import REMEMBERED
    from gateway.commands.models.staging import FETCH, Staging

    # On the volume itself: who has room for the models has not always as much in TMPDIR.
    with Staging(root, FETCH) as staging, tempfile.TemporaryFile(dir=staging.root) as archive:
        found = _copy(source, name, archive, max_bytes)
        if sha256 and found != sha256:
            raise ConfigError(
                f"has the digest {found}, not {sha256}", where=name, fix="Get the archive, or the digest, anew"
            )
        archive.seek(0)
        (staging.root / REMEMBERED).mkdir()
        with (staging.root / REMEMBERED / found).open("w", encoding="utf-8") as sums:
            folders = unpack(archive, staging, name, max_bytes, sums)
            sums.flush()
            os.fsync(sums.fileno())
        moved = put_in_place(staging, folders, root)
        staging.replace(f"{REMEMBERED}/{found}")
        return moved


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

    def stay_safe(request: httpx.Request) -> None:
        if source.startswith("https://") and request.url.scheme != "https":
            fix = "Give the address that it leads to, if you trust the way there"
            raise ConfigError("the server leads from https to http", where=name, fix=fix)

    try:
        with (
            httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, event_hooks={"request": [stay_safe]}) as client,
            client.stream("GET", source, headers=AS_IT_IS) as answer,
        ):
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
