"""Rich is for what a person looks at; libraries that take it wherever it is installed do without it here.

structlog imports it for tracebacks that no log of ours has, httpx for a command line of its own: megabytes of every
gateway, and a part of the start of every command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TAKERS = ("structlog", "httpx")
HIDDEN = ("rich", "pygments")


def install() -> None:
    """From now on these libraries find no rich while they are imported; everybody else does."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in TAKERS else None
        if spec is not None and spec.loader is not None:
            spec.loader = _WithoutRich(spec.loader)
        return spec


class _WithoutRich(Loader):
    """Imports a module while `import rich` raises ImportError, and steps aside."""

    def __init__(self, usual: Loader) -> None:
        self._usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._usual
        if module.__spec__ is not None:
            module.__spec__.loader = self._usual
        before = {name: sys.modules.pop(name) for name in HIDDEN if name in sys.modules}
        sys.modules.update(dict.fromkeys(HIDDEN))  # type: ignore[arg-type]
        try:
            self._usual.exec_module(module)
        finally:
            for name in HIDDEN:
                del sys.modules[name]
            sys.modules.update(before)
