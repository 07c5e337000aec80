"""The HTTP side through a real socket: state, one picture at a time, and what KServe's clients ask."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway import __version__
from gateway.admin.infer import BODY_LIMIT_S, STATUS
from gateway.errors import BackendRejected
from tests.flow.builders import jpeg, message
from tests.harness import Site, site, until


@asynccontextmanager
async def served(folder: Path, **more: Any) -> AsyncIterator[tuple[Site, httpx.AsyncClient]]:
    async with (
        site(folder, **more) as place,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.gateway.http_port}", timeout=20) as client,
    ):
        yield place, client


async def test_one_picture_gets_its_result_and_nothing_is_published(tmp_path: Path) -> None:
    async with served(tmp_path) as (place, client):
        answer = await client.post("/v1/infer?device=cam-7&variant=torch", content=jpeg())
        assert answer.status_code == 200
        assert place.results == []
        assert place.outcomes() == {"published": 1}
    result = answer.json()
    assert (result["message_type"], result["device_id"]) == ("ai_inference_result", "cam-7")
    assert (result["backend_used"], result["predictions"][0]["class"]) == ("torch", "person_with_helmet")


async def test_a_form_and_json_are_read_too(tmp_path: Path) -> None:
    body = {"device_id": "cam-8", "image_data": base64.b64encode(jpeg()).decode(), "timestamp": 5}
    async with served(tmp_path) as (_, client):
        form = await client.post("/v1/infer", files={"image": ("a.jpg", jpeg(), "image/jpeg")})
        text = await client.post("/v1/infer", json=body)
    assert (form.status_code, text.status_code) == (200, 200)
    assert (text.json()["device_id"], text.json()["timestamp"]) == ("cam-8", 5)


async def test_the_query_names_model_and_variant_for_json_too(tmp_path: Path) -> None:
    body = {"image_data": base64.b64encode(jpeg()).decode()}
    async with served(tmp_path) as (_, client):
        named = await client.post("/v1/infer?variant=torch", json=body)
        unknown = await client.post("/v1/infer?model=nope", json=body)
        number = await client.post("/v1/infer?model=nope", content=b"21.5")
    assert named.json()["backend_used"] == "torch"
    assert (unknown.status_code, number.status_code) == (404, 404)


async def test_the_same_picture_from_many_at_once(tmp_path: Path) -> None:
    async with served(tmp_path) as (place, client):
        answers = await asyncio.gather(*(client.post("/v1/infer", content=jpeg()) for _ in range(6)))
        assert [answer.status_code for answer in answers] == [200] * 6
        assert len({answer.json()["result_id"] for answer in answers}) == 6
        assert place.outcomes() == {"published": 6}


@pytest.mark.parametrize(
    ("query", "body", "status", "code"),
    [
        ("", b"", 400, "PAYLOAD_INVALID"),
        ("", b"hello", 400, "PAYLOAD_INVALID"),
        ("", b"\xff\xd8\xff", 422, "IMAGE_UNDECODABLE"),
        ("", b"GIF89a", 422, "IMAGE_UNDECODABLE"),
        ("?model=nope", jpeg(), 404, "MODEL_UNKNOWN"),
        ("?variant=nope", jpeg(), 404, "VARIANT_UNKNOWN"),
        ("?modle=detector", jpeg(), 400, "PAYLOAD_INVALID"),
        ("", b"\xff\xd8\xff" + bytes(2**20), 413, "PAYLOAD_TOO_LARGE"),
        ("", b"21.5", 404, "MODEL_UNKNOWN"),
    ],
)
async def test_errors_have_the_form_of_error_messages(
    tmp_path: Path, query: str, body: bytes, status: int, code: str
) -> None:
    async with served(tmp_path, max_payload_bytes=2**20) as (_, client):
        answer = await client.post(f"/v1/infer{query}", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["fix"]


async def test_a_body_of_unknown_length_is_cut_off_at_the_limit(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield bytes(65_536)

    async with served(tmp_path, max_payload_bytes=2**20) as (_, client):
        try:
            answer = await client.post("/v1/infer", content=endless())
        except httpx.TransportError:
            return  # hung up while we were still sending
    assert answer.status_code == 413


async def test_a_form_without_a_picture_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        empty = await client.post("/v1/infer", files={"note": (None, b"hello")})
        broken = await client.post(
            "/v1/infer", content=b"--x\r\n", headers={"Content-Type": "multipart/form-data; boundary=y"}
        )
        endless = await client.post("/v1/infer", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert [answer.status_code for answer in (empty, broken, endless)] == [400, 400, 400]


async def test_a_form_with_an_endless_header_is_refused_like_any_other(tmp_path: Path) -> None:
    body = b"--x\r\nContent-Disposition: form-data; name=image\r\nX: " + b"a" * 20_000 + b"\r\n\r\n1\r\n--x--\r\n"
    async with served(tmp_path) as (_, client):
        form = await client.post("/v1/infer", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        coded = await client.post("/v1/infer", content=jpeg(), headers={"Content-Encoding": "gzip"})
    assert (form.status_code, form.json()["error"]["code"]) == (400, "PAYLOAD_INVALID")
    assert coded.status_code == 415


async def test_one_who_asks_is_answered_in_time_though_the_broker_is_away(tmp_path: Path) -> None:
    async with served(tmp_path, max_in_flight=1, snapshot_deadline_ms=500) as (place, client):
        place.broker.stop()
        for number in range(8):  # they wait for the broker, or for one another
            await place.gateway._pipeline.intake.accept(message(jpeg(seed=number)))
        garbage, picture = await asyncio.gather(
            client.post("/v1/infer", content=b"no picture"), client.post("/v1/infer", content=jpeg(seed=99))
        )
        assert garbage.status_code == 400
        assert picture.status_code in (200, 504)
        place.broker.start()


async def test_at_a_stop_everybody_who_waits_gets_an_answer(tmp_path: Path) -> None:
    async with served(tmp_path, drain_timeout_s=0.2) as (place, client):
        place.triton.hold("detector-onnx")
        asked = asyncio.create_task(client.post("/v1/infer", content=jpeg()))
        await place.triton.wait_until_held("detector-onnx")
        assert await place.stop() == 0
        answer = await asked
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "MODEL_UNAVAILABLE")
    assert place.outcomes() == {"abandoned": 1}


async def test_a_failing_variant_is_a_bad_gateway(tmp_path: Path) -> None:
    async with served(tmp_path) as (place, client):
        for variant in ("detector-onnx", "detector-torch"):
            place.triton.fail(variant, BackendRejected("no memory"))
        answer = await client.post("/v1/infer", content=jpeg())
        assert place.errors == []
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "BACKEND_REJECTED")


async def test_one_who_leaves_gets_nothing_published_in_his_place(tmp_path: Path) -> None:
    async with served(tmp_path) as (place, client):
        place.triton.hold("detector-onnx")
        asked = asyncio.create_task(client.post("/v1/infer", content=jpeg()))
        await place.triton.wait_until_held("detector-onnx")
        asked.cancel()
        await asyncio.wait([asked])
        place.triton.release("detector-onnx")
        await until(lambda: place.outcomes() == {"published": 1}, "the outcome")
        assert place.results == []


async def test_more_than_may_be_under_way_are_asked_to_come_back(tmp_path: Path) -> None:
    async with served(tmp_path) as (place, client):
        place.triton.hold("detector-onnx")
        asked = [asyncio.create_task(client.post("/v1/infer", content=jpeg(seed=n))) for n in range(12)]
        await until(lambda: any(task.done() for task in asked), "a refusal")
        refused = next(task.result() for task in asked if task.done())
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        place.triton.release("detector-onnx")
        codes = [answer.status_code for answer in await asyncio.gather(*asked)]
    assert codes.count(200) == 8


async def test_bodies_that_are_held_together_have_a_limit_of_bytes(tmp_path: Path) -> None:
    async with served(tmp_path, max_payload_bytes=2**20) as (place, client):
        place.triton.hold("detector-onnx")
        large = [jpeg(seed=number) + bytes(1_000_000) for number in range(3)]
        asked = [asyncio.create_task(client.post("/v1/infer", content=body)) for body in large]
        await until(lambda: any(task.done() for task in asked), "a refusal")
        refused = next(task.result() for task in asked if task.done())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "QUEUE_FULL")
        assert refused.headers["Retry-After"] == "1"
        place.triton.release("detector-onnx")
        assert sorted([answer.status_code for answer in await asyncio.gather(*asked)]) == [200, 200, 503]
        assert (await client.post("/v1/infer", content=large[0])).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic secret", 401), ("Bearer \xfc", 401), ("Bearer secret", 200)],
)
async def test_with_a_token_configured_it_has_to_be_given(tmp_path: Path, header: str | None, status: int) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    (tmp_path / "models").mkdir()
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    async with served(tmp_path / "models", api_token_file=token) as (_, client):
        answer = await client.post("/v1/infer", content=jpeg(), headers=headers)
        assert (await client.get("/api/status")).status_code == 200
    assert answer.status_code == status


async def test_an_unreadable_token_file_lets_nobody_in(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("")
    (tmp_path / "models").mkdir()
    async with served(tmp_path / "models", api_token_file=token) as (_, client):
        empty = await client.post("/v1/infer", content=jpeg(), headers={"Authorization": "Bearer x"})
        token.unlink()
        missing = await client.post("/v1/infer", content=jpeg(), headers={"Authorization": "Bearer x"})
    assert (empty.status_code, missing.status_code) == (401, 401)


async def test_state(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        status = (await client.get("/api/status")).json()
        models = (await client.get("/api/models")).json()["models"]
        one = (await client.get("/api/models/detector")).json()
        missing = await client.get("/api/models/nope")
    assert (status["version"], status["status"], status["models"]) == (__version__, "ready", ["detector"])
    assert models == [one]
    assert one["variants"]["onnx"]["state"] == "ready"
    assert one["variants"]["onnx"]["input"] == {"height": 64, "width": 64}
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "MODEL_UNKNOWN")


async def test_kserve_clients_recognise_the_service(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        assert (await client.get("/v2")).json()["name"] == "triton-edge-gateway"
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/detector/ready"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/v2/models/detector/versions/1/ready")).status_code == 200
        assert (await client.get("/v2/models/detector/versions/7/ready")).status_code == 404
        assert (await client.get("/v2/models/nope")).status_code == 404
        assert (await client.get("/v2/models/detector")).json()["versions"] == ["1"]


async def test_pages_that_are_not_there_are_said_so_in_json(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        missing, wrong = await client.get("/nope"), await client.delete("/v1/infer")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")


async def test_the_description_has_every_route_and_no_other(tmp_path: Path) -> None:
    async with served(tmp_path) as (place, client):
        document = (await client.get("/openapi.json")).json()
        routes = {
            (route.method.lower(), route.resource.canonical)
            for route in place.gateway._http._runner.app.router.routes()
            if route.method != "HEAD" and route.resource is not None
        }
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == routes
    assert document["openapi"].startswith("3.1")
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


async def test_the_description_says_what_is_answered(tmp_path: Path) -> None:
    """The keys of real answers are those of the schemas."""
    async with served(tmp_path) as (_, client):
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
        answers = {
            "Status": (await client.get("/api/status")).json(),
            "Model": (await client.get("/api/models/detector")).json(),
            "Result": (await client.post("/v1/infer", content=jpeg())).json(),
            "Error": (await client.get("/api/models/nope")).json(),
        }
    for name, answer in answers.items():
        assert set(schemas[name]["properties"]) == set(answer), name
    assert msgspec.json.encode(schemas)


def test_the_page_has_the_status_of_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    rows = dict(re.findall(r"^\| (\d{3}) \| (.+) \|$", page, re.MULTILINE))
    for code, status in STATUS.items():
        assert f"`{code}`" in rows[str(status)], code
    assert f"`REQUEST_TIMEOUT`: the body did not come within {BODY_LIMIT_S:.0f} s" in rows["408"]
    assert "`UNAUTHORIZED`" in rows["401"]
