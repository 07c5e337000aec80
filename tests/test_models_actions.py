"""`edge-gateway models promote|rollback|load|unload` against the API of a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.admin.model_report import model_report
from gateway.errors import CommandRefused
from gateway.local.processes import free_ports
from gateway.rollout.commands import Action, Command
from gateway.rollout.state import ModelState, RolloutRecord, StepRecord
from gateway.rollout.steps import Ending, Step
from tests.admin.commanded import Office, office, refused, release, rollout, with_token
from tests.front_door import Done, run_here
from tests.harness import TIMEOUT_S, until

Cli = Callable[..., Coroutine[Any, Any, Done]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Runs `edge-gateway models ...` beside the gateway that it asks, which does not log to the same terminal."""

    async def models(*arguments: str) -> Done:
        return await asyncio.to_thread(run_here, capsys, "models", *arguments)

    with capture_logs():
        yield models


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    """A gateway with a token, on this machine, where the settings say."""
    async with office(api_token_file=with_token(tmp_path)) as running:
        monkeypatch.setenv("HTTP_PORT", running.url.rpartition(":")[2])
        monkeypatch.setenv("API_TOKEN_FILE", str(tmp_path / "token"))
        yield running


def one_line(done: Done) -> str:
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("edge-gateway: ")
    return line


@pytest.mark.parametrize("action", list(Action))
async def test_each_action_takes_effect(place: Office, cli: Cli, action: Action) -> None:
    assert await cli(action, "detector") == Done(0, f"version 3 of detector: {action}\n", "")
    assert await cli(action, "detector", "2") == Done(0, f"version 2 of detector: {action}\n", "")
    by = "HTTP from 127.0.0.1"
    assert place.commands.executed == [Command(action, "detector", None, by), Command(action, "detector", 2, by)]


async def test_address_and_token_by_hand(
    place: Office, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HTTP_PORT")
    monkeypatch.delenv("API_TOKEN_FILE")
    given = ("--url", f"{place.url}/", "--token-file", str(tmp_path / "token"))
    assert (await cli("promote", "detector", *given)).code == 0


async def test_json(place: Office, cli: Cli) -> None:
    done = await cli("promote", "detector", "--json")
    assert (done.code, json.loads(done.out)) == (0, {"ok": True, "message": "version 3 of detector: promote"})
    done = await cli("promote", "detector", "--json", "--wait")
    body = json.loads(done.out)
    assert (done.code, body["model"]["name"], body["model"]["version"]) == (0, "detector", 3)
    assert len(place.commands.executed) == 2


# --- following a rollout --------------------------------------------------------------------------------


async def followed(place: Office, cli: Cli, last: RolloutRecord, action: str = "load") -> Done:
    """Wait for a rollout that begins with the command, makes two steps and ends as `last` says."""
    place.commands.begins = ModelState("detector", release(3), rollout=rollout(4, Step.VERIFIED, steps=(), percent=0))
    waiting = asyncio.create_task(cli(action, "detector", "4", "--wait"))
    await until(lambda: bool(place.commands.executed), "the command")
    place.commands.put(ModelState("detector", release(3), rollout=rollout(4)))
    await asyncio.sleep(0)
    place.commands.put(ModelState("detector", release(3), rollout=last))
    return await waiting


async def test_it_waits_for_the_promotion(place: Office, cli: Cli) -> None:
    steps = tuple(StepRecord(step, 1.0) for step in Step)
    done = await followed(place, cli, rollout(4, Step.PROMOTED, ending=Ending.PROMOTED, steps=steps))
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0] == "version 4 of detector: load"
    assert lines[-1] == "version 4 was promoted"
    for step in Step:
        assert lines.count(f"  {step} 1.0 s") == 1


async def test_a_refusal_is_exit_code_1_with_the_reason(place: Office, cli: Cli) -> None:
    done = await followed(place, cli, refused(4))
    assert done.code == 1
    reason = "version 4 was refused at golden: person.jpg: class 2, expected 0. Train it"
    assert done.out.splitlines()[-1] == reason


async def test_a_rollback_is_what_was_asked_for(place: Office, cli: Cli) -> None:
    last = rollout(4, ending=Ending.ROLLED_BACK, reason="by command")
    assert (await followed(place, cli, last, action="rollback")).code == 0


async def test_an_old_refusal_is_not_that_of_a_command_which_needs_no_rollout(place: Office, cli: Cli) -> None:
    place.commands.put(ModelState("detector", release(3), rollout=refused(4)))
    assert await cli("load", "detector", "--wait") == Done(0, "version 3 of detector: load\n", "")


async def test_it_waits_while_the_gateway_starts_again(cli: Cli, tmp_path: Path) -> None:
    loaded = StepRecord(Step.LOADED, 1.0)
    states = [rollout(4, Step.LOADED, steps=(loaded,)), rollout(4, ending=Ending.PROMOTED, steps=(loaded,))]
    body, ended = (model_report("detector", ModelState("detector", rollout=state), None) for state in states)
    port, asked = free_ports(1)[0], asyncio.Event()
    given = ("--url", f"http://127.0.0.1:{port}", "--token-file", str(with_token(tmp_path)))
    async with listening(port, body, asked):
        waiting = asyncio.create_task(cli("load", "detector", "--wait", *given))
        await asyncio.wait_for(asked.wait(), TIMEOUT_S)
    async with listening(port, ended, asyncio.Event()):
        done = await waiting
    assert (done.code, done.out.splitlines()[-1]) == (0, "version 4 was promoted")
    assert done.out.count("loaded 1.0 s") == 1


@contextlib.asynccontextmanager
async def listening(port: int, body: object, commanded: asyncio.Event) -> AsyncIterator[None]:
    """Answers every look at the model with `body`, and every command; tells when the model is looked at after one."""
    commands = 0

    async def model(_request: web.Request) -> web.Response:
        if commands:
            commanded.set()
        return web.json_response(body)

    async def command(_request: web.Request) -> web.Response:
        nonlocal commands
        commands += 1
        accepted = {"message": "it begins"} if isinstance(body, dict) and "model_name" in body else body
        return web.json_response(accepted, status=202)

    app = web.Application()
    app.add_routes([web.get("/api/models/detector", model), web.post("/api/models/detector/load", command)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    try:
        yield
    finally:
        await runner.cleanup()


# --- what can go wrong ----------------------------------------------------------------------------------


async def test_a_refused_command_is_one_line_with_the_fix(place: Office, cli: Cli) -> None:
    place.commands.refusal = CommandRefused("NOT_THE_ROLLER", "gw-2 runs the rollouts", fix="Ask gw-2")
    for more in ((), ("--wait",), ("--json",)):
        assert one_line(await cli("promote", "detector", *more)) == "edge-gateway: gw-2 runs the rollouts. Ask gw-2"


@pytest.mark.parametrize("name", ["nope", "../../live", "a/b", ".", "?x=1", "\u202e", "x" * 5000])
async def test_a_model_that_is_not_there_is_one_line(place: Office, cli: Cli, name: str) -> None:
    for more in ((), ("--wait",)):
        assert len(one_line(await cli("unload", name, *more))) < 500
    assert place.commands.executed == []


async def test_the_wrong_token_is_one_line_that_names_the_option(place: Office, cli: Cli, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("other")
    line = one_line(await cli("promote", "detector", "--token-file", str(wrong)))
    assert "--token-file" in line
    assert "other" not in line
    assert "s3cret" not in line


async def test_a_gateway_without_a_token_says_how_to_set_one(cli: Cli) -> None:
    async with office() as place:
        assert "API_TOKEN_FILE" in one_line(await cli("promote", "detector", "--url", place.url))


@pytest.mark.parametrize("content", [None, b"", b"two words", b"s3cret\nX: y", b"\xff\xfe", "s\u00e9cret".encode()])
async def test_a_file_without_a_token_is_one_line(
    place: Office, cli: Cli, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    line = one_line(await cli("promote", "detector", "--token-file", str(path)))
    assert str(path) in line
    assert "s3cret" not in line
    assert place.commands.executed == []


@pytest.mark.parametrize(
    "url", ["localhost:1", "ftp://x", "http://", "http://[::1", "x", "http://a b", "http://u:s3cret@127.0.0.1:1"]
)
async def test_an_address_where_nobody_answers_is_one_line(cli: Cli, url: str) -> None:
    line = one_line(await cli("promote", "detector", "--url", url))
    assert "--url" in line
    assert "s3cret" not in line


@pytest.mark.parametrize("body", [{"error": "no"}, {"message": 3}, [], {"error": {"code": "X"}}, {"rollout": 3}])
async def test_a_stranger_at_the_address_is_one_line(cli: Cli, body: object) -> None:
    port = free_ports(1)[0]
    given = ("detector", "--url", f"http://127.0.0.1:{port}")
    async with listening(port, body, asyncio.Event()):
        for arguments in (("promote", *given), ("load", *given), ("load", "--wait", *given)):
            assert "not a gateway's" in one_line(await cli(*arguments))


async def test_a_proxy_of_the_environment_is_not_shown_the_token(
    place: Office, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await cli("promote", "detector")).code == 0


async def test_a_random_port_is_not_guessed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PORT", "0")
    assert "HTTP_PORT: it is 0" in one_line(await cli("promote", "detector"))


@pytest.mark.parametrize("version", ["0", "-1", "1e9", "x", "4294967296"])
async def test_a_version_that_is_none_is_one_line(place: Office, cli: Cli, version: str) -> None:
    assert "See edge-gateway models promote --help" in one_line(await cli("promote", "detector", "--", version))
    assert place.commands.executed == []
