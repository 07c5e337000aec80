"""SHA256SUMS beside model.yaml: what a drop consists of when it is complete, as `sha256sum` writes it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigError
from gateway.models.drop import Drop
from gateway.models.drop_files import MAX_FILES, SUMS_FILE, scope_of, unreadable
from gateway.regular_file import open_regular

MAX_MANIFEST_BYTES = 4 << 20
MAX_LISTED = 3
"""Files that one line names."""
_LINE = re.compile(r"(\\?)([0-9A-Fa-f]{64}) [ *](.+)")
_ESCAPES = {"\\": "\\", "n": "\n", "r": "\r"}
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One SHA256SUMS: the SHA-256 in hex by path in the repository."""

    path: Path
    digests: Mapping[str, str]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in the folder of a model.yaml, None when there is none; raises ConfigError with the line."""
    path = folder / SUMS_FILE
    try:
        with open_regular(path) as file:
            content = bytearray()
            while len(content) <= MAX_MANIFEST_BYTES and (part := file.read(MAX_MANIFEST_BYTES + 1 - len(content))):
                content += part
    except FileNotFoundError as error:
        if path.is_symlink():
            raise unreadable(path, error) from error
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise ConfigError("the file is larger than 4 MiB", where=str(path), fix=f"List at most {MAX_FILES} files")
    try:
        return Manifest(path, _digests(content.decode("utf-8-sig"), path))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"is not UTF-8 in line {line}", where=str(path), fix="Save the file as UTF-8") from error


def _digests(text: str, path: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.removesuffix("\r"))
        if found is None:
            raise ConfigError(
                f"line {number} is no line of sha256sum",
                where=str(path),
                fix="Write 64 hexadecimal digits, two blanks and the path, as `sha256sum` does",
            )
        name = posixpath.normpath(_ESCAPED.sub(_unescaped, found[3]) if found[1] else found[3])
        outside = name.startswith(("/", "../")) or name in (".", "..")
        if outside or digests.setdefault(name, found[2].lower()) != found[2].lower():
            raise ConfigError(
                f"line {number} names '{name[:200]}', which "
                + ("is no path in the model repository" if outside else "has another digest further up"),
                where=str(path),
                fix="Run sha256sum in the folder of the model repository, on each file once",
            )
    return digests


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[1], found[0])


def incomplete(manifest: Manifest, drop: Drop, digests: Mapping[str, str] | None = None) -> str:
    """Why the drop is not complete yet, in one line; empty when every file listed of its version is there and matches.

    Without digests only whether the files are there is said, so that not all have to be read for that. What the
    manifest lists of other versions and models is of no interest. Raises ConfigError when the drop is complete, and
    has files that are not listed.
    """
    scope = scope_of(drop.model, drop.repository, drop.version)
    listed = {path: digest for path, digest in manifest.digests.items() if scope.holds(path)}
    if not any(scope.in_version_folder(path) for path in listed):
        example = f"{scope.triton_models[0]}/{drop.version}/model.onnx"
        return f"{SUMS_FILE} does not list version {drop.version} yet, by paths such as {example}"
    if missing := [path for path in listed if path not in drop.files]:
        return f"{_named(missing)} {_are(missing)} missing"
    if digests is None:
        return ""
    if other := [path for path, digest in listed.items() if digests.get(path) != digest]:
        return f"{_named(other)} {'does' if len(other) == 1 else 'do'} not match {SUMS_FILE}"
    if unlisted := [path for path in drop.files if path not in listed]:
        raise ConfigError(
            f"{_named(unlisted)} {_are(unlisted)} not listed",
            where=str(manifest.path),
            fix="Write SHA256SUMS again over all files of the drop, or remove what does not belong to it",
        )
    return ""


def _named(paths: list[str]) -> str:
    shown = ", ".join(paths[:MAX_LISTED])
    return f"{shown} and {len(paths) - MAX_LISTED} more" if len(paths) > MAX_LISTED else shown


def _are(paths: list[str]) -> str:
    return "is" if len(paths) == 1 else "are"


def manifest_text(digests: Mapping[str, str]) -> str:
    """The text of a SHA256SUMS, as `sha256sum` would write it and check it in the folder of the repository."""
    return "".join(f"{_line(path, digests[path])}\n" for path in sorted(digests))


def _line(path: str, digest: str) -> str:
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{digest}  {escaped}"
