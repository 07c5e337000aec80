"""What the start has made costs no pause later, and what comes after is still collected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, time, weakref
import gateway.app
from gateway.allocator import set_start_aside

class Link:
    pass

def full_s():
    started = time.process_time()
    gc.collect()
    return time.process_time() - started

gc.collect()
before = min(full_s() for _ in range(3))
set_start_aside()
after = min(full_s() for _ in range(3))
first, second = Link(), Link()
first.other, second.other = second, first
gone = weakref.ref(first)
del first, second
gc.collect()
assert gone() is None, "a cycle is not collected any more"
assert after < before / 4, f"a full collection takes {after:.4f} s, {before:.4f} s before"
"""


def test_a_full_collection_is_short_after_the_start_and_still_finds_cycles() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
