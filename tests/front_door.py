"""`edge-gateway` within the test's process: as `tests.command_line.run`, without the 0.4 s of a new one."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from gateway.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """Run a command to its end; for those that neither serve nor set up a log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edge-gateway", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    code = ended.value.code
    return Done(code if isinstance(code, int) else 0, out, err)
