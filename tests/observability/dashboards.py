"""The dashboards as Grafana reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.command_line import ROOT

FOLDER = ROOT / "compose" / "grafana"
FILES = sorted((FOLDER / "dashboards").glob("*.json"))
INTERVAL = "10s"
"""What stands for `$__rate_interval`: Grafana takes four scrape intervals at least."""


@dataclass(frozen=True)
class Query:
    """One expression of one panel."""

    dashboard: str
    panel: str
    expression: str

    def filled(self, values: Mapping[str, str]) -> str:
        """The expression with values for the variables, as Grafana sends it."""
        return fill(self.expression, values)


def fill(expression: str, values: Mapping[str, str]) -> str:
    """Put values in the place of `$name`; one without a value fails the test."""
    known = {**values, "__rate_interval": INTERVAL}
    return re.sub(r"\$(\w+)", lambda found: known[found[1]], expression)


def models() -> dict[str, dict[str, Any]]:
    """The dashboards by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in FILES}


def panels(model: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the rows."""
    return [panel for panel in model["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Every expression of every panel."""
    for name, model in models().items():
        for panel in panels(model):
            for target in panel["targets"]:
                yield Query(name, panel["title"], target["expr"])


def variables(model: dict[str, Any]) -> dict[str, str]:
    """The variables that have a query, with it."""
    return {each["name"]: each["definition"] for each in model["templating"]["list"] if each["type"] == "query"}
