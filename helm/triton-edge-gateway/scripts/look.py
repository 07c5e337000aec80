"""Says to the step after it whether a drop is on the volume already, by the file /tmp/there."""
# ruff: noqa: INP001, T201, S108, S603, S607 - the command of a container, given as text

import pathlib
import subprocess
import sys

there = pathlib.Path("/tmp/there")
there.unlink(missing_ok=True)
# Its source is not here yet, so this ends well only where nothing needs to be fetched.
pathlib.Path(sys.argv[3]).unlink(missing_ok=True)
if subprocess.run(["edge-gateway", *sys.argv[1:]], capture_output=True, check=False).returncode == 0:
    there.touch()
print("The drop is there already" if there.exists() else "The drop has to be fetched")
