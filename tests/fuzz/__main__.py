"""`python -m tests.fuzz --minutes 10 [--target NAME]`: the parsers of hostile input, guided by coverage.

Needs the extra `fuzz`. The time is shared by the targets, as many at once as there are processors. What is found lies
in .cache/fuzz/found: `python -m tests.fuzz --reproduce FILE --target NAME` runs one again. Mend it, and keep the file
in tests/fuzz/corpus/<target>, which `make test` reads. What the search learns stays in .cache/fuzz/corpus, so that the
next one begins where this one ended. Exit code 1 when something was found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
WORK = Path(".cache/fuzz")
SECONDS_A_MESSAGE = 5
"""A message that takes longer is a finding; instrumented code is a few times slower than in service."""
MEGABYTES = 1024
MAX_BYTES = 16_384


def run_target(name: str, seconds: int, seed: int) -> tuple[str, int, str]:
    """One target for so long; its name, its exit code and the end of what it said."""
    learned, found = WORK / "corpus" / name, WORK / "found"
    for folder in (learned, found):
        folder.mkdir(parents=True, exist_ok=True)
    options = (
        f"-max_total_time={seconds}", f"-timeout={SECONDS_A_MESSAGE}", f"-rss_limit_mb={MEGABYTES}", f"-seed={seed}",
        f"-max_len={MAX_BYTES}", f"-artifact_prefix={found}/{name}-", "-print_final_stats=1", "-verbosity=0",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.coverage", name, *options, str(learned), str(CORPUS / name)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    return name, done.returncode, done.stdout[-4000:]


def search(names: list[str], minutes: float, seed: int) -> int:
    """Fuzz the targets; returns how many of them found something."""
    workers = min(len(names), os.cpu_count() or 1)
    seconds = max(1, int(minutes * 60 * workers / len(names)))
    click.echo(f"{len(names)} targets, {seconds} s each, {workers} at once, seed {seed}")
    failed = 0
    with ThreadPoolExecutor(workers) as pool:
        for name, code, said in pool.map(lambda name: run_target(name, seconds, seed), names):
            units = next((line.split()[1] for line in said.splitlines() if "number_of_executed_units" in line), "?")
            click.echo(
                f"{name:12} {'nothing found' if code == 0 else f'FOUND SOMETHING (exit {code})'}, {units} inputs"
            )
            if code:
                failed += 1
                click.echo(said)
    return failed


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="For all targets together.")
@click.option("--target", type=click.Choice(sorted(TARGETS)), help="Only this one.")
@click.option("--seed", default=lambda: int(time.time()) % 2**31, help="Printed; the same one searches alike.")
@click.option("--reproduce", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One file, once.")
def main(minutes: float, target: str | None, seed: int, reproduce: Path | None) -> None:
    """Look for bytes that a parser does not survive."""
    if reproduce is not None:
        if target is None:
            raise click.UsageError("--reproduce needs the --target that the file is for")
        TARGETS[target](reproduce.read_bytes())
        return
    sys.exit(1 if search([target] if target else list(TARGETS), minutes, seed) else 0)


if __name__ == "__main__":
    main()
