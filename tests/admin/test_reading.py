"""Who only looks: nobody is kept out by those who give no token, and what is open tells little."""

from __future__ import annotations

from pathlib import Path

from gateway.admin.guard import FAILURES
from tests.admin.test_console import COMMAND, READ, console, tokens
from tests.flow.builders import jpeg, snapshot_json

CAMERA = "camera-at-the-gate"
OPEN = ("/", "/console/main.js", "/api/console", "/live", "/ready", "/openapi.json", "/v2", "/v2/models/detector")


async def test_who_gives_no_token_locks_nobody_out(tmp_path: Path) -> None:
    """A monitor that was never told the token, and all who come by the same proxy."""
    (tmp_path / "models").mkdir()
    async with console(tmp_path / "models", **tokens(tmp_path)) as (_, http):
        for _ in range(3 * FAILURES):
            answer = await http.get("/api/status")
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED")
        assert (await http.head("/api/status")).status_code == 401
        assert (await http.get("/api/cameras", headers=READ)).status_code == 200
        assert (await http.post("/v1/infer", headers=COMMAND, content=jpeg())).status_code == 200


async def test_who_waits_for_guesses_is_still_told_that_a_token_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    async with console(tmp_path / "models", **tokens(tmp_path)) as (_, http):
        two = [("Authorization", "Bearer reader"), ("Authorization", "Bearer reader")]
        for _ in range(FAILURES):
            assert (await http.get("/api/status", headers=two)).status_code == 401
        assert (await http.get("/api/status", headers=READ)).status_code == 429
        assert (await http.get("/api/status")).status_code == 401


async def test_of_what_is_open_the_metrics_alone_name_a_camera(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    async with console(tmp_path / "models", **tokens(tmp_path)) as (place, http):
        place.snapshot(snapshot_json(jpeg(), device_id=CAMERA))
        await place.answered(1)
        for path in OPEN:
            answer = await http.get(path)
            assert answer.status_code == 200, path
            assert CAMERA not in answer.text, path
        assert f'device_id="{CAMERA}"' in (await http.get("/metrics")).text
