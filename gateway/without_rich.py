"""Rich is for what a person looks at; libraries that take it wherever it is installed can do without it in `serve`.

structlog imports it for tracebacks that no log of ours has, httpx for a command line of its own: 4 MB of every gateway,
and a part of its start.
"""

from __future__ import annotations

import importlib
import sys
import threading

HIDDEN = ("rich", "pygments")


def import_without_rich(name: str) -> None:
    """Import a module as if there were no rich; for the start of a process of ours, which nobody shares yet.

    Where that is not so (another thread may need rich now, or it is there already) this is a plain import.
    """
    if threading.active_count() > 1 or name in sys.modules or any(each in sys.modules for each in HIDDEN):
        importlib.import_module(name)
        return
    sys.modules.update(dict.fromkeys(HIDDEN))  # type: ignore[arg-type] # None: `import` raises ImportError
    try:
        importlib.import_module(name)
    finally:
        for each in HIDDEN:
            del sys.modules[each]
