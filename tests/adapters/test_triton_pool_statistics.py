"""What a pool counts goes on where an endpoint goes, and does not jump where it comes back."""

from __future__ import annotations

from tests.adapters.pool_of_memory import CONFIG, MODEL, Bench, bench


async def count(place: Bench) -> int:
    """Requests that the pool says it has answered."""
    return (await place.pool.statistics(MODEL)).success_count


async def test_the_count_does_not_fall_when_one_goes_nor_jump_when_it_is_back() -> None:
    async with bench() as place:
        for _ in range(6):
            await place.infer()
        assert await count(place) == 6
        kept = place.b._model(MODEL).loaded
        await place.give_up(place.b)
        before = await count(place)
        assert before >= 6
        await place.infer()
        assert await count(place) == before + 1

        place.b.start()
        place.b._model(MODEL).loaded = kept  # it had only been out of reach, and has its whole history
        await place.in_service()
        warm_up = 1
        assert await count(place) == before + 1 + warm_up


async def test_the_history_of_one_that_comes_later_is_no_news() -> None:
    async with bench(versions=()) as place:
        await place.b.load(MODEL, (1,), CONFIG)
        await place.give_up(place.a)
        await place.look()
        for _ in range(3):
            await place.infer()
        assert await count(place) == 3
        place.a.start()
        await place.a.load(MODEL, (1,), CONFIG)
        for _ in range(50):
            await place.a.infer(place.b.requests[0])
        await place.in_service()
        assert await count(place) <= 4


async def test_one_that_has_begun_anew_counts_from_there() -> None:
    async with bench() as place:
        for _ in range(6):
            await place.infer()
        assert await count(place) == 6
        for server in place.servers.values():
            await server.unload(MODEL)
            await server.load(MODEL, (1,))
        for _ in range(4):
            await place.infer()
        assert await count(place) == 10
