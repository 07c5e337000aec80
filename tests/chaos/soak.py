"""`python -m tests.chaos.soak`: half of the capacity for an hour. Memory stays flat, descriptors and threads constant.

Exit code 1 when they do not, or when a snapshot was left without an answer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tests.chaos.clients import Camera, Cameras, Ears, picture
from tests.chaos.load import Count, capacity, sampled
from tests.chaos.site import ChaosSite, Sample, end_in_order
from tests.e2e.site import until

CAMERAS = 20
PICTURE_SIDE = 320
WARM_UP = 0.2
"""Part of the time that does not count: pools and caches fill."""
LIMIT_MB = 1.0
"""Per ten minutes."""
EVERY_S = 2.0
SAY_EVERY_S = 60.0
DRAIN_S = 30.0


def slope(samples: Sequence[Sample]) -> float:
    """Growth of the resident memory in MB per ten minutes, as a straight line fits best."""
    times = [sample.at for sample in samples]
    return float(np.polyfit(times, [sample.rss_mb for sample in samples], 1)[0] * 600)


def judge(samples: Sequence[Sample]) -> list[str]:
    """What is wrong with the samples after the warm-up; empty when nothing is."""
    if len(samples) < 6:
        return ["too few samples; let it run longer"]
    found = []
    if (growth := slope(samples)) >= LIMIT_MB:
        found.append(f"resident memory grows by {growth:.2f} MB in ten minutes")
    third = len(samples) // 3
    for name in ("fds", "threads"):
        before, after = (
            statistics.median(getattr(each, name) for each in some) for some in (samples[:third], samples[-third:])
        )
        if before != after:
            found.append(f"{name} went from {before:g} to {after:g}")
    return found


def soak(folder: Path, seconds: float, rate: float | None) -> list[str]:
    """Run it; returns what is wrong."""
    count, numbers = Count(), itertools.count()
    with ExitStack() as stack:
        site = stack.enter_context(ChaosSite(folder, linked=False))
        port, topic = site.broker.port, site.gateway.topic
        ears = Ears(port, "", site.answers, count)
        stack.callback(ears.close)
        pictures = [picture(number, PICTURE_SIDE) for number in range(CAMERAS)]
        devices = [Camera(port, topic, f"camera-{n:02}", content, count) for n, content in enumerate(pictures)]
        if rate is None:
            most = capacity(devices, count, numbers)
            rate = most / 2
            print(f"capacity {most:.0f} snapshots a second here, so {rate:.0f} a second from now on", flush=True)
        cameras = Cameras(dict.fromkeys(devices, rate / len(devices)), numbers)
        stack.callback(cameras.close)
        cameras.start()
        began = time.monotonic()
        with sampled(site, EVERY_S) as samples:
            while time.monotonic() < began + seconds:
                time.sleep(min(SAY_EVERY_S, began + seconds - time.monotonic()))
                say(samples[-1], count, time.monotonic() - began)
        cameras.stop()
        until(lambda: not count.open, "the last answers", DRAIN_S)
        site.supervisor.terminate()
        counted = [sample for sample in samples if sample.at > began + WARM_UP * seconds]
        print(f"slope {slope(counted):+.2f} MB per ten minutes over {len(counted)} samples")
        return judge(counted) + [f"the gateway ended {text}" for text in site.supervisor.unexpected]


def say(sample: Sample, count: Count, elapsed_s: float) -> None:
    """One line of progress."""
    print(
        f"{elapsed_s:6.0f} s  {sample.rss_mb:6.1f} MB  {sample.fds} fds  {sample.threads} threads  "
        f"{count.results} results  {count.errors} errors  {count.open} open",
        flush=True,
    )


def main() -> int:
    """Command line of the soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, help="snapshots a second; without it half of what is measured first")
    given = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="edge-gateway-soak-", ignore_cleanup_errors=True) as folder:
        try:
            failures = soak(Path(folder), given.minutes * 60, given.rate)
        except KeyboardInterrupt:
            print("Interrupted; all parts have been ended", file=sys.stderr)
            return 130
    print("\n".join(f"FAILED: {text}" for text in failures) or "All promises were kept.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
