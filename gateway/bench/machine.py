"""On what was measured: without that no figure means anything."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from gateway import __version__
from gateway.bench.site import BenchSite

PACKAGES = ("pillow", "numpy", "grpcio", "tritonclient", "paho-mqtt", "onnxruntime", "nvidia-pytriton")


def describe(site: BenchSite) -> dict[str, object]:
    """Machine, versions and load; read before anything is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gateway": __version__,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "broker": site.broker.name,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
