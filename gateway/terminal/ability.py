"""What the other end of a stream can do."""

from __future__ import annotations

import os
from typing import TextIO

DUMB = ("", "dumb", "unknown")


def can_draw(stream: TextIO | None) -> bool:
    """Whether it is a terminal on which more can be done than writing one line after the other."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in DUMB
