"""Layouts of the user: Python files in LAYOUTS_DIR, which register themselves with `@layout(...)`.

This is code that will run with the rights of the gateway, so files that anyone may write are refused.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse, ConfigError, SnapshotError
from gateway.layouts.base import (
    AnomalyMap,
    Classes,
    Decode,
    Detections,
    Head,
    Layout,
    Mask,
    Masks,
    Outputs,
    Seen,
    Task,
    Values,
    _registry,
)
from gateway.layouts.boxes import MAX_CANDIDATES

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_TEXT = 200
"""Characters of a foreign exception's text in an error message."""

SETTINGS = ("activation", "box_format", "box_units", "background")
EXAMPLE = '@layout("my-layout", task="object-detection", outputs={"output": ("4+C", "N")})'
SEEN: dict[str, type[Any]] = {
    "object-detection": Detections,
    "image-classification": Classes,
    "instance-segmentation": Detections,
    "anomaly-detection": AnomalyMap,
    "sensor-anomaly": AnomalyMap,
    "sensor-classification": Classes,
    "sensor-regression": Values,
}
"""What a layout of each task gives back."""

_loaded: dict[Path, tuple[str, ...]] = {}


def load_custom_layouts(folder: Path) -> tuple[str, ...]:
    """Import every *.py of the folder in the order of the names; the names of the layouts that they register.

    A folder is read once in a process: asked again, the answer is the same, and changed files need a restart. Raises
    ConfigError with the file and the line for anything that is wrong, and then nothing of the folder is registered.
    """
    try:
        folder = folder.resolve(strict=True)
        if folder in _loaded:
            return _loaded[folder]
        _refuse_writable(folder, folder.stat().st_mode)
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".py" and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"cannot read {folder}: {error.strerror}", where="LAYOUTS_DIR", fix="Name a folder of Python files"
        ) from error
    before = dict(_registry)
    try:
        found = tuple(name for path in paths for name in _load(path))
    except ConfigError:
        for name in _registry.keys() - before.keys():
            del _registry[name]
        raise
    _loaded[folder] = found
    return found


def _load(path: Path) -> list[str]:
    """The names that one file registers."""
    before = set(_registry)
    # A name that no import statement can spell, so that it stands in the way of nothing.
    module = ModuleType(f"layout file {path}")
    module.__file__, module.__package__ = str(path), ""
    try:
        code = compile(_source(path), str(path), "exec", dont_inherit=True)
        sys.modules[module.__name__] = module  # where dataclasses look up the module of a class
        exec(code, module.__dict__)  # noqa: S102 - running the user's file is the purpose  # nosec B102
    except BaseException as error:
        sys.modules.pop(module.__name__, None)
        raise _blamed(error, path) from error
    names = [name for name in _registry if name not in before]
    if not names:
        raise ConfigError("the file registers no layout", where=str(path), fix=f"Put {EXAMPLE} above a function")
    for name in names:
        _check(_registry[name], path)
        _registry[name] = replace(_registry[name], decode=_guarded(_registry[name], path), custom=True)
    return names


def _source(path: Path) -> bytes:
    """What the file holds; checked and read through one handle, so that nobody exchanges it in between."""
    try:
        with path.open("rb") as file:
            _refuse_writable(path, os.fstat(file.fileno()).st_mode)
            return file.read()
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), fix="Let the gateway read it"
        ) from error


def _refuse_writable(path: Path, mode: int) -> None:
    # Kubernetes mounts config maps with mode 777, but read-only.
    if mode & stat.S_IWOTH and not os.statvfs(path).f_flag & os.ST_RDONLY:
        raise ConfigError(
            "anyone on this machine may write it, and the gateway would run it",
            where=str(path),
            fix=f"Run: chmod o-w '{path}'",
        )


def _blamed(error: BaseException, path: Path) -> ConfigError:
    """The failure of a file at its import, with the last of its own lines that took part."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return ConfigError(f"{error.msg}", where=f"{path}:{error.lineno or 1}", fix="Correct the file")
    if isinstance(error, ConfigError):
        return ConfigError(error.message, where=_place(error, path), fix=error.fix)
    return ConfigError(_said(error), where=_place(error, path), fix="Correct the file: it fails when it is imported")


def _place(error: BaseException, path: Path) -> str:
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:MAX_TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check(entry: Layout, path: Path) -> None:
    """Raises ConfigError for what `@layout` was given and cannot work."""
    wrong = ""
    if not isinstance(entry.name, str) or not NAME.fullmatch(entry.name):
        wrong = f"the name {entry.name!r} is not made of small letters, digits, '-', '_' and '.', at most 64"
    elif entry.task not in get_args(Task):
        wrong = f"there is no task {entry.task!r}; known: {', '.join(get_args(Task))}"
    elif not entry.outputs or not all(map(_is_shape, entry.outputs.values())):
        wrong = "outputs gives each role a tuple of sizes and names, such as ('4+C', 'N')"
    elif not all(key in SETTINGS and choices for key, choices in entry.settings.items()):
        wrong = f"settings gives what {', '.join(SETTINGS)} may be, the usual first"
    elif inspect.iscoroutinefunction(entry.decode):
        wrong = "the function is `async def`; it runs in a thread, and only `def` can"
    elif not _takes_two(entry.decode):
        wrong = "the function takes two arguments, outputs and head"
    elif not entry.summary:
        wrong = "the function has no docstring, whose first line says which models it is for"
    if wrong:
        line = getattr(getattr(entry.decode, "__code__", None), "co_firstlineno", 1)
        raise ConfigError(f"layout '{entry.name}': {wrong}", where=f"{path}:{line}", fix=f"Write it as {EXAMPLE}")


def _takes_two(decode: Callable[..., object]) -> bool:
    try:
        inspect.signature(decode).bind({}, None)
    except TypeError:
        return False
    return True


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and all(
        bool(size) if isinstance(size, str) else (type(size) is int and size > 0) for size in shape
    )


# --- while it decodes --------------------------------------------------------------------------------


def _guarded(entry: Layout, path: Path) -> Decode:
    """The user's function, so that its failures are those of one variant's answer."""
    decode: Callable[[Outputs, Head], object] = entry.decode

    def mask(masks: Masks, index: int) -> Mask:
        with _answerable(entry.name, path):
            return _checked_mask(masks.of(index))

    @functools.wraps(entry.decode)
    def guarded(outputs: Outputs, head: Head) -> Seen:
        with _answerable(entry.name, path):
            seen = _checked(decode(outputs, head), entry.task)
        if isinstance(seen, Detections) and seen.masks is not None:  # these are made later, one at a time
            return replace(seen, masks=Masks(functools.partial(mask, seen.masks)))
        return seen

    return guarded


@contextlib.contextmanager
def _answerable(name: str, path: Path) -> Iterator[None]:
    """Turns any failure inside into BackendInvalidResponse with the layout's name and the line in its file."""
    try:
        yield
    except SnapshotError:
        raise
    except BaseException as error:
        raise BackendInvalidResponse(
            f"layout '{name}' failed in {Path(_place(error, path)).name}: {_said(error)}",
            where=_place(error, path),
            fix="Correct the layout, or choose another one in inference.output",
        ) from error


def _checked(seen: object, task: Task) -> Seen:
    """The result in the promised types; raises TypeError or ValueError with what is wrong."""
    if not isinstance(seen, SEEN[task]):
        raise TypeError(f"{task} gives back {SEEN[task].__name__}, not {type(seen).__name__}")
    match seen:
        case Detections(boxes, scores, class_ids, masks):
            count = np.size(scores)
            if count > MAX_CANDIDATES:
                raise ValueError(f"{count} objects, at most {MAX_CANDIDATES} are read")
            return Detections(
                _numbers(boxes, (count, 4), "boxes"), _shares(scores, "scores"), _ids(class_ids, count), masks
            )
        case Classes(class_ids, scores):
            return Classes(_ids(class_ids, np.size(scores)), _shares(scores, "scores"))
        case AnomalyMap(score, heat):
            (whole,) = _shares([score], "score")
            if heat is not None and (np.ndim(heat) != 2 or not np.size(heat)):
                raise ValueError(f"heat has the shape {np.shape(heat)}, not (h, w)")
            return AnomalyMap(float(whole), None if heat is None else _shares(heat, "heat"))
        case Values(values):
            return Values(_numbers(values, (np.size(values),), "values"))
    raise AssertionError(task)


def _numbers(given: Any, shape: tuple[int, ...] | None, name: str) -> NDArray[np.float32]:
    numbers = np.asarray(given, dtype=np.float32)
    if shape is not None and numbers.shape != shape:
        raise ValueError(f"{name} have the shape {numbers.shape}, not {shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} are not all finite")
    return numbers


def _shares(given: Any, name: str) -> NDArray[np.float32]:
    numbers = _numbers(given, None, name)
    if (numbers < 0).any() or (numbers > 1).any():
        raise ValueError(f"{name} do not all lie between 0 and 1")
    return numbers


def _ids(given: Any, count: int) -> NDArray[np.intp]:
    ids = np.asarray(given)
    if ids.shape != (count,) or (ids.size and ids.dtype.kind not in "iu") or (ids < 0).any():
        raise ValueError(f"class_ids are not {count} whole numbers from 0")
    return ids.astype(np.intp)


def _checked_mask(mask: Mask) -> Mask:
    cells = np.asarray(mask.cells)
    if cells.ndim != 2 or cells.dtype != np.bool_:
        raise ValueError(f"the cells of a mask are (h, w) booleans, not {cells.shape} of {cells.dtype}")
    if not (math.isfinite(mask.left + mask.top) and 0 < mask.cell_width < math.inf and 0 < mask.cell_height < math.inf):
        raise ValueError("a mask has a place and a size of cells, in pixels of the model's input")
    return mask
