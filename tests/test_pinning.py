"""Threads run on the cores that LOOP_CPUS and DECODER_CPUS name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import affinity
from gateway.affinity import MOST_THREADS, Cores, allowed_cpus, as_list, cores_for, share
from gateway.cpu_list import cpu_list
from gateway.errors import ConfigError
from tests.flow.builders import settings

EIGHT = tuple(range(8))


@given(st.lists(st.integers(0, 63), unique=True, min_size=1), st.integers(1, 16))
def test_cores_are_shared_out_evenly_and_each_worker_has_one(cpus: list[int], workers: int) -> None:
    shares = [share(tuple(cpus), index, workers) for index in range(workers)]
    assert all(shares)
    assert {cpu for each in shares for cpu in each} == set(cpus)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if len(cpus) >= workers:
        assert sum(map(len, shares)) == len(cpus), "no core is two workers'"


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_list_of_cores_reads_as_it_is_written(cpus: set[int]) -> None:
    assert cpu_list(as_list(cpus)) == tuple(sorted(cpus))


def test_without_settings_nothing_is_pinned() -> None:
    assert cores_for(settings(), allowed=EIGHT) == Cores((), (), MOST_THREADS)


@pytest.mark.parametrize(
    ("more", "count", "threads"),
    [
        ({}, 1, 4),
        ({}, 4, 2),
        ({}, 16, 1),
        ({"decoder_cpus": (1, 2, 3)}, 1, 3),
        ({"decoder_threads": 7}, 4, 7),
    ],
)
def test_as_many_threads_decode_as_there_are_cores_for_them(more: dict[str, Any], count: int, threads: int) -> None:
    assert cores_for(settings(**more), 0, count, EIGHT).threads == threads


@pytest.mark.parametrize("name", ["loop_cpus", "decoder_cpus"])
def test_a_core_that_may_not_be_used_is_refused_with_those_that_may(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        cores_for(settings(**{name: (1, 9)}), allowed=(0, 1, 2, 5))
    assert refused.value.where == name.upper()
    assert refused.value.message == "this process may not use core 9; it may use 0-2,5"


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What a thread of its own gives; pinned, it takes no other with it."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(work()))
    thread.start()
    thread.join()
    return got[0]


@pytest.mark.skipif(len(allowed_cpus()) < 2, reason="there is one core only")
@pytest.mark.parametrize("decoders", [True, False])
def test_the_loop_and_the_decoders_run_where_they_should(decoders: bool) -> None:
    first, second, *_ = allowed_cpus()
    given = {"loop_cpus": (first,), **({"decoder_cpus": (second,)} if decoders else {})}
    cores = cores_for(settings(**given))

    def run() -> tuple[set[int], set[int]]:
        cores.pin_loop()
        with cores.decoding_pool() as pool:
            return os.sched_getaffinity(0), pool.submit(os.sched_getaffinity, 0).result()

    loop, decoding = in_a_thread(run)
    assert loop == {first}
    assert decoding == ({second} if decoders else set(allowed_cpus())), "not the loop's, from which it was started"


@pytest.mark.skipif(len(allowed_cpus()) < 2, reason="there is one core only")
@pytest.mark.parametrize("isolated", [True, False])
def test_each_decoder_has_an_isolated_core_for_itself(
    isolated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = allowed_cpus()[:2]
    listed = tmp_path / "isolated"
    listed.write_text(as_list(cpus) + "\n" if isolated else "\n")
    monkeypatch.setattr(affinity, "ISOLATED", listed)
    both = threading.Barrier(2)

    def where() -> frozenset[int]:
        both.wait(10)  # or one thread would do both
        return frozenset(os.sched_getaffinity(0))

    with cores_for(settings(decoder_cpus=cpus)).decoding_pool() as pool:
        found = {each.result() for each in (pool.submit(where), pool.submit(where))}
    assert found == ({frozenset({cpu}) for cpu in cpus} if isolated else {frozenset(cpus)})
