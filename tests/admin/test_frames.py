"""Pictures for whoever looks take their turns, and little of the threads that decode."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.admin import frames as frames_module
from gateway.admin.frames import REST, Frames
from gateway.errors import ImageTooLarge, ImageUndecodable, QueueFull
from gateway.flow.glimpse import Glimpse
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


def work(seconds: float) -> None:
    """Keep a thread busy for so long of its own time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def test_one_at_a_time_and_at_rest_most_of_the_time(threads: ThreadPoolExecutor) -> None:
    frames, begun = Frames(threads, Live(settings())), list[float]()

    def read() -> bytes:
        begun.append(time.monotonic())
        work(0.01)
        return LARGE if len(begun) % 2 else b"no picture"

    drawn = (frames.draw(read, 480, stays) for _ in range(4))
    made = await asyncio.gather(*drawn, return_exceptions=True)
    assert [type(each) for each in made] == [Glimpse, ImageUndecodable] * 2
    for start, following in itertools.pairwise(begun):
        assert following - start >= REST * 0.01, "what comes to nothing has cost as much"


async def test_what_a_thread_waits_for_costs_nobody_a_rest_and_no_rest_is_long(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = Frames(threads, Live(settings()))

    def waits() -> bytes:
        time.sleep(0.2)
        return jpeg()

    def works() -> bytes:
        work(0.2)
        return jpeg()

    for read, longest_s in ((waits, 60.0), (works, 0.1)):
        monkeypatch.setattr(frames_module, "LONGEST_REST_S", longest_s)
        started = time.monotonic()
        await frames.draw(read, 480, stays)
        await frames.draw(jpeg, 480, stays)
        assert time.monotonic() - started < REST * 0.2


async def test_who_would_wait_too_long_is_told_so(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "WAIT_S", 0.05)
    frames, go_on = Frames(threads, Live(settings())), threading.Event()

    def read() -> bytes:
        go_on.wait(20)
        return jpeg()

    first = asyncio.create_task(frames.draw(read, 480, stays))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await frames.draw(jpeg, 480, stays)
    go_on.set()
    assert (await first).width == 64
    assert (await frames.draw(jpeg, 480, stays)).width == 64


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
