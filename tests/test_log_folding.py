"""A burst of one event is a few lines and a count, and nothing is lost or mistaken for another."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gateway import log_folding
from gateway.log_folding import FIRST, FOLLOWING_WINDOW_S, KINDS, WINDOW_S, Event, Folding, Kind
from gateway.log_foreign import Unformatted
from gateway.log_memory import LEVELS, TEXT_LENGTH
from gateway.logs import FOLDING, LEVEL, count_lines
from gateway.metrics import Metrics
from tests.command_line import ROOT
from tests.harness import site, until
from tests.log_streams import logging_into_a_string

log = structlog.get_logger("gateway.test")


class Hand:
    """A clock that is turned by hand, and calls what is due."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], None]:
        one = self.now + seconds, call
        self.due.append(one)
        return lambda: self.due.remove(one) if one in self.due else None

    def pass_s(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [each for each in self.due if each[0] <= end]:
            first = min(due, key=lambda each: each[0])
            self.due.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end


def test_a_burst_is_its_first_lines_and_a_count() -> None:
    with logging_into_a_string() as stream:
        for number in range(1000):
            log.warning("No result", code="IMAGE_INVALID", result_id=f"r{number}", device_id=f"cam-{number}")
        assert [each["result_id"] for each in stream.entries] == [f"r{number}" for number in range(FIRST)]
        FOLDING.end()
        last = stream.entries[-1]
        assert (last["repeated"], last["result_id"], last["code"]) == (1000 - FIRST, "r999", "IMAGE_INVALID")
        assert (last["event"], last["level"]) == ("No result", "warning")
        assert last["for_s"] >= 0
        assert len(stream.entries) == FIRST + 1


async def test_a_quiet_log_says_the_count_when_the_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_folding, "WINDOW_S", 0.1)
    with logging_into_a_string() as stream:
        for _ in range(20):
            log.error("Odd")
        await until(lambda: len(stream.entries) > FIRST, "the count")
        assert stream.entries[-1]["repeated"] == 20 - FIRST


def test_errors_of_different_kinds_do_not_fold_together() -> None:
    def fail(kind: type[Exception]) -> None:
        try:
            raise kind("no")
        except kind as error:
            log.error("A defect", exc_info=error)

    def fail_elsewhere() -> None:
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("A defect")

    def say(**keys: object) -> None:
        log.error("A defect", **keys)

    kinds: list[Callable[[], None]] = [
        lambda: fail(ValueError),
        lambda: fail(KeyError),
        fail_elsewhere,
        lambda: say(code="A"),
        lambda: say(code="B"),
        lambda: say(model="one"),
        lambda: say(model="two"),
        lambda: say(reason="the broker is away: 'a' at 10.0.0.1"),
        lambda: say(reason="the disk is full: '/var/x'"),
        lambda: log.warning("A defect"),
        lambda: structlog.get_logger("gateway.other").error("A defect"),
    ]
    with logging_into_a_string() as stream:
        for _ in range(20):
            for kind in kinds:
                kind()
        assert len(stream.entries) == FIRST * len(kinds)


def test_what_varies_in_a_reason_does_not_defeat_it() -> None:
    with logging_into_a_string() as stream:
        for number in range(100):
            log.error("Refused", reason=f"topic 'a/{number}' of 10.0.0.{number}:1883 has {number} bytes\nand more")
        assert len(stream.entries) == FIRST


def test_libraries_are_folded_too() -> None:
    library = logging.getLogger("some.library")

    def other(number: int) -> None:
        library.warning("%d of %s are gone", number, "parts")

    with logging_into_a_string() as stream:
        for number in range(100):
            library.warning("%d of %s failed", number, "parts")
            library.error(f"request {number} to '{number}' failed")  # as some do
            other(number)
        FOLDING.end()
        assert Counter(each["event"].split()[0] for each in stream.entries if "repeated" not in each) == {
            **{str(number): 2 for number in range(FIRST)},
            "request": FIRST,
        }
        assert [each["repeated"] for each in stream.entries if "repeated" in each] == [100 - FIRST] * 3


def test_the_count_of_a_library_s_lines_is_said_with_the_last_of_them() -> None:
    library = logging.getLogger("some.library")

    def fail(number: int) -> None:
        try:
            raise OSError(number)
        except OSError:
            library.exception("%s is away", "disk")

    says: list[Callable[[int], None]] = [
        lambda number: library.warning("%s failed with %d", f"part {number}", number),
        lambda number: library.warning("%(a)s failed %(b).1f times", {"a": "it", "b": number, "c": object()}),
        lambda number: library.warning("refused %d %%"),
        lambda number: library.error("failed: %s, %r", ValueError(number), "x"),
        fail,
    ]
    with logging_into_a_string() as stream:
        for number in range(20):
            for say in says:
                say(number)
        FOLDING.end()
        counts = [each for each in stream.entries if "repeated" in each]
    assert [each["event"] for each in counts] == [
        "part 19 failed with 19", "it failed 19.0 times", "refused %d %%", "failed: <ValueError>, 'x'", "disk is away",
    ]  # fmt: skip
    assert {each["repeated"] for each in counts} == {20 - FIRST}
    assert counts[-1]["error"] == "OSError"


class Heavy:
    """Something that a library logs."""

    def __str__(self) -> str:
        raise AssertionError("it is formatted")


@given(
    st.one_of(st.text(), st.sampled_from(["%s", "%d %s", "%(a)s", "%s" * 40, "%c", "%s %*d", "x" * 5000])),
    st.one_of(
        st.lists(
            st.one_of(
                st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary(), st.just(1 << 9999),
                st.builds(Heavy), st.just("x" * 5000), st.lists(st.integers()),
            ), max_size=30,
        ).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.just("a")), st.builds(Heavy)),
        st.none(),
    ),
)  # fmt: skip
def test_whatever_a_library_logs_little_of_it_is_kept_and_something_is_said(text: str, arguments: object) -> None:
    assert len(str(Unformatted(text, arguments))) <= TEXT_LENGTH


def test_what_a_library_has_logged_is_not_held() -> None:
    library = logging.getLogger("some.library")

    class Part:
        pass

    def fail() -> weakref.ref[Part]:
        part = Part()
        library.warning("%s failed, %s", "it", part)
        return weakref.ref(part)

    with logging_into_a_string():
        held = [fail() for _ in range(FIRST + 10)]
        gc.collect()
        assert not [each for each in held if each() is not None]


@pytest.mark.parametrize("raised", ["chosen", "configured", "followed"])
def test_what_was_folded_is_said_before_the_level_rises(raised: str) -> None:
    with logging_into_a_string() as stream:
        for _ in range(20):
            log.info("A burst")
        if raised == "chosen":
            LEVEL.choose("warning")
        elif raised == "configured":
            LEVEL.configure("warning")
        else:
            LEVEL.follow("warning")
        log.info("Not written")
        lines = stream.of("A burst")
        assert (len(lines), lines[-1]["repeated"]) == (FIRST + 1, 20 - FIRST)
        FOLDING.end()
        assert len(stream.of("A burst")) == len(lines)


def test_a_lower_level_ends_no_burst() -> None:
    with logging_into_a_string() as stream:
        for _ in range(20):
            log.info("A burst")
        LEVEL.choose("debug")
        assert len(stream.of("A burst")) == FIRST


def test_debug_lines_are_all_written() -> None:
    with logging_into_a_string("debug") as stream:
        for _ in range(100):
            log.debug("Published a result")
            logging.getLogger("some.library").debug("x")
        assert len(stream.entries) == 200


def test_each_line_is_counted_folded_or_not() -> None:
    with logging_into_a_string() as stream:
        metrics = Metrics()
        count_lines(lambda level: metrics.log_events.labels(level).inc)
        before = {level: metrics.value("log_events_total", level=level) for level in LEVELS}  # of other tests
        for _ in range(100):
            log.warning("A burst")
            logging.getLogger("some.library").critical("x")
        log.debug("Not written at this level")
        FOLDING.end()
        more = {level: metrics.value("log_events_total", level=level) - before[level] for level in LEVELS}
        assert more == {"debug": 0, "info": 0, "warning": 100, "error": 100}
        assert len(stream.entries) == 2 * (FIRST + 1)


def test_a_folded_exception_holds_no_frame() -> None:
    class Picture:
        pass

    def fail() -> weakref.ref[Picture]:
        picture = Picture()
        try:
            raise ValueError("no")
        except ValueError as error:
            log.error("A defect", exc_info=error)
        return weakref.ref(picture)

    with logging_into_a_string() as stream:
        held = [fail() for _ in range(10)]
        gc.collect()
        assert not [each for each in held if each() is not None]
        FOLDING.end()
        assert (stream.entries[-1]["error"], stream.entries[-1]["repeated"]) == ("ValueError", 10 - FIRST)


def test_a_burst_that_goes_on_is_two_lines_a_window_and_a_new_one_is_written_again() -> None:
    hand, said = Hand(), list[int]()
    folding = Folding(lambda _kind, _event, times, _for_s: said.append(times), hand, hand.later)
    written = [0]

    def burst(seconds: float) -> int:
        before = written[0]
        for _ in range(round(seconds * 4)):
            written[0] += folding.admits(("l", "error", "x"), {})
            hand.pass_s(0.25)
        return written[0] - before

    assert burst(WINDOW_S) == FIRST
    assert burst(3 * FOLLOWING_WINDOW_S) == 3
    assert len(said) == 4
    hand.pass_s(3 * FOLLOWING_WINDOW_S)
    assert not hand.due
    assert burst(2) == FIRST
    hand.pass_s(FOLLOWING_WINDOW_S)
    assert written[0] + sum(said) == 4 * (WINDOW_S + 3 * FOLLOWING_WINDOW_S + 2)


@given(st.lists(st.tuples(st.integers(0, 2 * KINDS), st.sampled_from([0.0, 0.0, 0.0, 0.5, 11.0, 70.0])), max_size=400))
def test_every_line_is_written_or_counted(steps: list[tuple[int, float]]) -> None:
    hand, said = Hand(), Counter[Kind]()

    def again(kind: Kind, event: Event, times: int, for_s: float) -> None:
        assert times > 0
        assert for_s >= 0
        assert event["kind"] == kind
        said[kind] += times

    folding, given_in = Folding(again, hand, hand.later), Counter[Kind]()
    written = Counter[Kind]()
    for number, pause_s in steps:
        kind: Kind = (number % 7 if number % 2 else number,)
        given_in[kind] += 1
        written[kind] += folding.admits(kind, {"kind": kind})
        assert len(folding) <= KINDS
        hand.pass_s(pause_s)
    folding.end()
    assert written + said == given_in
    assert len(folding) == 0


def test_the_end_of_the_process_says_what_was_folded() -> None:
    program = """
import structlog
from gateway.logs import configure_logging
configure_logging("info", "json")
for _ in range(50):
    structlog.get_logger("x").warning("A burst")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f'"repeated": {50 - FIRST}' in done.stderr.splitlines()[-1]


async def test_thousands_of_refused_messages_are_a_few_lines(tmp_path: Path) -> None:
    with logging_into_a_string() as stream:
        async with site(tmp_path) as place:
            for number in range(1000):
                place.snapshot(b"\xff\xd8 no picture %d" % number)
                place.snapshot(b"{ no json %d" % number)
            await until(lambda: len(place.errors) == 2000, "2000 errors")
            assert place.metrics.value("log_events_total", level="warning") >= 2000
        FOLDING.end()
        lines = stream.of("No result for a snapshot")
        codes = {each["error"]["code"] for each in place.errors}
        assert {each["code"] for each in lines} == codes
        assert len(lines) == (FIRST + 1) * len(codes)
        assert sum(each.get("repeated", 1) for each in lines) == 2000
