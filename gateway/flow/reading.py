"""7: where answers are read: on the event loop, or in threads when that takes long or is a user's own code."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

from gateway.errors import BackendInvalidResponse
from gateway.flow.postprocess import postprocess
from gateway.messages import Answered, Predicted, PreparedInput, Window

CUSTOM_THREADS = min(4, os.cpu_count() or 1)
HEAVY_TASKS = frozenset(("instance-segmentation", "anomaly-detection"))
"""Tasks whose answers are outlines, which take milliseconds to draw."""


class Reader:
    """Turns answers into predictions; layouts of the user's run in threads of its own, which they may hold for ever."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._custom_threads = ThreadPoolExecutor(CUSTOM_THREADS, thread_name_prefix="custom-layout")
        self._overdue = 0

    async def read(self, answered: Answered) -> Predicted:
        """The predictions of every answer; raises BackendInvalidResponse when a layout of the user's does not end."""
        model = answered.job.model.spec
        if model.layout.custom:
            return await self._read_custom(answered)
        if model.layout.task in HEAVY_TASKS or any(given.count > 1 for given in answered.inputs.values()):
            return await asyncio.get_running_loop().run_in_executor(self._threads, postprocess, answered)
        return postprocess(answered)

    @property
    def stuck(self) -> bool:
        """Whether a layout of the user's has not come back."""
        return self._overdue > 0

    def close(self) -> None:
        """Read no more; what runs is not waited for."""
        self._custom_threads.shutdown(wait=False, cancel_futures=True)

    async def _read_custom(self, answered: Answered) -> Predicted:
        name = answered.job.model.spec.layout.name
        fix = "Make it faster, or choose another one in inference.output"
        if self._overdue >= CUSTOM_THREADS:
            raise BackendInvalidResponse(f"layout '{name}' cannot run: others have not come back", fix=fix)
        loop = asyncio.get_running_loop()
        work = self._custom_threads.submit(postprocess, _without_pictures(answered))
        reading = asyncio.wrap_future(work)
        done, _ = await asyncio.wait([reading], timeout=max(0.0, answered.job.deadline_at - time.monotonic()))
        if done:
            return reading.result()
        if not work.cancel():
            self._overdue += 1
            work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._come_back))
        raise BackendInvalidResponse(f"layout '{name}' was not done within the deadline", fix=fix)

    def _come_back(self) -> None:
        self._overdue -= 1


def _without_pictures(answered: Answered) -> Answered:
    """Without the input tensors, which a layout that never comes back would keep in memory."""
    if isinstance(answered.job.snapshot, Window):
        return answered
    inputs = {name: PreparedInput({}, given.geometries) for name, given in answered.inputs.items()}
    return replace(answered, inputs=inputs)
