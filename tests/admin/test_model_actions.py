"""Commands over HTTP: who may, what is refused before anybody is asked, and what is answered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.admin.command_bodies import MAX_COMMAND_BYTES, STATUS
from gateway.errors import BackendUnavailable, CommandRefused
from gateway.rollout.commands import Action, Command
from gateway.rollout.state import ModelState
from tests.admin.commanded import office, refused, release, rollout, with_token

BEARER = {"Authorization": "Bearer s3cret"}
PROMOTE = "/api/models/detector/promote"


def error(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) == {"error"}
    assert body["error"]["message"]
    return answer.status_code, body["error"]["code"]


@pytest.mark.parametrize("action", list(Action))
async def test_each_action_is_carried_out(tmp_path: Path, action: Action) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        answer = await place.http.post(f"/api/models/detector/{action}", headers=BEARER)
        assert (answer.status_code, answer.json()) == (202, {"message": f"version 3 of detector: {action}"})
        (command,) = place.commands.executed
        assert command == Command(action, "detector", None, "HTTP from 127.0.0.1")
        assert place.counted(action, "ok") == 1


async def test_a_version_in_the_body_or_in_the_query(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        given: list[dict[str, Any]] = [{"json": {"version": 4}}, {"params": {"version": "4"}}, {"json": {}}, {}]
        for more in given:
            assert (await place.http.post(PROMOTE, headers=BEARER, **more)).status_code == 202
        assert [command.version for command in place.commands.executed] == [4, 4, None, None]


@pytest.mark.parametrize(
    "more",
    [
        *({"json": {"version": version}} for version in (0, -1, 1e9, 3.0, "3", True, 2**31, [3], {"a": 1})),
        *({"params": {"version": version}} for version in ("0", "-1", "1e9", "", "٣", "3 ", "9" * 5000, "x")),
        {"params": {"version": "3"}, "json": {"version": 3}},
        {"params": [("version", "3"), ("version", "4")]},
        {"params": {"verison": "3"}},
        {"json": {"verison": 3}},
        {"json": {"version": 3, "model": "detector"}},
        {"json": []},
        {"json": "promote"},
        {"content": b"version=3"},
        {"content": b"\xff\xfe"},
        {"content": b"[" * 60_000},
        {"content": b'{"version": 99999999999999999999999999}'},
    ],
)
async def test_what_is_no_command_reaches_nobody(tmp_path: Path, more: dict[str, Any]) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        assert error(await place.http.post(PROMOTE, headers=BEARER, **more)) == (400, "COMMAND_INVALID")
        assert place.commands.executed == []
        assert place.counted("promote", "COMMAND_INVALID") == 1


async def test_a_body_that_is_too_large_is_cut_off(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        answer = await place.http.post(PROMOTE, headers=BEARER, content=b" " * (MAX_COMMAND_BYTES + 1))
        assert error(answer) == (413, "PAYLOAD_TOO_LARGE")
        assert place.commands.executed == []


@pytest.mark.parametrize("name", ["nope", "../detector", "../../etc/passwd", "dé tector", "a" * 3000, "\ufeff", "%00"])
async def test_a_name_that_is_not_known_reaches_nobody(tmp_path: Path, name: str) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        for method, path in (
            ("POST", f"/api/models/{quote(name, safe='')}/unload"),
            ("GET", "/api/models/" + quote(name, safe="")),
        ):
            answer = await place.http.request(method, path, headers=BEARER)
            assert error(answer) == (404, "MODEL_UNKNOWN")
            assert len(answer.content) < 1000
        assert place.commands.executed == []


async def test_without_a_configured_token_commands_are_off(tmp_path: Path) -> None:
    async with office() as place:
        for headers in ({}, BEARER):
            answer = await place.http.post(PROMOTE, headers=headers)
            assert error(answer) == (403, "UNAUTHORIZED")
            assert "API_TOKEN_FILE" in answer.json()["error"]["fix"]
        assert place.commands.executed == []


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer s3cret2", "Basic s3cret", "Bearer", "s3cret", "Bearer \xfc"]
)
async def test_without_the_token_nobody_gets_in(tmp_path: Path, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    async with office(api_token_file=with_token(tmp_path)) as place:
        answer = await place.http.post(PROMOTE, headers=headers, content=b"x" * 2**20)
        assert error(answer) == (401, "UNAUTHORIZED")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert place.commands.executed == []
        assert place.counted("promote", "UNAUTHORIZED") == 1


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xff"])
async def test_an_unusable_token_file_lets_nobody_in(tmp_path: Path, content: bytes | None) -> None:
    path = with_token(tmp_path)
    async with office(api_token_file=path) as place:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        for given in ("Bearer", "Bearer s3cret"):
            answer = await place.http.post(PROMOTE, headers={"Authorization": given})
            assert error(answer) == (401, "UNAUTHORIZED")


async def test_a_new_token_holds_at_once(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        with_token(tmp_path, "another")
        assert (await place.http.post(PROMOTE, headers=BEARER)).status_code == 401
        assert (await place.http.post(PROMOTE, headers={"Authorization": "bearer another"})).status_code == 202


async def test_the_token_is_never_logged(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        with capture_logs() as logs:
            await place.http.post(PROMOTE, headers=BEARER)
            await place.http.post(PROMOTE, headers={"Authorization": "Bearer s3cret-not"}, json={"token": "s3cret"})
            await place.http.post("/api/models/nope/load", headers=BEARER, json={"version": "s3cret"})
    assert len(logs) == 3
    assert "s3cret" not in str(logs)


@pytest.mark.parametrize(("code", "status"), [*STATUS.items(), ("SOMETHING_NEW", 500)])
async def test_a_refusal_keeps_its_code_and_fix(tmp_path: Path, code: str, status: int) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        place.commands.refusal = CommandRefused(code, "it cannot be", fix="Do the other thing")
        answer = await place.http.post(PROMOTE, headers=BEARER)
        assert error(answer) == (status, code)
        assert answer.json()["error"]["fix"] == "Do the other thing"
        assert place.counted("promote", code) == 1


async def test_what_fails_on_the_way_is_a_failed_command(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        for failure in (BackendUnavailable("Triton cannot be reached"), RuntimeError("a defect")):
            place.commands.refusal = failure
            assert error(await place.http.post(PROMOTE, headers=BEARER)) == (500, "COMMAND_FAILED")


async def test_other_methods_and_other_actions_are_none(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = await place.http.request(method, PROMOTE, headers=BEARER)
            assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
        assert error(await place.http.post("/api/models/detector/delete", headers=BEARER)) == (404, "NOT_FOUND")
        assert place.commands.executed == []


async def test_the_state_has_the_rollout_beside_what_model_yaml_says() -> None:
    async with office() as place:
        place.commands.put(ModelState("detector", release(3), release(2), rollout(), roller="gw-1"))
        one = (await place.http.get("/api/models/detector")).json()
        assert (await place.http.get("/api/models")).json() == {"models": [one]}
    assert (one["name"], one["ready"], one["layout"], one["labels"][0]) == (
        "detector",
        True,
        "yolov8",
        "person_with_helmet",
    )
    assert (one["status"], one["version"], one["previous_version"], one["roller"]) == ("rolling_out", 3, 2, "gw-1")
    assert (one["rollout"]["step"], one["rollout"]["percent"]) == ("canary", 25)
    assert one["variants"]["onnx"]["input"] == {"height": 64, "width": 64}


async def test_a_model_whose_first_version_was_refused_is_there_with_the_reason(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        place.commands.put(ModelState("gate", rollout=refused(1)))
        one = (await place.http.get("/api/models/gate")).json()
        assert (one["name"], one["status"], one["ready"], one["layout"]) == ("gate", "not_serving", False, None)
        assert one["rollout"]["reason"] == "person.jpg: class 2, expected 0"
        assert (await place.http.post("/api/models/gate/load", headers=BEARER)).status_code == 202


async def test_the_description_says_what_is_answered() -> None:
    async with office() as place:
        schemas = (await place.http.get("/openapi.json")).json()["components"]["schemas"]
        place.commands.put(ModelState("gate", rollout=refused(1)))
        place.commands.put(ModelState("detector", release(3), release(2), rollout()))
        models = (await place.http.get("/api/models")).json()["models"]
    assert [model["name"] for model in models] == ["detector", "gate"]
    for model in models:
        assert set(model) == set(schemas["Model"]["properties"])
        assert set(model["rollout"]) == set(schemas["Rollout"]["properties"])
        assert model["status"] in schemas["Model"]["properties"]["status"]["enum"]
    assert msgspec.json.encode(schemas)


async def test_the_description_has_the_status_of_every_code() -> None:
    async with office() as place:
        document = (await place.http.get("/openapi.json")).json()
    operation = document["paths"]["/api/models/{model}/{action}"]["post"]
    assert operation["security"] == [{"token": []}]
    assert {"202", "403", *(str(status) for status in STATUS.values())} <= set(operation["responses"])


def test_the_page_has_the_status_of_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    rows = dict(re.findall(r"^\| (\d{3}) \| (.+) \|$", page, re.MULTILINE))
    for code, status in STATUS.items():
        assert f"`{code}`" in rows[str(status)], code
    assert "`UNAUTHORIZED`" in rows["403"]
    assert all(f"`{action}`" in page for action in Action)
