"""The console's side of HTTP: what each answer holds, who may see it, and what strangers make of it."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from gateway.admin.compare_report import model_of
from gateway.admin.console_pages import POLICY, console_files
from gateway.admin.frames import MAX_WAITING
from gateway.admin.guard import FAILURES
from gateway.admin.health_report import STEP_S
from gateway.flow.agreements import Agreement, Verdict
from gateway.testing import MemoryTriton
from tests.event_stream import events, the_next
from tests.flow.builders import jpeg, png, signature, snapshot_json
from tests.harness import HELMET, NO_HELMET, Site, sees, site, until, write_model

READ = {"Authorization": "Bearer reader"}
COMMAND = {"Authorization": "Bearer commander"}
GUARDED = (
    "/api/status", "/api/models", "/api/models/detector", "/api/events", "/api/cameras", "/api/camera?id=a",
    "/api/frame?id=a", "/api/compare", "/api/health", "/api/golden?model=detector", "/api/golden/picture", "/api/log",
)  # fmt: skip
OFF = tuple(path for path in GUARDED if not path.startswith(("/api/status", "/api/models", "/api/log")))


@asynccontextmanager
async def console(folder: Path, **more: Any) -> AsyncIterator[tuple[Site, httpx.AsyncClient]]:
    async with (
        site(folder, **more) as place,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.gateway.http_port}", timeout=20, trust_env=False) as http,
    ):
        yield place, http


def disagreeing() -> MemoryTriton:
    """A Triton whose two variants never see the same."""
    triton = MemoryTriton()
    triton.add_model(signature("detector-onnx"), sees(HELMET))
    triton.add_model(signature("detector-torch"), sees(NO_HELMET))
    return triton


def tokens(folder: Path) -> dict[str, Path]:
    """Both token files."""
    paths = {"api_read_token_file": folder / "read", "api_token_file": folder / "command"}
    paths["api_read_token_file"].write_text("reader\n")
    paths["api_token_file"].write_text("commander\n")
    return paths


def upright(answer: dict[str, Any]) -> Image.Image:
    """The picture in an answer of /api/frame."""
    return Image.open(io.BytesIO(base64.b64decode(answer["jpeg"])))


# --- what it shows ----------------------------------------------------------------------------------


async def test_a_camera_is_listed_with_its_latest_result_as_it_was_published(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        assert (await http.get("/api/cameras")).json() == {"cameras": []}
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        place.snapshot(snapshot_json(b"no picture", device_id="cam-2"))
        await place.answered(2)
        one, two = (await http.get("/api/cameras")).json()["cameras"]
        assert one["entry"]["result"] == place.results[0]
        assert two["entry"]["error"] == place.errors[0]
        assert (one["camera"], one["published"], one["failed"], one["model"]) == ("cam-1", 1, 0, "detector")
        assert (two["camera"], two["published"], two["failed"]) == ("cam-2", 0, 1)
        assert one["entry"]["picture"] is False


async def test_one_camera_has_its_history_and_its_alerts_newest_first(tmp_path: Path) -> None:
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(NO_HELMET))
    async with console(tmp_path, triton=triton) as (place, http):
        for number in range(3):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id="cam-1"))
        await place.answered(3)
        await until(lambda: len(place.of("ai_alert")) == 1, "the alert")
        camera = (await http.get("/api/camera?id=cam-1")).json()
        missing = await http.get("/api/camera?id=cam-9")
        assert camera["alerts"] == place.of("ai_alert")
    times = [entry["result"]["timestamp"] for entry in camera["history"]]
    assert times == sorted((result["timestamp"] for result in place.results), reverse=True)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "CAMERA_UNKNOWN")


async def test_a_picture_comes_with_the_result_that_belongs_to_it(tmp_path: Path) -> None:
    async with console(tmp_path, enable_dual_backend=True) as (place, http):
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await place.answered(1)
        before = await http.get("/api/frame?id=cam-1")
        assert (before.status_code, before.json()["error"]["code"]) == (404, "PICTURE_UNKNOWN")
        place.snapshot(snapshot_json(jpeg(200, 100, seed=1), device_id="cam-1"))
        await place.answered(2)
        place.snapshot(snapshot_json(b"no picture", device_id="cam-1"))
        await place.answered(3)
        frame = (await http.get("/api/frame?id=cam-1&width=100")).json()
        assert frame["entry"]["result"] == place.results[1]
        assert frame["comparison"]["result_id"] == place.results[1]["result_id"]
        assert (frame["width"], frame["height"], upright(frame).size) == (200, 100, (100, 50))
        assert upright(frame).format == "JPEG"
        by_result = (await http.get(f"/api/frame?result={place.results[1]['result_id']}")).json()
        assert by_result["entry"] == frame["entry"]
        gone = await http.get(f"/api/frame?result={place.results[0]['result_id']}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "PICTURE_UNKNOWN")


def half_and_half(kind: str) -> bytes:
    """200 x 100, the left half black, the right half white; stored on its side where the format can say so."""
    picture, exif, file = Image.new("L", (200, 100)), Image.Exif(), io.BytesIO()
    picture.paste(255, (100, 0, 200, 100))
    if kind == "BMP":
        picture.save(file, kind)
    else:
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).convert("RGB").save(file, kind, exif=exif)
    return file.getvalue()


async def test_a_picture_stands_upright_whatever_it_was(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        await http.get("/api/frame?result=none")  # somebody looks
        for number, kind in enumerate(("JPEG", "PNG", "WEBP", "TIFF", "BMP")):
            place.snapshot(snapshot_json(half_and_half(kind), device_id=kind))
            await place.answered(number + 1)
            frame = (await http.get(f"/api/frame?id={kind}&width=64")).json()
            shown = np.asarray(upright(frame).convert("L"))
            assert (frame["width"], frame["height"], shown.shape) == (200, 100, (32, 64)), kind
            assert shown[16, 8] < 40, kind
            assert shown[16, 56] > 215, kind


async def test_variants_are_compared_and_disagreements_kept(tmp_path: Path) -> None:
    async with console(tmp_path, triton=disagreeing(), enable_dual_backend=True) as (place, http):
        await http.get("/api/frame?result=none")  # somebody looks
        for number in range(2):
            place.snapshot(snapshot_json(jpeg(seed=number), device_id="cam-1"))
        await place.answered(2)
        report = (await http.get("/api/compare")).json()
        first = report["disagreements"][1]
        frame = (await http.get(f"/api/frame?result={first['result_id']}")).json()
        beside = place.of("dual_backend_comparison")
    (model,) = report["models"]
    assert (model["model"], model["kind"], model["variants"]) == ("detector", "dual", ["onnx", "torch"])
    assert model["agreement"] == {"true": 0, "false": 2, "unknown": 0}
    assert [row[1:] for row in model["series"]] in ([[0, 2, 0]], [[0, 1, 0], [0, 1, 0]])
    assert model["latency"]["torch"]["count"] == 2
    assert sum(count for _, count in model["latency"]["torch"]["buckets"]) == 2
    assert 0 < model["latency"]["torch"]["p50_ms"] <= model["latency"]["torch"]["p99_ms"]
    assert [each["comparison"] for each in report["disagreements"]] == beside[::-1]
    assert first["picture"]
    assert frame["entry"]["result"]["result_id"] == first["result_id"]
    assert frame["comparison"] == beside[0]
    assert [pair["result_id"] for pair in report["pairs"]] == [beside[1]["result_id"]]


async def test_health_is_what_the_metrics_count(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        place.snapshot(snapshot_json(jpeg()))
        place.snapshot(b"no picture")
        await until(lambda: sum(place.outcomes().values()) == 2, "both outcomes")
        health = (await http.get("/api/health")).json()
        assert health["status"] == (await http.get("/api/status")).json()
        assert health["rates"]["received_per_s"] > 0
        assert health["errors"] == {"PAYLOAD_INVALID": 1}
        assert {each["variant"]: each["state"] for each in health["breakers"]} == {"onnx": "closed", "torch": "closed"}
        assert health["queue"]["max_messages"] == 64
        assert health["process"]["resident_bytes"] > 2**20
        begins = int(time.monotonic()) // STEP_S * STEP_S
        for at in (begins, begins + STEP_S):
            place.gateway._console._health.look(at)
        series = (await http.get("/api/health")).json()["series"]
    (at, *counts), (next_at, *none) = series[-2:]
    assert (counts, none, next_at - at) == ([2, 1, 1, 0, 0], [0, 0, 0, 0, 0], STEP_S)
    assert at == pytest.approx(time.time(), abs=30)


async def test_a_clock_that_is_put_right_does_not_disturb_the_order_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with console(tmp_path, triton=disagreeing(), enable_dual_backend=True) as (place, http):
        health, agreement, now = place.gateway._console._health, Agreement(), time.monotonic()
        wall = time.time()
        for step, ahead_s in enumerate((0, 3600, 0)):
            monkeypatch.setattr(time, "time", functools.partial(float, wall + ahead_s))
            health.look(int(now) // STEP_S * STEP_S + step * STEP_S)
            agreement.count(Verdict(True, ()), now + 10 * step)
        series = (await http.get("/api/health")).json()["series"]
        compared = model_of("detector", "dual", agreement)["series"]
    for rows, step_s in ((series[-3:], STEP_S), (compared, 10)):
        assert [row[0] - rows[0][0] for row in rows] == [0, step_s, 2 * step_s]
    assert [row[1] for row in compared] == [1, 1, 1]


async def test_what_is_asked_over_http_is_shown_to_nobody_else(tmp_path: Path) -> None:
    async with console(tmp_path, triton=disagreeing(), enable_dual_backend=True) as (_, http):
        await http.get("/api/frame?result=none")
        answer = await http.post("/v1/infer?device=cam-1", content=jpeg())
        bad = await http.post("/v1/infer?device=cam-1", content=b"no picture")
        assert (answer.status_code, bad.status_code) == (200, 400)
        assert (await http.get("/api/cameras")).json() == {"cameras": []}
        assert (await http.get("/api/compare")).json() == {"models": [], "disagreements": [], "pairs": []}


# --- golden examples --------------------------------------------------------------------------------


async def test_golden_examples_and_their_pictures(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "golden").mkdir()
    (folder / "golden" / "a.jpg").write_bytes(jpeg(300, 150))
    (folder / "golden" / "bomb.png").write_bytes(png(6000, 6000))
    (folder / "golden" / "text.jpg").write_bytes(b"no picture")
    box = {"class": "forklift", "confidence": 0.8, "bbox": [1, 2, 3, 4]}
    expected = [{"image": name, "predictions": [box]} for name in ("a.jpg", "bomb.png", "text.jpg")]
    (folder / "golden" / "expected.json").write_text(json.dumps(expected))
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    async with console(tmp_path) as (_, http):
        listed = (await http.get("/api/golden?model=detector")).json()["golden"]
        picture = await http.get("/api/golden/picture?model=detector&name=a.jpg&width=100")
        bomb = await http.get("/api/golden/picture?model=detector&name=bomb.png")
        text = await http.get("/api/golden/picture?model=detector&name=text.jpg")
        for name in ("../model.yaml", "../../secret.jpg", "/etc/passwd", "expected.json", "a.jpg\x00", "", "A.JPG"):
            stolen = await http.get("/api/golden/picture", params={"model": "detector", "name": name})
            assert (stolen.status_code, stolen.json()["error"]["code"]) == (404, "PICTURE_UNKNOWN"), name
        for name in ("../detector", "", "nobody", "detector/", "."):
            lost = await http.get("/api/golden", params={"model": name})
            assert (lost.status_code, lost.json()["error"]["code"]) == (404, "MODEL_UNKNOWN"), name
    assert [each["name"] for each in listed] == ["a.jpg", "bomb.png", "text.jpg"]
    assert listed[0]["expected"][0]["class"] == "forklift"
    assert listed[0]["tolerance"]["iou"] > 0
    assert (picture.headers["Content-Type"], picture.headers["X-Picture-Size"]) == ("image/jpeg", "300x150")
    assert Image.open(io.BytesIO(picture.content)).size == (100, 50)
    assert (bomb.status_code, bomb.json()["error"]["code"]) == (413, "IMAGE_TOO_LARGE")
    assert (text.status_code, text.json()["error"]["code"]) == (422, "IMAGE_UNDECODABLE")


async def test_an_expected_json_that_cannot_be_read_is_said_to_be_wrong(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "golden").mkdir()
    (folder / "golden" / "expected.json").write_text("[{")
    async with console(tmp_path) as (_, http):
        answer = await http.get("/api/golden?model=detector")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "GOLDEN_INVALID")


# --- strangers --------------------------------------------------------------------------------------

HOSTILE = (
    "<img src=x onerror=alert(1)>", "\"'`;--", "../../etc/passwd", "a\nevent: bye\ndata: {}\n\n", "\u2028\u202e\x07",
    "\U0001f4f7 café", "a&id=b", "%00%0a", " ", "x" * 256,
)  # fmt: skip


async def test_ids_of_cameras_are_texts_whatever_stands_in_them(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        await http.get("/api/frame?result=none")
        for name in HOSTILE:
            place.snapshot(snapshot_json(jpeg(), device_id=name))
        await place.answered(len(HOSTILE))
        listed = await http.get("/api/cameras")
        assert {each["camera"] for each in listed.json()["cameras"]} == set(HOSTILE)
        assert listed.headers["Content-Type"].startswith("application/json")
        for name in HOSTILE:
            camera = await http.get("/api/camera", params={"id": name})
            frame = await http.get("/api/frame", params={"id": name, "width": 64})
            assert camera.json()["camera"] == frame.json()["entry"]["camera"] == name
        async with http.stream("GET", "/api/events") as stream:
            data = await the_next(events(stream), "results")
        assert {entry["camera"] for entry in data["entries"]} == set(HOSTILE)


async def test_questions_for_pictures_that_make_no_sense(tmp_path: Path) -> None:
    wrong = (
        "",
        "?id=a&result=b",
        *(f"?id=a&width={width}" for width in ("63", "1921", "-1", "1e3", "\u0664\u0668", "")),
    )
    unknown = ("?id=nobody", "?result=" + "a" * 2000, "?result=%00", "?id=")
    async with console(tmp_path) as (_, http):
        for status, queries in ((400, wrong), (404, unknown)):
            for query in queries:
                answer = await http.get(f"/api/frame{query}")
                assert answer.status_code == status, query
                assert answer.json()["error"]["fix"]


async def test_more_pictures_than_may_be_waited_for_are_refused_and_the_rest_come(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        await http.get("/api/frame?result=none")
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await place.answered(1)
        answers = await asyncio.gather(*(http.get("/api/frame?id=cam-1&width=64") for _ in range(MAX_WAITING + 20)))
        codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 503}
    assert codes.count(200) >= MAX_WAITING
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert (refused.json()["error"]["code"], refused.headers["Retry-After"]) == ("QUEUE_FULL", "1")


# --- who may look -----------------------------------------------------------------------------------


async def test_with_a_read_token_nothing_is_told_without_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    async with console(tmp_path / "models", **tokens(tmp_path)) as (place, http):
        about = (await http.get("/api/console")).json()
        assert (about["token_required"], about["actions"], about["console"]) == (True, True, "pictures")
        for path in ("/", "/console/main.js", "/live", "/ready", "/metrics", "/openapi.json", "/v2"):
            assert (await http.get(path)).status_code == 200, path
        for number, path in enumerate([*GUARDED[: FAILURES - 2], "/api/%73tatus", "/api/./status"]):
            form = ("Bearer guess", "Bearer", "Basic reader", "reader")[number % 4]
            for given in ({}, {"Authorization": form}):
                answer = await http.get(path, headers=given)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED"), path
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        late = await http.get("/api/cameras", headers=READ)
        assert (late.status_code, late.json()["error"]["code"]) == (429, "TOO_MANY_FAILURES")
        assert place.metrics.value("http_refusals_total", reason="unauthorized") == 2 * FAILURES


async def test_either_token_opens_what_is_looked_at_and_only_one_what_changes_something(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    async with console(tmp_path / "models", **tokens(tmp_path)) as (_, http):
        for path in GUARDED:
            if path == "/api/events":
                continue
            codes = [(await http.get(path, headers=headers)).status_code for headers in (READ, COMMAND)]
            assert codes[0] == codes[1] != 401, path
        assert (await http.post("/api/models/detector/unload", headers=READ)).status_code == 401
        assert (await http.post("/v1/infer", headers=READ, content=jpeg())).status_code == 401
        assert (await http.post("/v1/infer", headers=COMMAND, content=jpeg())).status_code == 200
        (tmp_path / "read").write_text("another")
        assert (await http.get("/api/cameras", headers=READ)).status_code == 401
        assert (await http.get("/api/cameras", headers={"Authorization": "Bearer another"})).status_code == 200
        (tmp_path / "read").write_text("")
        for text in ("Bearer", "Bearer another"):
            assert (await http.get("/api/cameras", headers={"Authorization": text})).status_code == 401


async def test_a_token_in_the_address_is_none(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    async with console(tmp_path / "models", **tokens(tmp_path)) as (_, http):
        for query in ("token=reader", "access_token=reader", "Authorization=Bearer%20reader"):
            assert (await http.get(f"/api/cameras?{query}")).status_code == 401


# --- less of it -------------------------------------------------------------------------------------


async def test_with_results_alone_no_picture_is_ever_kept(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "golden").mkdir()
    (folder / "golden" / "a.jpg").write_bytes(jpeg())
    (folder / "golden" / "expected.json").write_text('[{"image": "a.jpg", "predictions": []}]')
    async with console(tmp_path, console="results") as (place, http):
        assert (await http.get("/api/console")).json()["console"] == "results"
        await http.get("/api/frame?result=none")
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await place.answered(1)
        frame = await http.get("/api/frame?id=cam-1")
        golden = await http.get("/api/golden/picture?model=detector&name=a.jpg")
        (camera,) = (await http.get("/api/cameras")).json()["cameras"]
        assert place.gateway._pipeline.gallery is not None
        assert place.gateway._pipeline.gallery.pictures.size == 0
    assert (camera["published"], camera["entry"]["picture"]) == (1, False)
    for answer in (frame, golden):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "PICTURE_UNKNOWN")
        assert "CONSOLE=pictures" in answer.json()["error"]["fix"]


async def test_without_a_console_every_page_of_it_says_how_to_have_one(tmp_path: Path) -> None:
    async with console(tmp_path, console="off") as (place, http):
        place.snapshot(snapshot_json(jpeg()))
        await place.answered(1)
        for path in ("/", "/console/main.js", "/api/console", *OFF):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "CONSOLE_OFF"), path
            assert "CONSOLE=" in answer.json()["error"]["fix"]
        for path in ("/api/status", "/api/models", "/api/log", "/metrics", "/ready"):
            assert (await http.get(path)).status_code == 200, path


# --- the page ---------------------------------------------------------------------------------------


async def test_the_page_and_its_files_come_from_here_and_may_load_nothing_else(tmp_path: Path) -> None:
    files = console_files()
    async with console(tmp_path) as (_, http):
        page = await http.get("/")
        assert page.headers["Content-Security-Policy"] == POLICY
        assert (page.headers["Content-Type"], page.headers["Cache-Control"]) == ("text/html; charset=utf-8", "no-cache")
        assert page.content == files["index.html"].content
        for name, file in files.items():
            answer = await http.get(f"/console/{name}")
            assert (answer.content, answer.headers["Content-Type"]) == (file.content, file.kind)
            for known in (file.tag, f'"other", W/{file.tag}'):
                again = await http.get(f"/console/{name}", headers={"If-None-Match": known})
                assert (again.status_code, again.content) == (304, b"")
                assert again.headers["Content-Security-Policy"] == POLICY
        assert (await http.get("/", headers={"If-None-Match": '"another"'})).status_code == 200


async def test_no_name_leads_out_of_the_console(tmp_path: Path) -> None:
    names = ("../guard.py", "__init__.py", "../../app.py", "/etc/passwd", "main.js/", "main.js\x00", "MAIN.JS",
             "a/../main.js", "..\\guard.py", "a" * 3000)  # fmt: skip
    async with console(tmp_path) as (_, http):
        for name in names:
            answer = await http.get(f"/console/{quote(name, safe='')}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND"), name


async def test_a_picture_that_is_asked_for_while_the_gateway_stops_is_no_defect(tmp_path: Path) -> None:
    async with console(tmp_path) as (place, http):
        await http.get("/api/frame?result=none")
        place.snapshot(snapshot_json(jpeg(), device_id="cam-1"))
        await place.answered(1)
        asked = [asyncio.create_task(http.get("/api/frame?id=cam-1")) for _ in range(20)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        with capture_logs() as logs:
            await place.stop()
        answers = await asyncio.gather(*asked, return_exceptions=True)
    codes = {answer.status_code for answer in answers if isinstance(answer, httpx.Response)}
    assert codes <= {200, 503}
    assert not [entry for entry in logs if "defect" in entry["event"]]
