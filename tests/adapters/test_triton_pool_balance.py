"""What holds of a pool whatever comes: who is asked, how often, and that it gets well again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import SnapshotError
from gateway.messages import InferRequest, InferResponse
from gateway.testing import MemoryTriton
from tests.adapters.pool_of_memory import CONFIG, MODEL, QUICK, Bench
from tests.contract.inference_servers import DEADLINE_S, ROWS

COUNT = 3
STEPS = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "give up", "stop", "start", "lose", "freeze", "thaw", "release", "look"]),
    st.integers(0, COUNT - 1),
)


class Site:
    """A pool and its servers, which hold back all answers until they are told."""

    def __init__(self) -> None:
        self.place = Bench(COUNT, (), QUICK)
        self.servers = list(self.place.servers.values())
        self.tasks: list[asyncio.Task[InferResponse]] = []
        self.wrongly_asked: list[str] = []
        """The requests for which somebody was asked first who is away, while another one is not."""

    async def begin(self) -> None:
        await self.place.pool.load(MODEL, (1,), CONFIG)
        await self.place.look()
        for server in self.servers:
            server.hold(MODEL)

    def under_way(self) -> list[int]:
        return [self.place.count("outstanding", endpoint=each) for each in self.place.servers]

    async def ask(self) -> int | None:
        """Ask; returns who is asked, None where it is nobody or not one alone."""
        states = self.place.states()
        request = InferRequest(MODEL, {"x": ROWS}, ("y__0",), DEADLINE_S, request_id=str(len(self.tasks)))
        self.tasks.append(asyncio.create_task(self.place.pool.infer(request)))
        await asyncio.sleep(0)
        asked = [index for index, server in enumerate(self.servers) if request in server.requests]
        if len(asked) != 1:  # who could not be reached has been passed over at once
            return None
        away = [then == now == "away" for then, now in zip(states, self.place.states(), strict=True)]
        if away[asked[0]] and any("away" not in pair for pair in zip(states, self.place.states(), strict=True)):
            self.wrongly_asked.append(request.request_id)
        return asked[0]

    async def step(self, what: str, index: int) -> None:
        server: MemoryTriton = self.servers[index]
        match what:
            case "ask":
                await self.ask()
            case "give up":
                if self.tasks:
                    self.tasks[index % len(self.tasks)].cancel()
            case "look":
                await self.place.look()
            case "lose":
                server.lose(MODEL)
            case "release":
                server.release(MODEL)
                server.hold(MODEL)
            case _:
                getattr(server, what)()
        await asyncio.sleep(0)

    async def recover(self) -> None:
        for server in self.servers:
            server.start()
            server.thaw()
            server.release(MODEL)
        async with asyncio.timeout(DEADLINE_S):
            if not await self.place.pool.serving(MODEL):
                await self.place.pool.load(MODEL, (1,), CONFIG)
        await self.place.in_service()
        async with asyncio.timeout(DEADLINE_S):
            results: list[Any] = await asyncio.gather(*self.tasks, return_exceptions=True)
        for result in results:
            assert isinstance(result, InferResponse | SnapshotError | asyncio.CancelledError), result


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=40, deadline=None)
def test_nobody_is_asked_twice_and_all_gets_well_again(steps: list[tuple[str, int]]) -> None:
    async def story() -> None:
        site = Site()
        await site.begin()
        for what, index in steps:
            await site.step(what, index)
        await site.recover()

        for server in site.servers:
            asked = Counter(each.request_id for each in server.requests if not each.warm_up)
            assert set(asked.values()) <= {1}
        assert not site.wrongly_asked
        assert site.under_way() == [0] * COUNT
        assert (await site.place.infer()).model_version == "1"
        await site.place.pool.close()

    asyncio.run(story())


@given(st.lists(st.tuples(st.sampled_from(["ask", "ask", "ask", "release"]), st.integers(0, COUNT - 1)), max_size=40))
@settings(max_examples=40, deadline=None)
def test_the_one_with_the_fewest_under_way_is_asked(steps: list[tuple[str, int]]) -> None:
    async def story() -> None:
        site = Site()
        await site.begin()
        for what, index in steps:
            if what == "release":
                await site.step(what, index)
                await asyncio.sleep(0.001)
                continue
            before = site.under_way()
            asked = await site.ask()
            assert asked is not None
            assert before[asked] == min(before)
        await site.recover()
        await site.place.pool.close()

    asyncio.run(story())
