"""What forward() of a TorchScript file takes and gives: read from the code in it as text, nothing of it is run."""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from gateway.regular_file import open_regular

MAX_CODE_BYTES = 1 << 20
OBJECT_FILE = "data.pkl"
MAX_OBJECT_BYTES = 4096
"""Read of the pickle: the first thing in it names the class of the module."""
MAX_ARGUMENTS = 100

_UNREADABLE = (KeyError, OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""A member that is not there, or damaged; RuntimeError and ValueError: encrypted, or packed in a way not known."""
_ROOT_CLASS = re.compile(rb"\x80\x02c([\w.]{1,1000})\n(\w{1,500})\n")
_FORWARD = re.compile(r"  def forward\(self: [\w.]+(?P<takes>[^()]{0,10000})\) -> (?P<gives>[\w\[\], ]{1,2000}):")
_TENSOR = re.compile(r",\s+(\w+): Tensor")
_TUPLE = re.compile(r"Tuple\[Tensor(?:, Tensor)*\]")


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward() that takes tensors only."""

    arguments: tuple[str, ...]
    """Their names in order, which Triton takes for the names of the inputs."""
    outputs: int | None
    """How many tensors it gives; None where that cannot be told."""


def read_forward(path: Path) -> Forward | None:
    """What forward() takes and gives; None where the code does not tell, which is no fault of the file.

    For a file that `read_torchscript_metadata` has accepted: its directory is of a sane size.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            root = _ROOT_CLASS.match(_head(archive, members[OBJECT_FILE], MAX_OBJECT_BYTES))
            if root is None:
                return None
            code = members[f"code/{root[1].decode('ascii').replace('.', '/')}.py"]
            text = _head(archive, code, MAX_CODE_BYTES).decode(errors="replace")
    except _UNREADABLE:
        return None
    return _forward(text, root[2].decode("ascii", errors="replace"))


def _head(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    with archive.open(info) as member:
        return member.read(most)


def _forward(code: str, name: str) -> Forward | None:
    _, found, body = code.partition(f"class {name}(Module):\n")
    head = _FORWARD.search(body.partition("\nclass ")[0]) if found else None
    if head is None:
        return None
    arguments = _TENSOR.findall(head["takes"])
    plain = "".join(f",{argument}:Tensor" for argument in arguments) == re.sub(r"\s", "", head["takes"])
    if not plain or not 1 <= len(arguments) <= MAX_ARGUMENTS:
        return None
    gives = head["gives"]
    outputs = 1 if gives == "Tensor" else gives.count("Tensor") if _TUPLE.fullmatch(gives) else None
    return Forward(tuple(arguments), outputs)
