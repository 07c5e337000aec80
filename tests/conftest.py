"""What holds for every test."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
import structlog

from gateway.layouts import base, custom
from gateway.local.broker import EmbeddedBroker
from tests.command_line import leading_to


def pytest_configure() -> None:
    """A shell has what it runs in the background ignore SIGINT, and so would every child that a test interrupts.

    A logger that remembers its configuration for ever, as is right for a program, would keep that of one test.
    """
    remembering = structlog.configure
    structlog.configure = lambda **config: remembering(**{**config, "cache_logger_on_first_use": False})
    # Where no command has configured the log: rich, where it is there, would draw each picture on the way of an error.
    lines = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], lines])
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_logging_stays_behind() -> Iterator[None]:
    """Commands that run inside a test configure the log of the process."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


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


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    """One for the tests of a module that call commands; folders with sites have their own."""
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def at(broker: EmbeddedBroker) -> dict[str, str]:
    """The settings that lead to the broker."""
    return leading_to(broker)
