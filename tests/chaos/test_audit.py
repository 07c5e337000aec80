"""The auditor finds what it is there to find, and blames nobody else."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.audit import RESULT, Auditor

SENT = {f"camera-{number % 3}/{number}": float(number) for number in range(12)}


def all_answered() -> Auditor:
    """Twelve snapshots of three cameras, a second apart, each answered a tenth of a second later."""
    auditor = Auditor()
    for key, at in SENT.items():
        auditor.sent(key, key.split("/")[0], at)
        auditor.accepted(key, at + 0.01)
        auditor.seen(key, at + 0.02)
        auditor.answered(key, f"id of {key}", RESULT, at + 0.1)
    return auditor


def one_more(auditor: Auditor, key: str = "camera-0/99", at: float = 20.0) -> str:
    """A snapshot that the broker takes and nobody answers."""
    auditor.sent(key, key.split("/")[0], at)
    auditor.accepted(key, at + 0.01)
    return key


def test_all_is_well() -> None:
    verdict = all_answered().verdict()
    assert (verdict.snapshots, verdict.outcomes) == (12, {RESULT: 12})
    assert (verdict.lost, verdict.wrong_duplicates, verdict.duplicates, verdict.strangers) == ((), (), 0, 0)
    assert verdict.longest_gap_s == {"camera-0": 3.0, "camera-1": 3.0, "camera-2": 3.0}


def test_a_snapshot_without_an_answer_is_lost() -> None:
    auditor = all_answered()
    key = one_more(auditor)
    verdict = auditor.verdict()
    assert verdict.lost == (key,)
    assert verdict.not_passed_on == 1, "and the auditor has not seen it come from the broker"
    auditor.seen(key, 21.0)
    assert auditor.verdict().not_passed_on == 0
    auditor.answered(key, "late", "QUEUE_FULL", 30.0)
    assert auditor.verdict().lost == ()


def test_what_the_broker_never_took_is_not_lost() -> None:
    auditor = all_answered()
    auditor.sent("camera-0/99", "camera-0", 20.0)
    verdict = auditor.verdict()
    assert (verdict.lost, verdict.never_taken, verdict.snapshots) == ((), 1, 12)


def test_a_repeated_answer_is_harmless_with_the_same_id_only() -> None:
    auditor = all_answered()
    auditor.answered("camera-1/4", "id of camera-1/4", RESULT, 9.0)
    assert (auditor.verdict().duplicates, auditor.verdict().wrong_duplicates) == (1, ())
    auditor.answered("camera-1/4", "another id", RESULT, 9.5)
    verdict = auditor.verdict()
    assert (verdict.duplicates, verdict.wrong_duplicates) == (2, ("camera-1/4",))


def test_one_id_for_two_snapshots_is_wrong() -> None:
    auditor = all_answered()
    key = one_more(auditor)
    auditor.answered(key, "id of camera-1/4", RESULT, 21.0)
    assert auditor.verdict().wrong_duplicates == (key,)


def test_a_result_and_an_error_for_one_snapshot_are_told_of() -> None:
    auditor = all_answered()
    auditor.answered("camera-1/4", "id of camera-1/4", "DEADLINE_EXCEEDED", 9.0)
    verdict = auditor.verdict()
    assert (verdict.mixed, verdict.outcomes) == (1, {RESULT: 12})


def test_an_answer_to_what_nobody_has_sent() -> None:
    auditor = all_answered()
    auditor.answered("camera-7/1", "id", RESULT, 9.0)
    assert auditor.verdict().strangers == 1


def test_recovery_counts_from_a_result_for_a_snapshot_sent_since() -> None:
    auditor = all_answered()
    before, after, error = (one_more(auditor, f"camera-0/{at}", at) for at in (90.0, 101.0, 100.5))
    auditor.answered(error, "e", "QUEUE_FULL", 100.6)
    auditor.answered(before, "b", RESULT, 102.0)
    assert auditor.recovered_at(100.0) is None
    auditor.answered(after, "a", RESULT, 103.0)
    assert auditor.recovered_at(100.0) == 103.0


def test_only_what_a_killed_broker_had_not_saved_is_sent_again() -> None:
    auditor = all_answered()
    old, new = one_more(auditor, "camera-0/50", 50.0), one_more(auditor, "camera-0/60", 60.0)
    auditor.sent("camera-0/61", "camera-0", 61.0)  # not acknowledged: its camera has it still
    assert auditor.forgotten(saved_at=59.0, killed_at=62.0) == [new]
    auditor.sent(new, "camera-0", 63.0)
    auditor.answered(new, "id", RESULT, 64.0)
    verdict = auditor.verdict()
    assert verdict.sent_again == 1
    assert verdict.lost == (old,), "the broker had written that one down: it is held against the gateway"


@given(st.lists(st.sampled_from(sorted(SENT))), st.sets(st.sampled_from(sorted(SENT))))
def test_lost_is_what_was_never_answered(answered: list[str], taken: set[str]) -> None:
    auditor = Auditor()
    for key, at in SENT.items():
        auditor.sent(key, key.split("/")[0], at)
    for key in taken:
        auditor.accepted(key, 1.0)
    for key in answered:
        auditor.answered(key, key, RESULT, 2.0)
    verdict = auditor.verdict()
    assert set(verdict.lost) == taken - set(answered)
    assert verdict.duplicates == sum(count - 1 for count in Counter(answered).values())
    assert sum(verdict.outcomes.values()) == len(set(answered))
