"""Who may look, and who may act: the page asks for the token, and says when it is not the right one."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from gateway.logs import LEVEL
from tests.console.shown import ACTION_TOKEN, READ_TOKEN, Shown, shown_site

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def give(page: Page, token: str) -> None:
    """Type a token into the dialog that asks for it."""
    await page.get_by_label("Token", exact=True).and_(page.locator("input")).fill(token)
    await page.get_by_role("button", name="Go on").click()


async def test_nobody_looks_without_the_read_token(tmp_path: Path, browser: Browser) -> None:
    async with shown_site(tmp_path, read_token=True) as place, place.visit(browser) as visit:
        place.send_all_the_time()
        page = visit.page
        await visit.go("live")
        await expect(page.get_by_role("dialog")).to_contain_text("This console wants a token")
        asked = {url.removeprefix(visit.base).partition("?")[0] for url in visit.requests}
        assert {path for path in asked if path.startswith("/api")} == {"/api/console"}
        await give(page, "guessed")
        await expect(page.locator(".wrong")).to_have_text("That token is not the right one.")
        await expect(page.locator("#link-text")).to_have_text("Locked: a token is wanted")
        await give(page, READ_TOKEN)
        await expect(page.locator(".tile .canvas > img").first).to_be_attached()
        await expect(page.locator("#link-text")).to_have_text("Live")
        await page.keyboard.press("3")
        await page.locator(".actions button").first.click()
        await page.get_by_role("dialog").get_by_role("button", name="Promote").click()
        await expect(page.get_by_role("dialog")).to_contain_text("An action wants the token")


async def test_an_action_wants_its_token(shown: Shown, browser: Browser) -> None:
    async with shown.visit(browser) as visit:
        page = visit.page
        await visit.go("models")
        await page.get_by_role("button", name="Unload").click()
        await page.get_by_role("dialog").get_by_role("button", name="Unload").click()
        await give(page, "guessed")
        await expect(page.locator(".wrong")).to_have_text("That token is not the right one.")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        assert shown.place.gateway.models.current.models["detector"].ready
        await page.get_by_role("button", name="Roll back").click()
        await page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        await give(page, ACTION_TOKEN)
        await expect(page.locator(".toast")).to_contain_text("Triton decides which version")


async def test_the_level_of_the_log_is_an_action(shown: Shown, browser: Browser) -> None:
    async with shown.visit(browser) as visit:
        page = visit.page
        await visit.go("health")
        level = page.get_by_label("level of the gateway")
        before = LEVEL.current
        other = "error" if before != "error" else "info"
        await expect(level).to_have_value(before)
        await level.select_option(other)
        await expect(page.get_by_role("dialog")).to_contain_text("An action wants the token")
        await page.keyboard.press("Escape")
        await expect(level).to_have_value(before)
