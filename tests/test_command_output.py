"""What commands write for machines and for people who wait: --json everywhere, bars on terminals only."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import click
import pytest

from gateway.local.broker import EmbeddedBroker
from gateway.terminal.progress import busy, progress
from tests.command_line import ROOT, leading_to, run, start
from tests.pseudo_terminal import on_terminal
from tests.test_cli import PICTURES, all_commands

NOT_FOR_MACHINES = {
    "serve": "its log is JSON already, and /api says the rest",
    "demo": "a show for people; `stack --json` is for machines",
    "camera": "its log is JSON, and --health-file is for machines",
    "config schema": "it is JSON already",
    "completion": "it is a script for a shell",
}
LEAVES = [(path, command) for path, command in all_commands() if not isinstance(command, click.Group)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the sample model, in a repository of its own."""
    for folder in ("industrial-safety", "industrial-safety-onnx", "industrial-safety-torch"):
        shutil.copytree(ROOT / "model_repository" / folder, tmp_path / "models" / folder)
    return tmp_path / "models" / "industrial-safety"


def parsed(*arguments: str, code: int = 0, **settings: str) -> Any:
    """The one JSON value that a command prints."""
    done = run(*arguments, **settings)
    assert done.returncode == code, done
    return json.loads(done.stdout)


# --- for machines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "command"), [pytest.param(*each, id="-".join(each[0])) for each in LEAVES])
def test_every_command_that_a_machine_may_read_has_json(path: tuple[str, ...], command: click.Command) -> None:
    options = {name for parameter in command.params for name in parameter.opts}
    assert ("--json" in options) != (" ".join(path) in NOT_FOR_MACHINES)


def test_a_configuration_is_checked_in_json(tmp_path: Path) -> None:
    wrong = tmp_path / "gateway.yaml"
    wrong.write_text("http_port: many\nlog_levle: debug\n")
    body = parsed("config", "check", str(wrong), "--json", code=2)
    assert body["ok"] is False
    assert {error["where"].split(",")[0] for error in body["errors"]} == {str(wrong)}
    assert all(error["message"] and "fix" in error for error in body["errors"])
    right = parsed("config", "check", "--json", GATEWAY_ID="gw")
    assert (right["ok"], right["errors"]) == (True, [])
    assert "model industrial-safety (onnx, torch)" in right["summary"]


def test_the_settings_are_shown_in_json_by_either_name() -> None:
    shown = parsed("config", "show", "--json", GATEWAY_ID="gw-9")
    assert shown == parsed("config", "show", "--format", "json", GATEWAY_ID="gw-9")
    assert shown["gateway_id"]["value"] == "gw-9"


def test_what_is_written_about_a_model_is_said_in_json(model: Path, tmp_path: Path) -> None:
    manifest = parsed("models", "manifest", str(model), "--json")
    assert (manifest["ok"], manifest["version"]) == (True, 1)
    assert manifest["manifest"] == str(model / "SHA256SUMS")
    assert "industrial-safety-onnx/1/model.onnx" in manifest["files"]
    onnx = model.parent / "industrial-safety-onnx" / "1" / "model.onnx"
    new = parsed("models", "new", "helmets", "--onnx", str(onnx), "--repository", str(model.parent), "--json")
    assert new["written"] == [str(model.parent / "helmets-onnx" / "1")]
    assert new["check"]["ok"] is True
    again = parsed("models", "new", "helmets", "--onnx", str(onnx), "--repository", str(model.parent), "--json")
    assert (again["model"], again["version"]) == ("helmets", 2)


def test_what_is_sent_is_said_in_json(broker: EmbeddedBroker) -> None:
    done = run("send", PICTURES, "--json", **leading_to(broker))
    bodies = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(body["sent"]).suffix for body in bodies} == {".jpg"}
    assert all(body["bytes"] > 1000 and body["topic"].endswith("/camera/snapshots") for body in bodies)


@pytest.mark.triton
def test_the_stack_says_where_it_is_in_one_line_of_json(tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with start("stack", "--json", "--repository", str(tmp_path)) as stack:
        stack.until(lambda: bool(stack.out), "a line")
        body = json.loads(stack.out[0])
        assert body["environment"]["TRITON_GRPC_URL"] == body["triton"]["grpc"]
        assert body["environment"]["AIO_BROKER_TCP_PORT"] == str(body["broker"]["port"])
        assert list(body["not_loaded"]) == ["broken"]
        stack.interrupt(2)
        assert stack.wait() == 0
        assert len(stack.out) == 1


# --- for people who wait --------------------------------------------------------------------------------


def test_without_a_terminal_there_is_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    with busy("Waiting") as sign, progress("Reading", 3, "bytes") as bar:
        bar.show()
        bar.advance(2)
        sign.advance(0, "still waiting")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "term", "drawn"), [([], "xterm", True), (["--json"], "xterm", False), ([], "dumb", False)]
)
def test_who_sends_many_pictures_sees_how_far_it_is(
    arguments: list[str], term: str, drawn: bool, broker: EmbeddedBroker
) -> None:
    picture = next((ROOT / PICTURES).glob("*.jpg"))
    started = time.monotonic()
    with on_terminal(
        "send", str(picture), "--repeat", "20", "--rate", "25", *arguments, **{**leading_to(broker), "TERM": term}
    ) as terminal:
        assert terminal.wait() == 0
        assert terminal.attributes == terminal.before
    assert time.monotonic() - started > 0.7
    assert terminal.written.count(picture.name) == 20, "each is said, once"
    assert ("Sending" in terminal.written) is drawn
    assert ("\x1b" in terminal.written) is drawn
