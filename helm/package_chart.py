"""Lints the chart strictly and renders it with every file of values in ci/ and examples/, then packs it into dist/."""
# ruff: noqa: INP001, T201 - a script for people, not a package

from __future__ import annotations

import sys
from pathlib import Path

import helm_python
import yaml

CHART = Path(__file__).parent / "triton-edge-gateway"
DIST = Path(__file__).parent.parent / "dist"
WARNING = 2
"""Of what `helm lint` finds, the least that counts."""


def problems(values_file: Path, chart: helm_python.Chart) -> list[str]:
    """What is wrong with the chart under these values."""
    values = yaml.safe_load(values_file.read_text())
    report = helm_python.lint(str(CHART), values, strict=True)
    found = [*report["errors"], *(each["error"] for each in report["messages"] if each["severity"] >= WARNING)]
    try:
        chart.render(values, name="edge", namespace="default")
    except helm_python.HelmError as error:
        found.append(str(error))
    return [f"{values_file.relative_to(CHART)}: {each}" for each in found]


def main() -> int:
    """The exit code: 1 where something is wrong, and nothing is packed then."""
    chart = helm_python.Chart.load(str(CHART))
    files = [*sorted((CHART / "ci").glob("*.yaml")), *sorted((CHART / "examples").glob("*.yaml"))]
    found = [each for file in files for each in problems(file, chart)]
    for each in found:
        print(each, file=sys.stderr)
    if found:
        return 1
    DIST.mkdir(exist_ok=True)
    print(f"{len(files)} files of values are fine; packed {chart.save(str(DIST))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
