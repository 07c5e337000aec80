"""The log over HTTP: its last lines, filtered, and its level, for those who know the token."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from gateway.admin.log_api import events_in, merged
from gateway.log_memory import EVENTS, MAX_BYTES, MAX_LINE, LogMemory, as_json
from gateway.logs import LEVEL
from tests.admin.commanded import with_token
from tests.harness import site, until
from tests.log_streams import LogStream, logging_into_a_string

BEARER = {"Authorization": "Bearer s3cret"}
WRONG_TIMES: list[Any] = [0, -1, 0.5, 86_401, 1e300, "600", True, []]
log = structlog.get_logger("gateway.test")


@contextlib.asynccontextmanager
async def front_door(folder: Path, **more: Any) -> AsyncIterator[tuple[httpx.AsyncClient, LogStream]]:
    """A gateway with a token, whose log is configured, and a client of its HTTP side."""
    more.setdefault("api_token_file", with_token(folder))
    with logging_into_a_string() as stream:
        async with site(folder / "models", **more) as place:
            url = f"http://127.0.0.1:{place.gateway.http_port}"
            async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
                yield client, stream


async def test_the_last_events_by_level_and_text(tmp_path: Path) -> None:
    async with front_door(tmp_path) as (client, _):
        log.warning("Odd", device_id='Cam-"7"\\ö\x9b', nan=float("nan"))
        log.info("Also odd", device_id='cam-"7"')
        log.debug("Not written")
        answer = await client.get("/api/log", params={"contains": 'CAM-"7"'})
        assert answer.headers["Content-Type"] == "application/json"
        body = answer.json()
        assert (body["level"], body["configured"], body["until"]) == ("info", "info", None)
        assert [each["event"] for each in body["events"]] == ["Odd", "Also odd"]
        odd = body["events"][0]
        assert (odd["level"], odd["device_id"], odd["nan"]) == ("warning", 'Cam-"7"\\ö\x9b', "nan")
        assert odd["timestamp"].endswith("Z")
        only = await client.get("/api/log", params={"contains": 'cam-"7"', "level": "warning"})
        assert [each["event"] for each in only.json()["events"]] == ["Odd"]
        newest = await client.get("/api/log", params={"contains": 'cam-"7"', "limit": 1})
        assert [each["event"] for each in newest.json()["events"]] == ["Also odd"]
        assert (await client.get("/api/log", params={"contains": "is not there"})).json()["events"] == []


@pytest.mark.parametrize(
    "params",
    [
        {"level": "loud"},
        {"limit": "0"},
        {"limit": str(EVENTS + 1)},
        {"limit": "٣"},
        {"limit": "9" * 5000},
        {"contains": "x" * 201},
        {"text": "x"},
        [("level", "info"), ("level", "error")],
    ],
)
async def test_what_cannot_be_asked_is_refused(tmp_path: Path, params: Any) -> None:
    async with front_door(tmp_path) as (client, _):
        answer = await client.get("/api/log", params=params)
        assert answer.status_code == 400
        assert answer.json()["error"]["fix"]


async def test_the_level_is_set_and_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.admin.log_api.MIN_FOR_S", 0.05)
    async with front_door(tmp_path) as (client, stream):
        answer = await client.post("/api/log-level", headers=BEARER, json={"level": "debug"})
        assert (answer.status_code, answer.json()) == (200, {"level": "debug", "configured": "info", "until": None})
        log.debug("One")
        assert stream.of("One")
        answer = await client.post("/api/log-level", headers=BEARER, json={"level": None})
        assert answer.json()["level"] == "info"
        log.debug("Two")
        assert not stream.of("Two")
        answer = await client.post("/api/log-level", headers=BEARER, json={"level": "error", "for_s": 0.05})
        assert answer.json()["until"] > 0
        log.warning("Three")
        assert not stream.of("Three")
        await until(lambda: LEVEL.current == "info", "the configured level")
        log.info("Four")
        assert stream.of("Four")
        said = [
            (each["before"], each["log_level"], each["by"]) for each in stream.of("The level of the log is changed")
        ]
        by = "HTTP from 127.0.0.1"
        assert said == [
            ("info", "debug", by),
            ("debug", "info", by),
            ("info", "error", by),
            ("error", "info", "its time is up"),
        ]


async def test_a_change_of_the_configuration_wins_over_what_was_chosen(tmp_path: Path) -> None:
    async with front_door(tmp_path) as (client, _):
        await client.post("/api/log-level", headers=BEARER, json={"level": "debug", "for_s": 3600})
        LEVEL.configure("info")
        assert LEVEL.current == "debug"  # nothing has changed
        LEVEL.configure("warning")
        assert (LEVEL.current, LEVEL.until) == ("warning", None)
        assert logging.getLogger().level == logging.WARNING


@pytest.mark.parametrize(
    "body",
    [
        *({"level": level} for level in ("loud", "", 10, True, ["debug"])),
        *({"level": "debug", "for_s": for_s} for for_s in WRONG_TIMES),
        {"level": "debug", "fors": 10},
        {},
        [],
    ],
)
async def test_what_is_no_level_changes_nothing(tmp_path: Path, body: Any) -> None:
    async with front_door(tmp_path) as (client, _):
        answer = await client.post("/api/log-level", headers=BEARER, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "COMMAND_INVALID")
        assert LEVEL.current == "info"


async def test_only_the_token_sets_the_level(tmp_path: Path) -> None:
    async with front_door(tmp_path) as (client, _):
        assert (await client.post("/api/log-level", json={"level": "debug"})).status_code == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert (await client.post("/api/log-level", headers=wrong, json={"level": "debug"})).status_code == 401
        assert LEVEL.current == "info"


async def test_without_a_token_nobody_sets_the_level(tmp_path: Path) -> None:
    async with front_door(tmp_path, api_token_file=None) as (client, _):
        assert (await client.post("/api/log-level", headers=BEARER, json={"level": "debug"})).status_code == 403


def test_memory_is_bounded_in_lines_and_in_bytes() -> None:
    memory = LogMemory()
    for number in range(2 * EVENTS):
        memory.keep({"level": "info"}, as_json({"event": "x", "number": number}))
    assert len(memory.read()) == EVENTS
    event = {"event": "A defect", "level": "error", "exception": "a\n" * MAX_LINE + "ValueError: last", "n": 1}
    for _ in range(EVENTS):
        memory.keep(event, as_json(event))
    kept = memory.read()
    assert sum(map(len, kept)) <= MAX_BYTES
    assert max(map(len, kept)) <= MAX_LINE
    assert json.loads(kept[-1])["exception"].endswith("ValueError: last")
    nested = {"event": "x", "level": "info", **{f"k{number}": ["y" * 100] * 100 for number in range(100)}}
    memory.keep(nested, as_json(nested))
    assert len(memory.read()[-1]) <= 2 * MAX_LINE


async def test_the_text_form_is_kept_as_well(tmp_path: Path) -> None:
    with logging_into_a_string(log_format="text") as stream:
        async with site(tmp_path) as place:
            try:
                raise ValueError("why")
            except ValueError:
                log.exception("An odd defect of text")
            url = f"http://127.0.0.1:{place.gateway.http_port}/api/log?contains=odd%20defect%20of%20text"
            async with httpx.AsyncClient(trust_env=False) as client:
                (event,) = (await client.get(url)).json()["events"]
            assert "ValueError: why" in event["exception"]
            assert "An odd defect of text" in stream.getvalue()


def test_logs_of_several_processes_are_one_by_time() -> None:
    one = [as_json({"event": "a", "timestamp": f"2026-01-01T00:00:0{second}.5Z"}) for second in (1, 4, 5)]
    text = '", "timestamp": "2030'
    other = [as_json({"event": text, "timestamp": f"2026-01-01T00:00:0{second}.5Z"}) for second in (2, 3, 6)]
    body = io.BytesIO()
    body.write(b'{"level":"info","events":[\n' + ",\n".join(other).encode() + b"\n]}\n")
    assert events_in(body.getvalue()) == other
    assert events_in(b"") == []
    together = merged([one, events_in(body.getvalue())], 5)
    assert [json.loads(line)["timestamp"][18] for line in together] == ["2", "3", "4", "5", "6"]
