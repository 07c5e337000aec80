"""libtiff writes to stderr what it dislikes about a picture, past the log: text between lines of JSON, for each one."""

from __future__ import annotations

import ctypes
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def silence_libtiff() -> bool:
    """Have the libtiff that Pillow has loaded say nothing more; False where none is found, as beyond Linux.

    What is wrong with a picture is in its error message all the same.
    """
    try:
        mapped = {line.split(maxsplit=5)[-1] for line in _MAPS.read_text("utf-8", "replace").splitlines()}
    except OSError:
        return False
    found = [path for path in mapped if path.rpartition("/")[2].startswith("libtiff")]
    for path in found:
        library = ctypes.CDLL(path)  # the one that is loaded already
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(library, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
    return bool(found)
