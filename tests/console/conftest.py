"""One headless Chromium for all tests of this folder, and one site with cameras that most of them look at."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from gateway.local.debian import find_program, install_package
from tests.console.shown import Shown, shown_site

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WHY = "The tests of the console need a browser"


def find_browser() -> Path:
    """A Chromium of this machine, installed first where that works; skips the test otherwise."""
    for attempt in range(2):
        for name in NAMES:
            if found := find_program(name):
                return found
        if attempt or not install_package("chromium", WHY):
            break
    pytest.skip(f"{WHY}: none of {', '.join(NAMES)} is on PATH, and Debian's chromium cannot be installed here")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Started once; each test opens a context of its own, with storage of its own."""
    program = find_browser()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox does not work for root
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        await started.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shown(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shown]:
    """A site whose cameras send all the time."""
    async with shown_site(tmp_path_factory.mktemp("console")) as place:
        place.send_all_the_time()
        yield place
