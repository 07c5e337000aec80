# ruff: noqa: INP001 - a script, not a package
"""Writes docs/licences.md: what the gateway is installed with on site, and under which licences.

`make sbom` calls it with the Python of an environment that holds what the gateway's image holds, and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("licences.md")
# Their terms let the gateway be shipped in an image as it is; anything else is a person's decision.
ACCEPTED = ("Apache", "MIT", "BSD", "ISC", "MPL", "Mozilla", "PSF", "Python Software Foundation", "HPND", "CMU", "EPL",
            "Eclipse", "Zlib", "Unlicense")  # fmt: skip
# Packages that bring their licence as a file alone, read by a person.
READ = {("sigstore-models", "UNKNOWN"): "MIT"}
HEAD = """# Licences

<!-- Made by `make sbom` from requirements/{gateway,signing,tracing}.txt; change it there. -->

What the gateway's image holds beside its own code, which is under [Apache-2.0](../LICENSE), and Python. The list with
hashes, in CycloneDX, is `dist/gateway.cdx.json` of the same command. Triton, ONNX Runtime, PyTorch and the tools of the
tests are not part of it.

| Package | Version | Licence |
| --- | --- | --- |
"""


def main(python: str) -> int:
    """Write the page; 1 when a licence is none of those that are accepted."""
    tool = Path(sys.executable).with_name("pip-licenses")
    command = [str(tool), f"--python={python}", "--format=json", "--from=mixed"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
    rows = [(item["Name"], item["Version"], _licence(item)) for item in packages]
    strange = [row for row in rows if not any(name in row[2] for name in ACCEPTED)]
    for name, version, licence in strange:
        sys.stderr.write(f"{name} {version}: '{licence}' is not among the licences that docs/licences.py accepts\n")
    if strange:
        return 1
    table = "".join(f"| {name} | {version} | {licence} |\n" for name, version, licence in sorted(rows, key=_key))
    PAGE.write_text(HEAD + table, "utf-8")
    sys.stdout.write(f"docs/licences.md: {len(rows)} packages\n")
    return 0


def _licence(item: dict[str, str]) -> str:
    named = " ".join(item["License"].split())
    return READ.get((item["Name"], named), named)


def _key(row: tuple[str, str, str]) -> str:
    return row[0].lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
