"""The console of `serve --workers N`: one view of all workers, and events of all of them in one stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.admin.answers import CLIENT_HEADER
from gateway.admin.compare_report import MOST_PAIRS
from gateway.admin.console_pages import POLICY
from gateway.admin.events import MAX_STREAMS
from gateway.admin.guard import FAILURES
from gateway.admin.steps import wall_clock_shift
from gateway.metrics import Metrics
from gateway.workers.aggregation import Merged, counted, families
from gateway.workers.console_merge import STEP_S, add_series, cameras, comparisons, health, settled
from tests.admin.test_console import GUARDED, disagreeing, tokens
from tests.event_stream import events, the_next
from tests.flow.builders import jpeg, snapshot_json
from tests.harness import until, write_model
from tests.test_workers_http import surface
from tests.worker_site import WorkerSite, detector

CAMERAS = tuple(f"cam-{number}" for number in range(8))
"""Enough that each of two workers has some."""
AT_ONCE_S = 5.0
"""Half the time after which a stream speaks by itself, and notices who has left."""


async def look(client: httpx.AsyncClient) -> None:
    """Have all workers keep pictures."""
    await client.get("/api/frame?result=none")


async def sent(place: WorkerSite) -> None:
    """One snapshot of each camera, answered."""
    before = len(place.results)
    for number, name in enumerate(CAMERAS):
        place.snapshot(snapshot_json(jpeg(seed=number), device_id=name))
    await place.answered(before + len(CAMERAS))
    await place.acknowledged()


def streams(place: WorkerSite) -> list[int]:
    """Open streams of each worker."""
    return [len(worker.gateway._console._streams) for worker in place.workers.values()]


async def asked_behind(place: WorkerSite, path: str = "cameras", token: str = "") -> httpx.Response:
    """What the second worker answers when the front asks for this client."""
    headers = {CLIENT_HEADER: "127.0.0.1", **({"Authorization": f"Bearer {token}"} if token else {})}
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(place.sockets[1]))) as worker:
        return await worker.get(f"http://worker/api/{path}", headers=headers)


async def test_what_it_shows_is_of_all_workers(tmp_path: Path) -> None:
    async with surface(tmp_path, triton=disagreeing, enable_dual_backend=True) as (place, client):
        await look(client)
        await sent(place)
        galleries = [worker.gateway._pipeline.gallery for worker in place.workers.values()]
        assert all(gallery is not None and gallery.cameras for gallery in galleries), "each has some cameras"
        listed = (await client.get("/api/cameras")).json()["cameras"]
        assert [each["camera"] for each in listed] == list(CAMERAS)
        results = {result["device_id"]: result for result in place.results}
        for name in CAMERAS:
            camera = (await client.get(f"/api/camera?id={name}")).json()
            frame = (await client.get(f"/api/frame?id={name}&width=64")).json()
            assert camera["history"][0]["result"] == frame["entry"]["result"] == results[name]
        report = (await client.get("/api/compare")).json()
        (model,) = report["models"]
        assert model["agreement"] == {"true": 0, "false": len(CAMERAS), "unknown": 0}
        assert sum(row[2] for row in model["series"]) == len(CAMERAS)
        assert model["latency"]["onnx"]["count"] == len(CAMERAS)
        assert sum(count for _, count in model["latency"]["onnx"]["buckets"]) == len(CAMERAS)
        assert {each["camera"] for each in report["pairs"]} == set(CAMERAS)
        found = (await client.get(f"/api/frame?result={report['disagreements'][0]['result_id']}")).json()
        assert found["comparison"] == report["disagreements"][0]["comparison"]
        for path, code in (("camera?id=x", "CAMERA_UNKNOWN"), ("frame?id=x", "CAMERA_UNKNOWN"),
                           ("frame?result=x", "PICTURE_UNKNOWN")):  # fmt: skip
            missing = await client.get(f"/api/{path}")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, code)
        page = await client.get("/")
        assert page.headers["Content-Security-Policy"] == POLICY
        assert (await client.get("/api/console")).json()["console"] == "pictures"
        ways = [f"{path}?id={name}" for path in ("camera", "frame") for name in CAMERAS]
        for path in (*ways, "cameras", "compare", "health", "frame?result=x"):
            headed = await client.head(f"/api/{path}")
            assert (headed.status_code, headed.content) == (404 if path == "frame?result=x" else 200, b""), path


async def test_it_has_all_that_one_gateway_tells(tmp_path: Path) -> None:
    async with surface(tmp_path, triton=disagreeing, enable_dual_backend=True) as (place, client):
        await sent(place)
        for path in ("cameras", "compare", "health"):
            alone, together = (await asked_behind(place, path)).json(), (await client.get(f"/api/{path}")).json()
            assert set(together) == {*alone, "missing"}, path
            for name in {"cameras", "pairs", "disagreements"} & set(alone):
                assert set(together[name][0]) == set(alone[name][0]), name
            for name in {"shared_memory", "broker", "process", "errors", "drops"} & set(alone):
                assert set(together[name]) == set(alone[name]), name


async def test_health_is_that_of_all(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        await sent(place)
        for at in (5, 10):  # long ago
            for worker in place.workers.values():
                worker.gateway._console._health.look(at)
        told = (await client.get("/api/health")).json()
        by_time = {row[0]: row[1:] for row in told["series"]}
        assert len(by_time) == len(told["series"]), "a row for all"
        assert {wall_clock_shift(STEP_S) + at for at in (5, 10)} <= set(by_time)
        assert [sum(column) for column in zip(*by_time.values(), strict=True)] == [8, 8, 0, 0, 0]
        assert told["status"] == (await client.get("/api/status")).json()
        assert told["queue"]["max_messages"] == 2 * 64
        assert told["process"]["workers"] == 2
        assert [(each["variant"], each["state"]) for each in told["breakers"]] == [
            ("onnx", "closed"),
            ("torch", "closed"),
        ]


async def test_one_stream_has_the_events_of_all_and_ends_theirs_when_its_client_leaves(tmp_path: Path) -> None:
    async with surface(tmp_path, triton=detector) as (place, client):
        async with client.stream("GET", "/api/events") as answer:
            told = events(answer)
            await until(lambda: streams(place) == [1, 1], "a stream at each worker")
            await sent(place)
            seen: set[str] = set()
            alerted: set[str] = set()
            while not seen == alerted == set(CAMERAS):
                name, data = await anext(told)
                seen |= {entry["camera"] for entry in data.get("entries", ())}
                alerted |= {alert["device_id"] for alert in data.get("alerts", ())}
                assert name in ("results", "alerts")
        async with asyncio.timeout(AT_ONCE_S):
            await until(lambda: streams(place) == [0, 0], "the end of both")


async def test_a_worker_that_comes_back_is_listened_to_again(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client), client.stream("GET", "/api/events") as answer:
        told = events(answer)
        await until(lambda: streams(place) == [1, 1], "a stream at each worker")
        await place.kill(0)
        await place.start(0)
        await until(lambda: place.standing.report().ready, "the new worker")
        await until(lambda: streams(place) == [1, 1], "its stream")
        await sent(place)
        seen: set[str] = set()
        while seen != set(CAMERAS):
            seen |= {entry["camera"] for entry in (await the_next(told, "results"))["entries"]}


async def test_the_ninth_who_looks_is_refused_by_the_front(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client), contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_STREAMS):
            await stack.enter_async_context(client.stream("GET", "/api/events"))
        assert (await client.get("/api/events")).status_code == 503
        await until(lambda: streams(place) == [MAX_STREAMS] * 2, "all streams")
        elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with (
            httpx.AsyncClient(base_url=client.base_url, transport=elsewhere) as operator,
            operator.stream("GET", "/api/events", headers={CLIENT_HEADER: "127.0.0.1"}) as answer,
        ):
            assert answer.status_code == 200, "one of the address that has all gives way"
            told = events(answer)
            await sent(place)
            seen: set[str] = set()
            while seen != set(CAMERAS):
                seen |= {entry["camera"] for entry in (await the_next(told, "results"))["entries"]}


async def test_the_front_asks_for_the_read_token_and_counts_failures(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    async with surface(tmp_path / "models", detector, **tokens(tmp_path)) as (_, client):
        right = {"Authorization": "Bearer reader"}
        assert (await client.get("/api/cameras", headers=right)).status_code == 200
        async with client.stream("GET", "/api/events", headers=right) as answer:
            assert await the_next(events(answer), "results")
        for path in ("/", "/api/console", "/ready", "/metrics"):
            assert (await client.get(path)).status_code == 200
        for number, path in enumerate(GUARDED[:FAILURES]):
            forged = {CLIENT_HEADER: f"10.0.0.{number}"}
            assert (await client.get(path, headers=forged)).status_code == 401, path
            assert (await client.get(path, headers=forged | {"Authorization": "Bearer guess"})).status_code == 401, path
        assert (await client.get("/api/cameras", headers=right)).status_code == 429


async def test_while_all_workers_are_away_the_page_is_there(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        await place.kill(0)
        await place.kill(1)
        assert (await client.get("/")).status_code == 200
        for path in ("cameras", "camera?id=a", "compare", "frame?id=a", "health"):
            answer = await client.get(f"/api/{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "WORKER_UNAVAILABLE")
        async with client.stream("GET", "/api/events") as stream:
            assert stream.status_code == 200


async def test_while_one_is_away_the_rest_is_shown_and_what_was_counted_stays(tmp_path: Path) -> None:
    async with surface(tmp_path) as (place, client):
        for name in CAMERAS:
            place.snapshot(snapshot_json(b"no picture", device_id=name))
        await place.answered(len(CAMERAS))
        await place.acknowledged()
        before = (await client.get("/api/health")).json()
        assert before["errors"]["IMAGE_UNDECODABLE"] == len(CAMERAS)
        assert (before["missing"], before["broker"]["connected"]) == (0, True)
        shown = (await client.get("/api/cameras")).json()
        assert (len(shown["cameras"]), shown["missing"]) == (len(CAMERAS), 0)
        await place.kill(0)
        told = (await client.get("/api/health")).json()
        assert (told["missing"], told["process"]["workers"]) == (1, 1)
        assert told["status"]["degraded"] == ["worker 1 of 2 is starting"]
        assert told["errors"] == before["errors"]
        assert told["status"]["snapshots"] == before["status"]["snapshots"]
        rest = (await client.get("/api/cameras")).json()
        assert 0 < len(rest["cameras"]) < len(CAMERAS)
        assert rest["missing"] == (await client.get("/api/compare")).json()["missing"] == 1


async def test_commands_that_are_off_are_counted_by_the_front_and_not_by_the_lead_alone(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    reading = {"api_read_token_file": tokens(tmp_path)["api_read_token_file"]}
    async with surface(tmp_path / "models", detector, **reading) as (_, client):
        right = {"Authorization": "Bearer reader"}
        for number in range(FAILURES):
            shown = await client.get("/api/cameras", headers=right)
            assert (shown.status_code, shown.json()["missing"]) == (200, 0), number
            refused = await client.post("/api/models/detector/load")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "UNAUTHORIZED")
        assert (await client.get("/api/cameras", headers=right)).status_code == 429


async def test_a_golden_picture_comes_with_the_size_of_its_original(tmp_path: Path) -> None:
    golden = write_model(tmp_path) / "golden"
    golden.mkdir()
    (golden / "a.jpg").write_bytes(jpeg(300, 150))
    (golden / "expected.json").write_text('[{"image": "a.jpg", "predictions": []}]')
    async with surface(tmp_path) as (_, client):
        picture = await client.get("/api/golden/picture?model=detector&name=a.jpg&width=100")
    assert (picture.headers["Content-Type"], picture.headers["X-Picture-Size"]) == ("image/jpeg", "300x150")


async def test_a_stream_whose_token_is_taken_back_ends_before_a_worker_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    given = tokens(tmp_path)
    async with surface(tmp_path / "models", detector, **given) as (place, client):
        async with client.stream("GET", "/api/events", headers={"Authorization": "Bearer reader"}) as answer:
            await until(lambda: streams(place) == [1, 1], "a stream at each worker")
            given["api_read_token_file"].write_text("another\n")
            place.workers[1].gateway._console.close()  # which would be asked again in a second
            async with asyncio.timeout(AT_ONCE_S):
                assert all([name != "bye" async for name, _ in events(answer)])
        for _ in range(FAILURES - 1):
            assert (await asked_behind(place, token="guess")).status_code == 401
        right = await asked_behind(place, token="another")
        assert right.status_code == 200, "no other guess has been counted there"


async def test_a_worker_that_refuses_a_client_is_said_to_be_missing_and_ends_his_stream(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    right = {"Authorization": "Bearer reader"}
    async with surface(tmp_path / "models", detector, **tokens(tmp_path)) as (place, client):
        for _ in range(FAILURES):
            assert (await asked_behind(place, token="guess")).status_code == 401
        shown = await client.get("/api/cameras", headers=right)
        assert (shown.status_code, shown.json()["missing"]) == (200, 1)
        async with client.stream("GET", "/api/events", headers=right) as answer, asyncio.timeout(AT_ONCE_S):
            assert all([name != "bye" async for name, _ in events(answer)])


async def test_without_a_console_the_front_has_none_either(tmp_path: Path) -> None:
    async with surface(tmp_path, console="off") as (_, client):
        for path in ("/", "/api/console", "/api/cameras", "/api/events", "/api/health"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "CONSOLE_OFF"), path


_rows = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(0, 9)), unique_by=lambda row: row[0])


@given(st.lists(_rows, max_size=4))
@hypothesis_settings(max_examples=30, deadline=None)
def test_nothing_is_lost_when_series_are_added(series: list[list[tuple[int, int, int]]]) -> None:
    added = add_series(series)
    assert [row[0] for row in added] == sorted({row[0] for each in series for row in each})
    for column in (1, 2):
        assert sum(row[column] for row in added) == sum(row[column] for each in series for row in each)


@given(st.lists(_rows, min_size=1, max_size=4), st.integers(0, 30))
@hypothesis_settings(max_examples=30, deadline=None)
def test_a_row_is_shown_when_all_have_it_or_another_step_has_passed(
    series: list[list[tuple[int, int, int]]], now: int
) -> None:
    having = Counter(row[0] for each in series for row in each)
    shown = [row[0] for row in settled(series, now)]
    assert shown == [at for at in sorted(having) if having[at] == len(series) or now - at > STEP_S]


# --- what is made of the answers, without the workers -----------------------------------------------

MESSAGE = '{"b" : 1.50,\t"a": "\\u00e9"}'
"""Nothing that writes JSON would write it so: it is still there only where nobody has read it."""


def answered(**body: list[dict[str, Any]]) -> bytes:
    """A worker's answer with MESSAGE in place of None."""
    return json.dumps(body).replace("null", MESSAGE).encode()


def pair(camera: str, at: float) -> dict[str, Any]:
    return {"camera": camera, "at": at, "model": "m", "result_id": "r", "kind": "dual", "picture": False,
            "comparison": None}  # fmt: skip


def test_messages_are_passed_on_as_the_bytes_they_are() -> None:
    camera = {"camera": "a", "model": "m", "facility": "", "last_at": 1.0, "rate_per_s": 0, "published": 1, "failed": 0,
              "dropped": 0, "entry": None}  # fmt: skip
    listed = msgspec.json.encode(cameras([answered(cameras=[camera]), answered(cameras=[{**camera, "camera": "b"}])]))
    assert listed.count(MESSAGE.encode()) == 2
    assert set(json.loads(listed)["cameras"][0]) == set(camera)
    bodies = [answered(models=[], disagreements=[pair(name, 1.0)], pairs=[pair(name, 2.0)]) for name in "ab"]
    compared = msgspec.json.encode(comparisons(bodies))
    assert compared.count(MESSAGE.encode()) == 4
    assert set(json.loads(compared)["pairs"][0]) == set(pair("a", 0))


def test_what_workers_had_counted_counts_after_their_end() -> None:
    metrics = Metrics()
    metrics.snapshots.labels("dropped_full").inc(3)
    metrics.snapshot_errors.labels("QUEUE_FULL").inc(3)
    metrics.tensor_transfers.labels("bytes").inc(2)
    metrics.shared_memory_fallbacks.labels("too_large").inc()
    memory = {"bytes": 0, "max_bytes": 5, "slots": {}, "transfers": {"bytes": 0}, "fallbacks": {}}
    living: dict[str, Any] = {
        "rates": {}, "series": [], "drops": {"dropped_full": 0}, "errors": {}, "breakers": [], "queue": {},
        "broker": {}, "triton": {"ready": True}, "shared_memory": memory, "process": {},
    }  # fmt: skip
    merged = Merged([], [families(Metrics().registry), counted(families(metrics.registry))])
    shown = health([json.dumps(living).encode()], {}, merged, 0.0, 0.0)
    assert shown["drops"] == {"dropped_full": 3}
    assert shown["errors"]["QUEUE_FULL"] == 3
    assert shown["shared_memory"]["max_bytes"] == 5
    assert shown["shared_memory"]["transfers"]["bytes"] == 2
    assert shown["shared_memory"]["fallbacks"]["too_large"] == 1


def test_of_many_pairs_the_newest_are_shown_each_camera_once() -> None:
    bodies = [
        answered(
            models=[], disagreements=[], pairs=[pair(f"{number}", number + extra) for number in range(MOST_PAIRS + 5)]
        )
        for extra in (0, 0.5)
    ]
    shown = comparisons(bodies)["pairs"]
    assert [(each.camera, each.at) for each in shown] == [
        (f"{number}", number + 0.5) for number in reversed(range(5, MOST_PAIRS + 5))
    ]
