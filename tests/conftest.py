"""What holds for every test."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from gateway.layouts import base, custom


def pytest_configure() -> None:
    """A shell has what it runs in the background ignore SIGINT, and so would every child that a test interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_layout_stays_behind() -> Iterator[None]:
    """The registry of layouts is one for the process."""
    registry, loaded = dict(base._registry), dict(custom._loaded)
    modules = set(sys.modules)
    yield
    if base._registry == registry:
        return
    base._registry.clear()
    base._registry.update(registry)
    custom._loaded.clear()
    custom._loaded.update(loaded)
    for name in set(sys.modules) - modules:
        if name.startswith(custom.__name__):
            del sys.modules[name]
