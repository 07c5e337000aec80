"""The console in a real browser: every view shows what happens now, and nothing else happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Route, expect

from tests.console.shown import ACTION_TOKEN, CAMERAS, HOSTILE, Shown, Visit, shown_site
from tests.flow.builders import jpeg
from tests.harness import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

WITHIN_MS = 2000
"""A view shows what happens now within this time."""
VIEWS = {
    "live": ".tile .canvas > img",
    "live/camera-01": ".history-row",
    "compare": ".pair .canvas > img >> nth=1",
    "models": ".model .actions",
    "health": ".stat-value",
    "try": "#try-model option",
}
"""What of each view is there only when the gateway has answered."""


async def open_view(visit: Visit, view: str) -> None:
    """Open it and wait for what it shows, no longer than it may take."""
    await visit.go(view)
    await visit.page.locator(VIEWS[view]).first.wait_for(state="attached", timeout=WITHIN_MS)


async def look_at_live(page: Page) -> None:
    await expect(page.locator(".tile")).to_have_count(len(CAMERAS))
    await expect(page.locator(".tile rect.box").first).to_be_attached()
    await expect(page.locator(".tile .label").first).to_contain_text("person without helmet")
    await expect(page.locator(".alert-pill").first).to_contain_text("person without helmet")


async def look_at_a_camera(page: Page) -> None:
    await expect(page.locator("h1")).to_have_text("camera-01")
    await expect(page.locator(".camera-picture rect.box")).to_have_count(2)
    before = await page.locator(".history-row").first.inner_text()
    await expect(page.locator(".history-row").first).not_to_have_text(before, timeout=5000)
    await page.locator(".history-row").nth(2).click()
    await expect(page.get_by_role("button", name="Back to live")).to_be_visible()


async def look_at_comparisons(page: Page) -> None:
    await expect(page.locator(".compare-words")).to_contain_text("they differ")
    await expect(page.locator(".pair figcaption h3")).to_have_text(["onnx", "torch"])
    # Both see the forklift; the person wears a helmet for one of them only.
    await expect(page.locator(".pair figure:first-child rect.marked-flip")).to_have_count(1)
    await expect(page.locator(".pair figure:last-child rect.box:not(.marked-flip)")).to_have_count(1)
    await expect(page.locator(".histogram .bar").first).to_be_attached()
    await expect(page.locator(".agreement rect.differed").first).to_be_attached()
    await page.keyboard.press("ArrowRight")
    await expect(page.locator(".pager")).to_contain_text("1 of")
    await page.get_by_role("button", name="Older disagreement").click()
    await expect(page.locator(".pager")).to_contain_text("2 of")


async def look_at_models(page: Page) -> None:
    await expect(page.locator(".model h2").first).to_have_text("detector")
    await expect(page.locator(".model tbody tr")).to_have_count(2)
    await expect(page.locator(".model .rollout")).to_contain_text("No rollout yet")


async def look_at_health(page: Page) -> None:
    await expect(page.locator(".stat").nth(1)).to_contain_text("connected")
    await expect(page.locator(".panel", has_text="Outcomes")).to_contain_text("published")
    await page.get_by_role("searchbox", name="Filter the log").fill("no line has this")
    await expect(page.locator(".log-panel")).to_contain_text("No such line")


async def look_at_try(page: Page) -> None:
    await page.evaluate(f"sessionStorage.setItem('edge-gateway.action-token', '{ACTION_TOKEN}')")
    picture = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": jpeg(320, 180)}
    await page.locator("#try-file").set_input_files(picture)  # type: ignore[arg-type]
    await expect(page.locator(".camera-picture rect.box")).to_have_count(2)
    await expect(page.locator(".json")).to_contain_text('"message_type": "ai_inference_result"')
    await page.locator("#try-variant").select_option(label="onnx and torch, side by side")
    await expect(page.locator(".pair rect.marked-flip")).to_have_count(2)


LOOKS: dict[str, Callable[[Page], Awaitable[None]]] = {
    "live": look_at_live,
    "live/camera-01": look_at_a_camera,
    "compare": look_at_comparisons,
    "models": look_at_models,
    "health": look_at_health,
    "try": look_at_try,
}


@pytest.mark.parametrize("view", VIEWS)
async def test_a_view_shows_what_happens_now(shown: Shown, browser: Browser, view: str) -> None:
    async with shown.visit(browser) as visit:
        await open_view(visit, view)
        await LOOKS[view](visit.page)
        assert visit.complaints == []
        assert [url for url in visit.requests if not url.startswith(visit.base)] == []


@pytest.mark.parametrize("theme", ["dark", "light"])
async def test_everybody_can_use_it(shown: Shown, browser: Browser, theme: str) -> None:
    async with shown.visit(browser, color_scheme=theme, reduced_motion="reduce") as visit:
        for view in VIEWS:
            await open_view(visit, view)
            found = (await Axe().run(visit.page)).response["violations"]
            wrong = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
            assert wrong == [], view
        await visit.go("live")
        await visit.page.keyboard.press("?")
        assert (await Axe().run(visit.page)).response["violations"] == []
        assert await visit.page.evaluate("document.documentElement.dataset.theme") == theme


@pytest.mark.parametrize("view", VIEWS)
async def test_it_fits_a_phone(shown: Shown, browser: Browser, view: str) -> None:
    async with shown.visit(browser, viewport={"width": 360, "height": 740}) as visit:
        await open_view(visit, view)
        assert await visit.page.evaluate("document.documentElement.scrollWidth") == 360


async def test_hostile_names_are_only_text(shown: Shown, browser: Browser) -> None:
    async with shown.visit(browser) as visit:
        page = visit.page
        await open_view(visit, "live")
        tile = page.get_by_role("link", name=f"Camera {HOSTILE}")
        await expect(tile.locator(".class-chip", has_text="<img src=x")).to_be_visible()
        await tile.click()
        await expect(page.locator("h1")).to_have_text(HOSTILE)
        await expect(page.locator(".label", has_text="<img src=x").first).to_be_attached()
        await visit.go("compare")
        await page.get_by_role("combobox", name="Camera").select_option(HOSTILE)
        await expect(page.locator(".compare-words")).to_contain_text(HOSTILE)
        for view in ("models", "health", "try"):
            await open_view(visit, view)
        assert await page.locator("img[src=x]").count() == 0
        assert await page.evaluate("window.hacked") is None
        assert visit.complaints == []


async def test_the_keyboard_goes_everywhere(shown: Shown, browser: Browser) -> None:
    async with shown.visit(browser, color_scheme="dark") as visit:
        page = visit.page
        await open_view(visit, "live")
        await page.keyboard.press("Tab")
        await expect(page.locator("#skip")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()
        await page.keyboard.press("Tab")  # the filter
        await page.locator(".tile-link").first.focus()
        await page.keyboard.press("ArrowRight")
        await expect(page.locator(".tile-link").nth(1)).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{visit.base}/#live/camera-01")
        await expect(page.locator("h1")).to_have_text("camera-01")  # the address comes first
        await page.keyboard.press("ArrowRight")
        await expect(page).to_have_url(f"{visit.base}/#live/camera-02")
        await expect(page.locator("h1")).to_have_text("camera-02")
        await page.keyboard.press("Escape")
        await expect(page).to_have_url(f"{visit.base}/#live")
        for number, view in enumerate(("live", "compare", "models", "health", "try"), 1):
            await page.keyboard.press(str(number))
            await expect(page.locator("#views [aria-current]")).to_have_attribute("href", f"#{view}")
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await page.keyboard.press("t")
        await page.reload()
        assert await page.evaluate("document.documentElement.dataset.theme") == "light"


HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_a_hidden_page_asks_for_nothing(shown: Shown, browser: Browser) -> None:
    async with shown.visit(browser) as visit:
        await open_view(visit, "live")
        ended: list[str] = []
        visit.page.on("requestfailed", lambda request: ended.append(request.url))
        await visit.page.evaluate(HIDE, True)
        await until(lambda: any(url.endswith("/api/events") for url in ended), "the end of the stream")
        await visit.page.wait_for_timeout(300)  # what was under way
        asked = len(visit.requests)
        await visit.page.wait_for_timeout(1500)
        assert len(visit.requests) == asked
        await visit.page.evaluate(HIDE, False)
        await until(lambda: visit.asked_for("/api/events") == 2, "the stream again")


async def test_it_says_that_workers_are_missing_and_keeps_the_cameras_that_it_knows(
    shown: Shown, browser: Browser
) -> None:
    asked = 0

    async def one_at_a_time(route: Route) -> None:
        nonlocal asked
        body = await (await route.fetch()).json()
        pairs = sorted(body["pairs"], key=lambda pair: str(pair["camera"]))
        await route.fulfill(json={**body, "pairs": pairs[asked : asked + 1], "missing": 2})
        asked += 1

    async with shown.visit(browser) as visit:
        await visit.page.route("**/api/compare", one_at_a_time)
        await visit.go("compare")
        await expect(visit.page.locator("#link-text")).to_have_text("Live, without 2 of the workers")
        await expect(visit.page.locator("select option")).to_have_count(2)


async def test_without_a_camera_it_says_how_to_send(tmp_path: Path, browser: Browser) -> None:
    async with shown_site(tmp_path) as quiet, quiet.visit(browser) as visit:
        await visit.go("live")
        await expect(visit.page.locator(".empty")).to_contain_text("edge-gateway send photo.jpg")
        await visit.go("compare")
        await expect(visit.page.locator(".empty")).to_contain_text("Nothing has been compared yet")
        await quiet.place.stop()
        await expect(visit.page.locator("#link-text")).to_have_text("No connection; trying again", timeout=8000)


async def test_results_alone_are_shown_without_pictures(tmp_path: Path, browser: Browser) -> None:
    async with shown_site(tmp_path, console="results") as place, place.visit(browser) as visit:
        place.send_all_the_time()
        await visit.go("live")
        await expect(visit.page.locator(".tile rect.box").first).to_be_attached()
        await visit.go("compare")
        await expect(visit.page.locator(".pair rect.marked-flip")).to_have_count(2)
        assert await visit.page.locator(".canvas > img").count() == 0
        # The boxes are in the pixels of a picture that nobody has fetched.
        drawing = visit.page.locator(".pair .canvas > svg").first
        await expect(drawing).to_have_attribute("viewBox", "0 0 320 180")
        assert visit.asked_for("/api/frame") == 0
        assert visit.complaints == []
