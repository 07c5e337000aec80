"""Print what docs/capacity.md has: `python -m tests.capacity`; `--simulate` runs each size, snapshot by snapshot."""

from __future__ import annotations

import sys

from tests.capacity.model import YOLO_N, Site, plan
from tests.capacity.simulation import Arrivals, as_planned, simulate
from tests.capacity.tables import SIZES, every, table


def simulated() -> str:
    """Latencies of each size as planned, for each way in which snapshots may come."""
    rows = []
    for size in SIZES:
        needed = plan(Site(size), YOLO_N)
        for arrivals in Arrivals:
            seen = simulate(as_planned(needed, arrivals), seconds=max(4.0, 4000 / size), seed=1)
            percentiles = (f"{seen.latency_s(each) * 1000:.0f}" for each in (50, 99, 100))
            rows.append((f"{size:,}", arrivals, *percentiles, seen.longest_queue, seen.refused))
    return table(("cameras", "arrivals", "p50, ms", "p99, ms", "worst, ms", "longest queue", "refused"), rows)


def main() -> None:
    for heading, text in every():
        print(f"## {heading}\n\n{text}\n")
    if "--simulate" in sys.argv[1:]:
        print(f"## Simulated\n\n{simulated()}")


if __name__ == "__main__":
    main()
