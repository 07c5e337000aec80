"""The threads for what blocks: files, names, certificates, trimming memory."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

SIZE = 6


def use_fixed_threads() -> None:
    """Give the running loop a pool whose threads are all there from the start.

    The usual one starts another thread at the first moment in which all are busy, hours after the start; whoever
    watches the number of threads for leaks could not tell that from one.
    """
    pool = ThreadPoolExecutor(SIZE, thread_name_prefix="blocking")
    all_there = threading.Barrier(SIZE)
    for _ in range(SIZE):
        pool.submit(all_there.wait)
    asyncio.get_running_loop().set_default_executor(pool)
