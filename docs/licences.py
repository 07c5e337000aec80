# ruff: noqa: INP001 - a script, not a package
"""Writes docs/licences.md: what the gateway is installed with on site, and under which licences.

`make sbom` calls it with the Python of an environment that holds the lock of the gateway and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("licences.md")
# Their terms let the gateway be shipped in an image as it is; anything else is a person's decision.
ACCEPTED = ("Apache", "MIT", "BSD", "ISC", "MPL", "Mozilla", "PSF", "Python Software Foundation", "HPND", "CMU", "EPL",
            "Eclipse", "Zlib")  # fmt: skip
HEAD = """# Licences

<!-- Made by `make sbom` from requirements/gateway.txt; change it there. -->

What runs on site beside the gateway's own code, which is under [Apache-2.0](../LICENSE). The list with hashes, in
CycloneDX, is `dist/gateway.cdx.json` of the same command. The embedded stack (Triton, ONNX Runtime, PyTorch) and the
tools of the tests are not part of it.

| Package | Version | Licence |
| --- | --- | --- |
"""


def main(python: str) -> int:
    """Write the page; 1 when a licence is none of those that are accepted."""
    tool = Path(sys.executable).with_name("pip-licenses")
    command = [str(tool), f"--python={python}", "--format=json", "--from=mixed"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
    rows = [(item["Name"], item["Version"], " ".join(item["License"].split())) for item in packages]
    strange = [row for row in rows if not any(name in row[2] for name in ACCEPTED)]
    for name, version, licence in strange:
        sys.stderr.write(f"{name} {version}: '{licence}' is not among the licences that docs/licences.py accepts\n")
    if strange:
        return 1
    table = "".join(f"| {name} | {version} | {licence} |\n" for name, version, licence in sorted(rows, key=_key))
    PAGE.write_text(HEAD + table, "utf-8")
    sys.stdout.write(f"docs/licences.md: {len(rows)} packages\n")
    return 0


def _key(row: tuple[str, str, str]) -> str:
    return row[0].lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
