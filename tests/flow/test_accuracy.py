"""That scaled decoding and the fast resizing find what Pillow's pixels of the whole picture show."""

from __future__ import annotations

from tests.bench.accuracy import compare


def test_the_sample_detector_finds_the_same_either_way() -> None:
    """The same each time, since the scenes are. Over all 500 it is below 0.002 (`tests.bench.accuracy`)."""
    accuracy = compare(20)

    assert accuracy.full.map50 > 0.9
    assert abs(accuracy.difference.map50) <= 0.02
    assert abs(accuracy.difference.map50_95) <= 0.02
