"""One target under atheris: `python -m tests.fuzz.coverage <target> [options of libFuzzer] [folders of a corpus]`.

A process of its own for each target: atheris instruments what is imported after it, and does not return.
"""

from __future__ import annotations

import sys

import atheris
import structlog


def main() -> None:
    """Fuzz until libFuzzer's options say stop; what it finds ends the process and lies in a file."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # warnings about what a file says
    with atheris.instrument_imports(include=["gateway"]):
        from tests.fuzz.targets import TARGETS

    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
