"""What the views say in single cases: many alerts, a filter without a hit, readings to try, steps of a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.console.shown import ACTION_TOKEN, Shown, shown_site
from tests.flow.builders import jpeg, snapshot_json
from tests.flow.test_sensor_flow import SENSOR, thermometer
from tests.harness import write_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

DRAW_STEPS = """async model => {
  const { rolloutSteps } = await import(new URL("console/rollout.js", document.baseURI));
  return [...rolloutSteps(model).children].map(step => step.dataset.step);
}"""
"""The page's own drawing of a model as GET /api/models has it."""


async def test_every_alert_under_way_can_be_seen(tmp_path: Path, browser: Browser) -> None:
    async with shown_site(tmp_path) as place, place.visit(browser) as visit:
        for number in range(24):  # more than the messages that are told of the past, and before anybody looks
            place.place.snapshot(snapshot_json(jpeg(64, 64), device_id=f"dock-{number:02}"))
        await place.place.answered(24)
        await visit.go("live")
        pills, more = visit.page.locator("a.alert-pill"), visit.page.locator("button.alert-pill")
        await expect(more).to_have_text("+18 more")
        await expect(pills).to_have_count(6)
        await more.click()
        await expect(pills).to_have_count(24)
        await expect(more).to_be_focused()
        await expect(visit.page.locator(".tile").first.locator(".badges .chip").first).to_have_text("alert")


async def test_a_filter_without_a_hit_says_so(shown: Shown, browser: Browser) -> None:
    async with shown.visit(browser) as visit:
        await visit.go("live")
        tile = visit.page.locator(".tile").first
        await expect(tile).to_be_visible()
        await visit.page.get_by_role("searchbox").fill("zzzz")
        await expect(visit.page.get_by_role("status").last).to_contain_text("No camera matches 'zzzz'")
        await visit.page.get_by_role("button", name="Clear the filter").click()
        await expect(tile).to_be_visible()
        await expect(visit.page.locator(".empty")).to_have_count(0)


async def test_readings_join_windows(tmp_path: Path, browser: Browser) -> None:
    write_model(tmp_path / "models", **SENSOR)
    async with shown_site(tmp_path, triton=thermometer()) as place, place.visit(browser) as visit:
        page = visit.page
        place.place.snapshot(b'{"sensor_id": "t-1", "values": [21.5]}', topic="edge-ai/bu/plant/gw/sensors/t-1")
        await visit.go("health")
        await expect(page.locator(".stat", has_text="Answered")).to_contain_text("into windows")
        await visit.go("try")
        # What stands in the field is a whole window.
        await page.evaluate(f"sessionStorage.setItem('edge-gateway.action-token', '{ACTION_TOKEN}')")
        await page.locator("#try-model").select_option("thermometer")
        await page.get_by_role("button", name="Ask").click()
        await expect(page.locator(".json")).to_contain_text('"readings": 4')
        await page.locator("#try-model").select_option("detector")
        await expect(page.locator(".json")).to_have_count(0)


async def test_a_first_version_has_nothing_to_be_compared_with(shown: Shown, browser: Browser) -> None:
    names = ("verified", "loaded", "signature", "warmed", "golden", "promoted")
    steps = [{"step": name, "seconds": 0.1, "note": ""} for name in names]
    rollout = {"version": 2, "step": "promoted", "ending": "promoted", "percent": 0, "steps": steps}
    async with shown.visit(browser) as visit:
        await visit.go("models")
        first = {"rollout": rollout, "version": 2, "previous_version": None}
        states = await visit.page.evaluate(DRAW_STEPS, first)
        assert states == [*["done"] * 6, "not-needed", "not-needed", "done", "not-needed"]
        states = await visit.page.evaluate(DRAW_STEPS, {**first, "previous_version": 1})
        assert states == [*["done"] * 6, "left-out", "left-out", "done", "left-out"]
