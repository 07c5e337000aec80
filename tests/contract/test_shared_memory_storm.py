"""Shared memory under a real Triton that is frozen, goes on and comes back: no camera gets the answer of another."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

from gateway.adapters import memory_slots, triton_shared_memory
from gateway.adapters.triton import TransferEvents, TritonServer
from gateway.errors import BackendTimeout, BackendUnavailable, ModelUnavailable
from gateway.local.tritonserver import EmbeddedTriton
from gateway.messages import InferRequest
from tests.contract.inference_servers import DEADLINE_S, TritonControls
from tests.triton_models import numpy_type, types_signature

SIGNATURE = types_signature("types")
STEP = 2**14
"""Numbers in the smallest tensor; the largest fills half of the memory."""
ROOM = 2**20
CAMERAS = 6
TIMEOUT_S = 0.4


class Storm:
    """Cameras that ask at random, each about a tensor full of a number that no other one has."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.ways: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.answered = 0
        self.over = False
        self._rng = rng
        self._number = 0
        self.server = TritonServer(
            url,
            shared_memory_bytes=ROOM,
            transfers=TransferEvents(lambda way: self.ways.update([way]), lambda why: self.ways.update([why])),
        )

    async def camera(self) -> None:
        """Ask until the storm is over: of several sizes, now and then twice as dual does, or given up half way."""
        while not self.over:
            self._number += 1
            number = float(self._number)
            shape = (self._rng.choice((2, 3, 5, 8)) * STEP,)
            array = await asyncio.to_thread(self.server.tensor, shape, np.dtype(np.float32))
            array[...] = number
            inputs = {spec.name: np.zeros(1, numpy_type(spec)) for spec in SIGNATURE.inputs} | {"in_FP32": array}
            request = InferRequest("types", inputs, ("out_FP32",), TIMEOUT_S)
            asked = [asyncio.create_task(self._ask(request, number)) for _ in range(self._rng.choice((1, 2)))]
            if self._rng.random() < 0.1:
                await asyncio.sleep(0.002)
                asked[-1].cancel()
            del array, inputs, request
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*asked)

    async def _ask(self, request: InferRequest, number: float) -> None:
        try:
            response = await self.server.infer(request)
        except (BackendTimeout, BackendUnavailable, ModelUnavailable) as error:
            self.failed[type(error).__name__] += 1
            await asyncio.sleep(0.01)
            return
        answer = response.outputs["out_FP32"]
        assert answer.shape == request.inputs["in_FP32"].shape
        assert (answer == number).all()
        self.answered += 1

    async def until_by_memory(self, more: int) -> None:
        """Wait until so many more have gone by shared memory."""
        wanted = self.ways["shared_memory"] + more
        async with asyncio.timeout(DEADLINE_S):
            while self.ways["shared_memory"] < wanted:
                await asyncio.sleep(0.01)


async def weather(storm: Storm, controls: TritonControls, rounds: int = 1) -> None:
    """Freeze Triton for longer than the time-out, and kill it, in between times in which all goes by memory."""
    for round_ in range(rounds):
        await storm.until_by_memory(60)
        await asyncio.to_thread(controls.freeze)
        await asyncio.sleep(2 * TIMEOUT_S)
        controls.thaw()
        await storm.until_by_memory(60)
        if round_ % 2 == 0:
            await asyncio.to_thread(controls.kill)
            await asyncio.to_thread(controls.start)
            async with asyncio.timeout(DEADLINE_S):
                while not await storm.server.is_ready():
                    await asyncio.sleep(0.01)
            await storm.server.load("types")
    await storm.until_by_memory(60)


@pytest.mark.triton
async def test_no_camera_gets_the_answer_of_another(triton: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are used again far too early here, so that they are while Triton still reads what was given up."""
    monkeypatch.setattr(triton_shared_memory, "QUARANTINE_S", 0.1)
    monkeypatch.setattr(memory_slots, "IDLE_S", 0.02)
    storm, controls = Storm(triton.grpc_url, random.Random(7)), TritonControls(triton)
    await storm.server.load("types")
    cameras = [asyncio.create_task(storm.camera()) for _ in range(CAMERAS)]
    try:
        await weather(storm, controls)
    finally:
        storm.over = True
        await asyncio.gather(*cameras)

    assert storm.failed["BackendTimeout"]
    assert storm.ways["lost"] + storm.failed["BackendUnavailable"]
    assert storm.server.shared_memory_slots["leased"] == 0
    await storm.server.close()
