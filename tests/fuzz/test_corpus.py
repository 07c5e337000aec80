"""What the fuzzers found or start from is read or refused, quickly; and so is what lies near to it."""

from __future__ import annotations

import time
from random import Random

import pytest
import structlog

from tests.fuzz.mutations import CORPUS, corpus, mutate
from tests.fuzz.targets import TARGETS

SECONDS_A_MESSAGE = 2.0
"""Twice what a message may take in service, for a busy machine."""
LEAST_INPUTS = 100
SECONDS_A_TARGET = 1.0
SEED = 5
LIBRARIES_WARN = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
"""Of doubtful metadata in a picture, and of odd escapes in a config.pbtxt; in service nobody sees either."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    """A fuzzed model.yaml is full of what is worth a warning."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def run(target: str, data: bytes, what: str) -> None:
    """Run it, saying which bytes it was that failed."""
    began = time.process_time()
    try:
        TARGETS[target](data)
    except Exception as error:
        error.add_note(f"{target}, {what}: {data[:2000]!r}")
        raise
    assert time.process_time() - began < SECONDS_A_MESSAGE, what


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


@LIBRARIES_WARN
@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_is_read_or_refused(target: str) -> None:
    for name, data in corpus(target).items():
        run(target, data, name)


@LIBRARIES_WARN
@pytest.mark.parametrize("target", TARGETS)
def test_what_lies_near_the_corpus_is_read_or_refused(target: str) -> None:
    """The same inputs in the same order each time, more of them where there is time."""
    random, kept = Random(SEED), list(corpus(target).values())
    until = time.monotonic() + SECONDS_A_TARGET
    number = 0
    while number < LEAST_INPUTS or time.monotonic() < until:
        run(target, mutate(random, random.choice(kept), kept), f"seed {SEED}, input {number}")
        number += 1
