"""`python -m tests.replicas`: gateways and Tritons go in turn, while cameras send. Exit code 1 at a loss."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from tests.e2e.site import until
from tests.replicas.site import PER_SECOND, Replicas, detector

CAUGHT_UP_S = 60.0


def kill_each_triton(replicas: Replicas, tritons: Sequence[EmbeddedTriton]) -> None:
    """One after the other; each is back in service at every gateway before the next one goes."""
    for triton in tritons:
        triton.kill()
        replicas.more()
        triton.start()
        until(
            lambda triton=triton: all(each.serves(triton.grpc_url) for each in replicas.replicas),  # type: ignore[misc]
            "the Triton that has come back",
            CAUGHT_UP_S,
        )


def main() -> int:
    """Command line of the bench."""
    parser = argparse.ArgumentParser(prog="python -m tests.replicas", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="the round that has begun by then is finished")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--rate", type=int, default=PER_SECOND, help="snapshots a second, all cameras together")
    parser.add_argument("--leave", action="store_true", help="with MQTT_LEAVE_GROUP=true")
    given = parser.parse_args()
    leave = {"MQTT_LEAVE_GROUP": str(given.leave).lower()}
    bad = 0
    with tempfile.TemporaryDirectory(prefix="edge-gateway-replicas-") as folder, EmbeddedBroker() as broker:
        repository = Path(folder)
        detector(repository)
        with (
            EmbeddedTriton(repository) as first,
            EmbeddedTriton(repository) as second,
            Replicas(broker, [first, second], repository, given.replicas, **leave) as replicas,
        ):
            replicas.start()
            rounds: dict[str, Callable[[], object]] = {
                "rolling restart": replicas.roll,
                "kill -9 of each gateway": replicas.kill_each,
                "kill -9 of each Triton": lambda: kill_each_triton(replicas, (first, second)),
            }
            ends_at = time.monotonic() + given.seconds
            for name, work in itertools.cycle(rounds.items()):
                replicas.begin(given.rate)
                work()
                account = replicas.end()
                print(f"{name:24} {account}", flush=True)
                bad += account.lost + len(account.errors)
                if time.monotonic() >= ends_at:
                    return 1 if bad else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
