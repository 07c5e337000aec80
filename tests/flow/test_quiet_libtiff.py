"""A damaged TIFF is an error message, not text in the middle of the log."""

from __future__ import annotations

import subprocess
import sys

from tests.command_line import ROOT

PROGRAM = """
import contextlib, io, sys
from PIL import Image
from gateway.flow import pictures
from gateway.flow.quiet_libtiff import silence_libtiff

assert "quiet" not in sys.argv or silence_libtiff()
made = io.BytesIO()
Image.effect_noise((64, 64), 50).save(made, "TIFF", compression="tiff_lzw")
damaged = bytearray(made.getvalue())
for place in range(100, 2000, 7):
    damaged[place] ^= 0x5A
with contextlib.suppress(*pictures.DAMAGED):
    Image.open(io.BytesIO(damaged)).load()
"""


def said(*arguments: str) -> str:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr


def test_libtiff_is_silent() -> None:
    assert said()
    assert said("quiet") == ""
