"""The regression guard: the gateway takes no more instructions than it did, and the guard sees it when it does."""

from __future__ import annotations

import pytest

from tests.bench import guard
from tests.bench.guard import TOLERANCE, Unsupported, Verdict


def test_the_gateway_has_not_become_slower_and_one_needless_resize_would_be_seen() -> None:
    try:
        tool = guard.find_tool()
    except Unsupported as reason:
        pytest.skip(f"instructions cannot be counted: {reason}")
    if tool != "perf":
        pytest.skip("there is only callgrind, which takes a minute: make guard")
    script = guard.count("script", tool)
    verdict = Verdict(tool, guard.count("gateway", tool) / script, guard.expected()[tool])
    assert not verdict.slower, str(verdict)
    assert Verdict(tool, guard.count("slower", tool) / script, guard.expected()[tool]).slower


def test_a_verdict_says_what_to_do() -> None:
    assert not Verdict("perf", 0.25, 0.25).slower
    assert not Verdict("perf", 0.25 * (1 + TOLERANCE) - 0.001, 0.25).slower
    slower = Verdict("perf", 0.25 * (1 + TOLERANCE) + 0.001, 0.25)
    assert slower.slower
    assert "+6.4%. SLOWER" in str(slower)
    assert "--update" in str(Verdict("perf", 0.2, 0.25))
    assert "Faster" in str(Verdict("perf", 0.2, 0.25))
    assert not Verdict("callgrind", 0.5, None).slower
    assert "nothing is expected yet" in str(Verdict("callgrind", 0.5, None))
