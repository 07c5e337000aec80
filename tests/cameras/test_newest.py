"""The one place for a picture: a newer one wins, none is seen twice, and nobody waits for ever."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cameras.newest import Newest, Picture

WAIT_S = 30.0


def picture(number: int) -> Picture:
    return Picture(lambda: bytes([number]), float(number))


@given(st.lists(st.booleans(), max_size=60))
def test_whoever_takes_gets_the_newest_once(turns: list[bool]) -> None:
    newest, last = Newest(), None
    for number, puts in enumerate(turns):
        if puts:
            last = picture(number)
            newest.put(last)
        else:
            assert newest.take() is last
            last = None


def test_what_is_handed_over_is_not_passed_over() -> None:
    newest, handed = Newest(), []

    def hand_over() -> None:
        for number in range(3):
            newest.hand_over(picture(number))
            handed.append(number)

    thread = threading.Thread(target=hand_over, daemon=True)
    thread.start()
    taken: list[float | None] = []
    while len(taken) < 3:
        if (found := newest.take()) is not None:
            taken.append(found.taken_at)
            assert len(handed) < len(taken) + 1
    thread.join(WAIT_S)
    assert taken == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("wait", ["hand_over", "rest"])
def test_closing_wakes_who_waits(wait: str) -> None:
    newest = Newest()
    work = {"hand_over": lambda: newest.hand_over(picture(1)), "rest": lambda: newest.rest(10 * WAIT_S)}[wait]
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    newest.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert newest.is_closed()
    assert newest.take() is None


def test_a_defect_of_the_thread_is_not_quiet() -> None:
    newest = Newest()
    newest.put(picture(1))
    newest.fail(ZeroDivisionError("defect"))
    with pytest.raises(ZeroDivisionError):
        newest.take()
