"""What scaled decoding costs in accuracy; only in a checkout of the sources, where the scenes' truth is compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from gateway.bench.records import Accuracy

SCENES = 500
"""All that there are for it: of fewer the figures differ by more than what is looked for."""
TIMEOUT_S = 600
_CHECKOUT = Path(__file__).resolve().parents[2]
_MODULE = _CHECKOUT / "tests" / "bench" / "accuracy.py"
_ASK = """
import msgspec, sys
from tests.bench.accuracy import compare
sys.stdout.buffer.write(b"\\n" + msgspec.json.encode(compare(int(sys.argv[1]))))
"""


class NotMeasured(Exception):
    """Why there is no figure."""


def compare() -> Accuracy:
    """mAP with scaled and with full decoding, as tests/bench/accuracy.py tells it; raises NotMeasured."""
    if not _MODULE.is_file():
        raise NotMeasured("it is measured in a checkout of the sources only")
    environ = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    try:
        command = [sys.executable, "-c", _ASK, str(SCENES)]
        done = subprocess.run(command, cwd=_CHECKOUT, env=environ, capture_output=True, check=True, timeout=TIMEOUT_S)
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Accuracy)
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NotMeasured(f"tests/bench/accuracy.py failed: {' '.join(last)}") from error
    except (subprocess.TimeoutExpired, msgspec.DecodeError, IndexError) as error:
        raise NotMeasured(f"tests/bench/accuracy.py gave no figures: {error}") from error
