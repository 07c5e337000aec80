"""Pictures for whoever looks take their turns, and little of the threads that decode."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.admin.frames import REST, Frames
from gateway.errors import ImageTooLarge, ImageUndecodable, QueueFull
from gateway.live import Live
from tests.flow.builders import jpeg, png, settings

LARGE = jpeg(1200, 900)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def stays() -> bool:
    """Of a client who waits for his picture."""
    return False


async def test_one_at_a_time_and_at_rest_most_of_the_time(threads: ThreadPoolExecutor) -> None:
    frames, begun = Frames(threads, Live(settings())), list[float]()

    def read() -> bytes:
        begun.append(time.monotonic())
        return LARGE

    made = await asyncio.gather(*(frames.draw(read, 480, stays) for _ in range(4)))
    assert len(begun) == 4
    for (start, following), glimpse in zip(itertools.pairwise(begun), made, strict=False):
        assert following - start >= REST * glimpse.took_s


async def test_a_picture_that_cannot_be_shown_keeps_nobody_waiting(threads: ThreadPoolExecutor) -> None:
    frames = Frames(threads, Live(settings(max_image_pixels=100_000)))
    with pytest.raises(ImageUndecodable):
        await frames.draw(lambda: LARGE[:100], 480, stays)
    with pytest.raises(ImageTooLarge):
        await frames.draw(lambda: png(6000, 6000), 480, stays)
    assert (await frames.draw(jpeg, 480, stays)).width == 64


async def test_nothing_is_made_for_who_has_left_nor_at_the_end(threads: ThreadPoolExecutor) -> None:
    frames = Frames(threads, Live(settings()))
    with pytest.raises(ConnectionResetError):
        await frames.draw(lambda: LARGE, 480, lambda: True)
    frames.close()
    with pytest.raises(QueueFull):
        await frames.draw(lambda: LARGE, 480, stays)


async def test_a_picture_is_never_made_larger_nor_endlessly_high(threads: ThreadPoolExecutor) -> None:
    frames = Frames(threads, Live(settings()))
    small = await frames.draw(lambda: jpeg(100, 50), 480, stays)
    high = await frames.draw(lambda: png(10, 5000), 480, stays)
    assert (small.width, small.height) == (100, 50)
    assert (high.width, high.height) == (10, 5000)
    assert len(high.jpeg) < 10_000
