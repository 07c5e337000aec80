"""`python -m tests.chaos`: the whole bench, with its report. Exit code 1 when a promise was broken."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.bench import run
from tests.chaos.report import table, write
from tests.chaos.schedule import LENGTHS_S, plan
from tests.chaos.site import end_in_order


def main() -> int:
    """Command line of the bench."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same faults at the same times")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--cameras", type=int, default=30)
    parser.add_argument("--rate", type=float, default=40.0, help="snapshots a second, all cameras together")
    parser.add_argument("--faults", type=int, default=len(LENGTHS_S), help="of each kind one, without this")
    parser.add_argument("--kinds", nargs="+", choices=sorted(LENGTHS_S), default=list(LENGTHS_S), metavar="KIND")
    parser.add_argument("--report", type=Path, help="folder for report.json, timeline.html and the gateway's log")
    given = parser.parse_args()
    end_in_order()
    faults = plan(given.seed, given.minutes * 60, given.faults, given.kinds)
    for fault in faults:
        print(f"planned: {fault.at_s:7.1f} s  {fault.kind} for {fault.length_s:.1f} s")
    with tempfile.TemporaryDirectory(prefix="edge-gateway-chaos-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        try:
            report = run(
                folder,
                faults,
                seed=given.seed,
                seconds=given.minutes * 60,
                cameras=given.cameras,
                per_second=given.rate,
                say=lambda text: print(text, flush=True),
            )
        except KeyboardInterrupt:
            print("Interrupted; all parts have been ended", file=sys.stderr)
            return 130
        print(table(report))
        if given.report:
            write(report, given.report, folder / "gateway.log")
            print(f"Written to {given.report}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
