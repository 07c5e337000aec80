"""`python -m tests.fuzz.http --minutes 10`: schemathesis against the description of a running gateway.

Needs the extra `fuzz`. Every answer has to be one that /openapi.json describes, and none may be a 500. Exit code 1 when
something was found; schemathesis prints the request as a curl command, and the seed that finds it again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import httpx

from gateway.logs import configure_logging
from tests.fuzz.http_site import TOKEN, HttpSite, http_site

CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
)
EXAMPLES = 200
"""Of each operation in one round; rounds go on until the time is over."""


def described(site: HttpSite, folder: Path) -> Path:
    """The description as a file, for schemathesis to hold the answers against.

    The name of a model is every other time one that there is, and a 500 is not described, so that it is found; other
    errors of the server are as they should be, such as 503 for a model that a command has unloaded.
    """
    document = httpx.get(f"{site.url}/openapi.json", trust_env=False).json()
    del document["paths"]["/api/events"]  # without an end
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("500", None)
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "model":
                    parameter["schema"] = {"anyOf": [{"enum": ["detector"]}, {"type": "string"}]}
    path = folder / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def fuzz(site: HttpSite, description: Path, seed: int, limit_s: float) -> bool:
    """One round; whether all was as described."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(description), "--url", site.url,
        "--header", f"Authorization: Bearer {TOKEN}",
        "--checks", ",".join(CHECKS),
        "--max-examples", str(EXAMPLES),
        "--phases", "examples,coverage,fuzzing",
        "--seed", str(seed),
        "--request-timeout", "20",
        "--continue-on-failure",
        "--no-color",
    ]  # fmt: skip
    try:
        return subprocess.run(command, check=False, timeout=limit_s).returncode == 0
    except subprocess.TimeoutExpired:
        return True  # the time is over, and nothing was found that would have ended it


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="For how long.")
@click.option("--seed", default=1, show_default=True, help="Of the first round; each further one has the next.")
def main(minutes: float, seed: int) -> None:
    """Run schemathesis against a gateway in memory until the time is over or something is found."""
    configure_logging("error", "text")  # a warning for each refusal would bury what is found
    end, rounds, good = time.monotonic() + minutes * 60, 0, True
    with tempfile.TemporaryDirectory() as folder, http_site(Path(folder)) as site:
        description = described(site, Path(folder))
        while good and time.monotonic() < end:
            good = fuzz(site, description, seed + rounds, end - time.monotonic())
            rounds += 1
        alive = site.look(lambda place: not place.running.done())
    click.echo(f"{rounds} rounds: {'nothing was found' if good and alive else 'see above'}")
    sys.exit(not (good and alive))


if __name__ == "__main__":
    main()
