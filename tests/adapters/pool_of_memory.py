"""A pool of Tritons in memory, with quick limits, and somebody who looks at it as the loader does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.adapters.triton_pool import TritonPool
from gateway.adapters.triton_pool_member import Limits
from gateway.messages import InferRequest, InferResponse
from gateway.metrics import Metrics
from gateway.testing import MemoryTriton
from gateway.triton_endpoints import parse_rule
from tests import triton_models as models
from tests.contract.inference_servers import DEADLINE_S, ROWS, ask

MODEL = "times"
QUICK = Limits(
    first_pause_s=0.02, longest_pause_s=0.1, fair_timeout_s=0.02, settle_s=0.05, refused_s=0.05, warm_up_s=1.0
)
CONFIG = "backend: 'onnxruntime'"


def memory_triton() -> MemoryTriton:
    """One with two versions of `times` in its repository."""
    server = MemoryTriton()
    for version in (1, 2):
        server.add_model(models.times_signature(MODEL, version), models.times(version))
    return server


class Bench:
    """The pool, its servers by the name of their endpoint (a:1, b:1 and so on), and what they were asked."""

    def __init__(self, count: int, rules: Sequence[str], limits: Limits) -> None:
        names = [f"{letter}:1" for letter in "abcd"[:count]]
        self.servers = {name: memory_triton() for name in names}
        self.metrics = Metrics()
        self.pool = TritonPool(self.servers, self.metrics, [parse_rule(rule) for rule in rules], limits)
        self.a, self.b = self.servers["a:1"], self.servers["b:1"]

    async def look(self) -> None:
        """As the loader does every second; it says nothing when Triton is away."""
        await self.pool.is_ready()
        with contextlib.suppress(Exception):
            await self.pool.serving(MODEL)

    async def infer(self, tenant: str = "", *, version: str = "", timeout_s: float = DEADLINE_S) -> InferResponse:
        """Ask the model for the answer of one row."""
        request = ask(MODEL, version=version, timeout_s=timeout_s)
        return await self.pool.infer(
            InferRequest(request.model, request.inputs, request.outputs, timeout_s, version, tenant=tenant)
        )

    def asked(self) -> dict[str, int]:
        """How many requests have come to each, warm-ups left out."""
        return {name: sum(not each.warm_up for each in server.requests) for name, server in self.servers.items()}

    def states(self) -> list[str]:
        """Of the endpoints, in order."""
        return [each.state for each in self.pool.endpoints]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look until it holds."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await self.look()
                await asyncio.sleep(0.005)

    async def in_service(self) -> None:
        """Look until all endpoints are."""
        await self.until(lambda: set(self.states()) == {"in service"})

    def count(self, name: str, **labels: str) -> int:
        """A metric of the endpoints, named by its end."""
        return int(self.metrics.value(f"triton_endpoint_{name}", **labels))

    async def give_up(self, server: MemoryTriton) -> None:
        """Stop a server, and ask until its endpoint is given up."""
        server.stop()
        ejected = self.states().count("away") + 1
        await self.until(lambda: self.states().count("away") >= ejected)


@contextlib.asynccontextmanager
async def bench(
    count: int = 2, *, rules: Sequence[str] = (), limits: Limits = QUICK, versions: tuple[int, ...] = (1,)
) -> AsyncIterator[Bench]:
    """A pool in which everybody serves these versions; without versions nothing is loaded."""
    place = Bench(count, rules, limits)
    if versions:
        await place.pool.load(MODEL, versions, CONFIG)
        await place.look()
    yield place
    await place.pool.close()


def rows(response: InferResponse) -> NDArray[Any]:
    """What the answer says of the one row that was asked about."""
    return np.asarray(response.outputs["y__0"]) / ROWS
