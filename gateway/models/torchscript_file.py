"""What a TorchScript file says of itself: the metadata that Ultralytics puts beside the code, without torch."""

from __future__ import annotations

import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import ConfigError
from gateway.regular_file import open_regular

MAX_DIRECTORY_BYTES = 2 << 20
"""Read of the archive to find a file in it; one of a model of a thousand tensors lists them in 0.1 MiB."""
MAX_METADATA_BYTES = 1 << 20
MAX_SAID = 300
"""Characters of what zipfile says, which may repeat the file."""
METADATA_FILE = "extra/config.txt"
CODE_FILE = "constants.pkl"
"""What torch.jit.save writes and torch.save does not."""
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""All that zipfile raises for what is no zip; among RuntimeError and ValueError: encrypted, and not known to it."""


def read_torchscript_metadata(path: Path) -> Mapping[str, str]:
    """The entries of `<archive>/extra/config.txt` as texts, as the ONNX export has them; {} when there is none.

    Raises ConfigError for a file that cannot be read or is no TorchScript archive.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(_Bounded(file)) as archive:
            # Every file of the archive lies in one folder, which is named as the author named the file.
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if CODE_FILE not in members:
                raise ConfigError(
                    "holds weights or a pickled module, and no TorchScript",
                    where=str(path),
                    fix="Export it (Ultralytics: format=torchscript), or save torch.jit.trace(model, example)",
                )
            if METADATA_FILE not in members:
                return {}
            with archive.open(members[METADATA_FILE]) as member:
                text = member.read(MAX_METADATA_BYTES + 1)  # unpacks no more than this, whatever the archive says
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror or error}", where=str(path), fix="Check the path and its permissions"
        ) from error
    except _DAMAGED as error:
        raise ConfigError(
            f"is no complete TorchScript archive: {str(error)[:MAX_SAID]}",
            where=str(path),
            fix="Copy it again and compare its sha256 with the original, or save it again with torch.jit.save",
        ) from error
    return _entries(text)


def _entries(text: bytes) -> Mapping[str, str]:
    """The metadata in its JSON; {} for what is not a small object, since a model serves without."""
    if len(text) > MAX_METADATA_BYTES:
        return {}
    try:
        data = json.loads(text)
        entries = {key: str(value) for key, value in data.items()} if isinstance(data, dict) else {}
        "".join((*entries, *entries.values())).encode()
    except (ValueError, RecursionError):  # also for half a character (a lone surrogate), which no message can carry
        return {}
    return entries


class _Bounded(io.RawIOBase):
    """A file of which only so much can be read: zipfile takes the whole directory into memory, whatever its size."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._left = MAX_DIRECTORY_BYTES + MAX_METADATA_BYTES

    def read(self, size: int = -1, /) -> bytes:
        content = self._file.read(self._left + 1 if size < 0 else min(size, self._left + 1)) or b""
        self._left -= len(content)
        if self._left < 0:
            raise zipfile.BadZipFile(f"it takes more than {MAX_DIRECTORY_BYTES >> 20} MiB to find a file in it")
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True
