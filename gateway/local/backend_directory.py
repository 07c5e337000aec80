"""The backend directory that the embedded Triton starts with, built from the wheel and our two backends."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from gateway.errors import StackError

SHARED_FILE = "edge_backend.py"
BACKENDS = ("onnxruntime", "pytorch")
_CHECKOUT = Path(__file__).resolve().parents[2]
_CHECKOUT_BACKENDS = _CHECKOUT / "triton" / "backends"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def find_wheel() -> Path:
    """The tritonserver folder of the nvidia-pytriton wheel, found without importing pytriton (a slow import)."""
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "tritonserver"
        if (folder / "bin" / "tritonserver").is_file():
            return folder
    raise StackError(
        "the embedded Triton is not installed", fix="Install it with: pip install 'triton-edge-gateway[local]'"
    )


def find_stub(wheel: Path) -> Path:
    """The wheel's stub process for the running Python version."""
    stub = wheel / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        versions = sorted(folder.name for folder in stub.parents[1].iterdir())
        raise StackError(
            f"the embedded Triton cannot run its backends on Python {PYTHON_VERSION}",
            fix=f"Use a virtual environment with one of Python {', '.join(versions)}",
        )
    return stub


def find_sources() -> Path:
    """Our backends: beside this file in an installed wheel, in triton/ of a source checkout."""
    for folder in (Path(__file__).resolve().parent / "backends", _CHECKOUT_BACKENDS):
        if (folder / SHARED_FILE).is_file():
            return folder
    raise StackError(
        "the backends of the embedded Triton are missing from this installation",
        fix="Install the package again: pip install --force-reinstall 'triton-edge-gateway[local]'",
    )


def cache_folder() -> Path:
    """Where this project keeps what it can build again: inside a source checkout, else in the user's cache."""
    return first_private(_caches())


def _caches() -> Iterator[Path]:
    if (_CHECKOUT_BACKENDS / SHARED_FILE).is_file():
        yield _CHECKOUT / ".cache" / "stack"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    if Path(base).is_absolute():
        yield Path(base) / "triton-edge-gateway"


def first_private(folders: Iterable[Path]) -> Path:
    """The first of these that is ours alone, made if need be, for code in it is executed; else a temporary one."""
    return next((folder for folder in folders if _make_private(folder)), None) or _temporary_folder()


def _make_private(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            return False
        folder.chmod(0o700)
        return stat.S_IMODE(folder.stat().st_mode) == 0o700 and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


@functools.cache
def _temporary_folder() -> Path:
    """One for this process, under a name that nobody can guess; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="triton-edge-gateway-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def build_backend_directory(wheel: Path) -> Path:
    """A folder for --backend-directory, made once for each combination of wheel, Python and backends.

    Its name is the digest of all that goes into it and it appears by one rename, so that stacks that
    start at the same time neither wait for each other nor see half of it.
    """
    stub, sources = find_stub(wheel), find_sources()
    target = cache_folder() / "backends" / _digest(wheel, stub, sources)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix="draft-"))
    try:
        _fill(draft, wheel, stub, sources)
        draft.rename(target)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not target.is_dir():  # otherwise another stack was faster, with the same content
            raise
    return target


def _fill(folder: Path, wheel: Path, stub: Path, sources: Path) -> None:
    python = folder / "python"
    python.mkdir()
    # The library must lie here itself (Triton refuses a link out of the folder), the stub must not: it
    # finds its own libraries relative to where it really is.
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(wheel / "backends" / "python" / name, python / name)
    (python / stub.name).symlink_to(stub)
    for backend in BACKENDS:
        (folder / backend).mkdir()
        for path in (sources / SHARED_FILE, *_modules(sources, backend)):
            shutil.copyfile(path, folder / backend / path.name)


def _digest(wheel: Path, stub: Path, sources: Path) -> str:
    digest = hashlib.sha256(f"{stub}\n".encode())
    library = (wheel / "backends" / "python" / "libtriton_python.so").stat()
    digest.update(f"{library.st_size} {library.st_mtime_ns}\n".encode())
    for path in (sources / SHARED_FILE, *(path for backend in BACKENDS for path in _modules(sources, backend))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _modules(sources: Path, backend: str) -> list[Path]:
    return sorted((sources / backend).glob("*.py"))
