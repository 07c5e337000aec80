"""The number of threads does not grow with what they are asked to do at the same time."""

from __future__ import annotations

import asyncio
import threading

from gateway.thread_pool import SIZE, use_fixed_threads


async def test_all_threads_are_there_from_the_start() -> None:
    before = threading.active_count()
    use_fixed_threads()
    assert threading.active_count() == before + SIZE
    busy, done = threading.Barrier(SIZE + 1), threading.Event()

    def work() -> None:
        busy.wait()
        done.wait()

    tasks = [asyncio.create_task(asyncio.to_thread(work)) for _ in range(SIZE)]
    await asyncio.sleep(0)
    while busy.n_waiting < SIZE:
        await asyncio.sleep(0)
    busy.wait()
    more = [asyncio.create_task(asyncio.to_thread(threading.active_count)) for _ in range(SIZE)]
    await asyncio.sleep(0)
    done.set()
    await asyncio.gather(*tasks)
    assert {await count for count in more} == {before + SIZE}
