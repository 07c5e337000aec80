"""Asks exports through a real gateway and compares with their tools: `python -m tests.exports.through_the_gateway`.

Each family's files go into a model repository of their own as its how-to page says. The embedded Triton and an
`edge-gateway serve` start on it, the pictures go through `POST /v1/infer`, the first one through MQTT as well, and the
answers are held against `answer.json`. Runs in the gateway's own environment; needs no tool.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from gateway.models.spec import read_spec
from tests.e2e.site import RealSite
from tests.exports.agreement import Agreement, compare, worst
from tests.exports.drops import DROPS, lay_out

ASK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: a family's variant, how it did, or why it was not asked."""

    family: str
    variant: str
    agreement: Agreement | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.agreement is None:
            return "skipped"
        return "pass" if self.agreement.good else "FAIL"

    def __str__(self) -> str:
        agreement = self.agreement or Agreement()
        iou = "-" if agreement.iou is None else f"{agreement.iou:.4f}"
        numbers = f"{agreement.compared:5} {agreement.missing:7} {iou:>9} {agreement.score:11.5f}"
        return f"{self.family:32} {self.variant:7} {numbers}  {self.verdict:7} {self.note}".rstrip()


HEAD = f"{'family':32} {'variant':7} {'found':>5} {'missing':>7} {'worst IoU':>9} {'worst score':>11}"


@contextmanager
def _running(repository: Path, broker: EmbeddedBroker) -> Iterator[RealSite]:
    with EmbeddedTriton(repository) as triton, RealSite(broker, triton, MODEL_REPOSITORY=str(repository)) as site:
        site.start()
        site.wait_ready()
        yield site


def check(family: str, exports: Path, broker: EmbeddedBroker) -> list[Line]:
    """Lays the family out, starts everything, asks and compares."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        variants = lay_out(family, exports, repository)
        cases = json.loads((exports / family / "answer.json").read_text())
        absent = {name: needs for name, needs in variants.items() if needs and not importlib.util.find_spec(needs)}
        for name in absent:
            path = repository / family / "model.yaml"
            path.write_text(path.read_text().replace(f", {name}: {family}-{name}", ""))
        with _running(repository, broker) as site:
            asked = [
                _variant(site, family, name, cases, exports, repository) for name in variants if name not in absent
            ]
        skipped = [Line(family, name, note=f"{needs} is not installed here") for name, needs in absent.items()]
        return asked + skipped


def _variant(
    site: RealSite, family: str, variant: str, cases: list[dict[str, Any]], exports: Path, repository: Path
) -> Line:
    threshold = read_spec(repository / family / "model.yaml").inference.confidence_threshold
    parts = []
    for number, case in enumerate(cases):
        path = exports / "pictures" / case["picture"]
        with Image.open(path) as picture:
            size = picture.size
        answers = [_over_http(site, family, variant, path)]
        if number == 0 and variant == "onnx":
            answers.append(_over_mqtt(site, path))
        parts += [compare(case, answer, size, threshold) for answer in answers]
    return Line(family, variant, worst(parts))


def _over_http(site: RealSite, family: str, variant: str, path: Path) -> list[dict[str, Any]]:
    response = httpx.post(
        f"http://127.0.0.1:{site.http_port}/v1/infer",
        params={"model": family, "variant": variant},
        files={"image": path.read_bytes()},
        timeout=ASK_TIMEOUT_S,
        trust_env=False,
    )
    body = response.json()
    if response.status_code != httpx.codes.OK:
        raise ValueError(f"{response.status_code}: {body.get('error', body)}")
    found: list[dict[str, Any]] = body["predictions"]
    return found


def _over_mqtt(site: RealSite, path: Path) -> list[dict[str, Any]]:
    site.send(path.read_bytes(), site.raw_topic("camera"))
    site.answered(1)
    if site.errors:
        raise ValueError(str(site.errors[0]["error"]))
    found: list[dict[str, Any]] = site.results[0]["predictions"]
    return found


def main() -> int:
    """Prints the table; 1 where a family fails, or where there is none to ask."""
    parser = argparse.ArgumentParser(prog="python -m tests.exports.through_the_gateway", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all that have been made when none is named")
    parser.add_argument("--exports", type=Path, default=Path(".cache/exports"), help="where the exports lie")
    chosen = parser.parse_args()
    families = chosen.families or list(DROPS)
    lines: list[Line] = []
    with EmbeddedBroker() as broker:
        print(HEAD, flush=True)
        for family in families:
            for line in _attempt(family, chosen.exports.resolve(), broker):
                print(line, flush=True)
                lines.append(line)
    count = {word: sum(line.verdict == word for line in lines) for word in ("pass", "FAIL", "skipped")}
    print(", ".join(f"{number} {word}" for word, number in count.items()))
    return 1 if count["FAIL"] or not count["pass"] else 0


def _attempt(family: str, exports: Path, broker: EmbeddedBroker) -> list[Line]:
    if not (exports / family / "answer.json").exists():
        return [Line(family, "all", note=f"not made: {_reason(exports / family)}")]
    try:
        return check(family, exports, broker)
    except Exception:  # noqa: BLE001 - one family must not hide what the others do
        traceback.print_exc()
        return [Line(family, "all", Agreement(), "see the traceback above")]


def _reason(folder: Path) -> str:
    """Why the exports of a family are not there, as `python -m tests.exports` left it."""
    note = folder / "skipped.txt"
    return note.read_text().strip() if note.exists() else "run python -m tests.exports"


if __name__ == "__main__":
    sys.exit(main())
