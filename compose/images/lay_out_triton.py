"""Lays the tritonserver of the nvidia-pytriton wheel out as NVIDIA's image does, so that one command starts either.

Runs in the build of triton/Dockerfile.cpu, with the Python of the environment that the wheel is in.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB = "triton_python_backend_stub"


def lay_out(server: Path, backends: Path, target: Path) -> None:
    """Put programs and backends where Triton looks without being told; raises SystemExit for a Python without a stub.

    The programs stay in the wheel, for they find their libraries relative to where they really are; the library of the
    backend must not be a link, which Triton refuses.
    """
    stub = server / "python_backend_stubs" / VERSION / STUB
    if not stub.is_file():
        sys.exit(f"nvidia-pytriton brings no backend for Python {VERSION}; take another PYTHON_IMAGE")
    for folder in ("bin", "backends/python"):
        (target / folder).mkdir(parents=True)
    (target / "bin" / "tritonserver").symlink_to(server / "bin" / "tritonserver")
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(server / "backends" / "python" / name, target / "backends" / "python" / name)
    (target / "backends" / "python" / STUB).symlink_to(stub)
    shutil.copytree(server / "caches", target / "caches")
    for name in ("onnxruntime", "pytorch"):
        shutil.copytree(backends / name, target / "backends" / name)
        shutil.copy2(backends / "edge_backend.py", target / "backends" / name)
    for other in (server / "python_backend_stubs").iterdir():
        if other.name != VERSION:
            shutil.rmtree(other)


def main() -> None:
    """lay_out_triton.py BACKENDS TARGET: from our backends to a folder like /opt/tritonserver."""
    lay_out(Path(sysconfig.get_path("purelib")) / "pytriton" / "tritonserver", Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
