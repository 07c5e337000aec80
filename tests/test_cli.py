"""The command line as a person meets it: help, errors in one line, sending and watching."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gateway.cli import cli
from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import free_ports
from gateway.terminal.overview import GROUPS
from tests.command_line import ROOT, environment, leading_to, one_line, run, start

COMMANDS = sorted(cli.commands)
PICTURES = "model_repository/industrial-safety/golden"
LAYOUT = """
from gateway.layouts import Classes, layout
@layout("mine", task="image-classification", outputs={"output": ("C",)})
def mine(outputs, head):
    \"\"\"Nothing at all.\"\"\"
"""


# --- help -----------------------------------------------------------------------------------------------


def test_without_arguments_there_is_an_overview() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--help").stdout
    for title, commands in GROUPS.items():
        section = done.stdout.split(f"{title}:\n")[1].split("\n\n")[0]
        for command in commands:
            assert f"\n  {command} " in f"\n{section}"
    for command in COMMANDS:
        assert done.stdout.count(f"\n  {command} ") == 1
    assert "GATEWAY_CONFIG" in done.stdout
    assert "..." not in done.stdout.split("To begin with")[0].split("Options:")[1].split("[")[0], "it is cut off"


def all_commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path, those of groups too."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))


@pytest.mark.parametrize(("path", "command"), [pytest.param(*each, id="-".join(each[0])) for each in all_commands()])
def test_every_command_explains_itself_and_each_option(path: tuple[str, ...], command: click.Command) -> None:
    done = run(*path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run(*path, "-h").stdout
    assert done.stdout.startswith(f"Usage: edge-gateway {' '.join(path)} ")
    assert "\n  Examples:\n    " in done.stdout, "it has no example"
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), f"{parameter.name} has no help"


@pytest.mark.parametrize("group", ["models", "config"])
def test_a_group_without_a_command_shows_what_there_is(group: str) -> None:
    done = run(group)
    assert (done.returncode, done.stdout, done.stderr) == (0, run(group, "--help").stdout, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_options(shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_EDGE_GATEWAY_COMPLETE" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_is_told_what_may_come_next() -> None:
    def next_words(line: str, count: int) -> list[str]:
        asked = {"_EDGE_GATEWAY_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(count)}
        return [found.split(",")[1] for found in run(**asked).stdout.splitlines()]

    assert next_words("edge-gateway mo", 1) == ["models"]
    assert next_words("edge-gateway models ch", 2) == ["check"]
    assert "--sensor-id" in next_words("edge-gateway send --s", 2)


def test_version() -> None:
    from gateway import __version__

    assert run("--version").stdout == f"edge-gateway, version {__version__} (Python {platform.python_version()})\n"


# --- errors of the user ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sevre"], "no command 'sevre'; did you mean 'serve'? See edge-gateway --help"),
        (["xyzzy"], "no command 'xyzzy'; commands: "),
        (["serve", "--port", "1"], "No such option '--port'. See edge-gateway serve --help"),
        (["serve", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["watch", "--count", "many"], "'many' is not a valid integer range"),
        (["models", "chekc"], "no command 'chekc'; did you mean 'check'? See edge-gateway models --help"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["doctor", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["stack", "--repository", "nowhere"], "nowhere: no such folder. Name the folder of the models with"),
        (["triton", "--repository", "nowhere"], "nowhere: no such folder. Name the folder of the models with"),
        (["demo", "--repository", "nowhere"], "nowhere: no folder there has a model.yaml"),
    ],
)
def test_an_error_of_the_user_is_one_line_with_the_fix(arguments: list[str], said: str) -> None:
    assert said in one_line(*arguments)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MODEL_REPOSITORY": "nowhere"}, "MODEL_REPOSITORY=nowhere: no such folder. Name the folder"),
        ({"MODEL_CONFIG_PATH": "nowhere.yaml"}, "nowhere.yaml: cannot be read: No such file"),
        ({"HTTP_PORT": "many", "LOG_LEVEL": "loud"}, "HTTP_PORT: must be a valid integer"),
        ({"GATEWAY_CONFIG": "nowhere.yaml"}, "nowhere.yaml: cannot be read: No such file"),
        ({"MQTT_INPUT_TOPICS": "a/#/b"}, "MQTT_INPUT_TOPICS: 'a/#/b' is no topic filter"),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_fix(settings: dict[str, str], said: str) -> None:
    assert said in one_line("serve", **settings)


def test_a_port_in_use_is_one_line_with_the_fix(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "Choose a free port with HTTP_PORT" in one_line(
            "serve", HTTP_HOST="127.0.0.1", HTTP_PORT=port, MODEL_REPOSITORY="model_repository", LOG_LEVEL="error",
            MODEL_STATE_DIR=str(tmp_path),
        )  # fmt: skip
        assert f"port {port} for the MQTT broker is taken" in one_line("stack", "--mqtt-port", port)
        assert f"port {port} for Triton's grpc is taken" in one_line("triton", "--grpc-port", port)


@pytest.mark.parametrize(
    "arguments",
    ["--help", "--version", "config show --all", "config schema", "models list", "models layouts", "completion bash"],
)
def test_a_full_disk_is_one_line(arguments: str) -> None:
    assert cannot_write(*arguments.split()) == "edge-gateway: cannot write: No space left on device\n"


def test_a_full_disk_is_one_line_of_what_runs_for_long_too() -> None:
    with EmbeddedBroker() as broker:
        assert cannot_write("send", PICTURES, **leading_to(broker)).splitlines()[-1].endswith("No space left on device")
    assert "Traceback" not in cannot_write("doctor", "--json")


def cannot_write(*arguments: str, **settings: str) -> str:
    """What a command says whose output goes to a full disk."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with full.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            env=environment(**settings),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    return done.stderr


def test_what_is_left_for_the_flush_at_exit_is_one_line_too(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys, gateway.cli as c; c._main = lambda: sys.stdout.write('late'); c.main()"
    with Path("/dev/full").open("w") as out:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=out, check=False)
    assert (done.returncode, capfd.readouterr().err) == (2, "edge-gateway: cannot write: No space left on device\n")


# --- a broker that is not there -------------------------------------------------------------------------


def test_send_says_what_it_waits_for_and_gives_up() -> None:
    (port,) = free_ports(1)
    done = run("send", PICTURES, "--timeout", "1", AIO_BROKER_HOSTNAME="127.0.0.1", AIO_BROKER_TCP_PORT=str(port))
    assert done.returncode == 2
    assert done.stdout == ""
    waiting, gave_up = done.stderr.splitlines()
    assert waiting.startswith("edge-gateway: Waiting for the broker (host 127.0.0.1")
    assert "refused. Start the broker, or check AIO_BROKER_HOSTNAME" in waiting
    assert gave_up.startswith(f"edge-gateway: 127.0.0.1:{port}: no session with the broker within 1 s. Start ")


def test_a_port_that_does_not_speak_mqtt_is_no_silent_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        settings = {"AIO_BROKER_HOSTNAME": "127.0.0.1", "AIO_BROKER_TCP_PORT": str(port)}
        done = run("send", PICTURES, "--timeout", "4", **settings)
    assert done.returncode == 2
    waiting, gave_up = done.stderr.splitlines()
    assert waiting == f"edge-gateway: still waiting for the broker at 127.0.0.1:{port}, for 4 s in all"
    assert "no session with the broker within 4 s" in gave_up


def test_watch_waits_for_the_broker_and_says_so(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with start("watch", AIO_BROKER_HOSTNAME="127.0.0.1", AIO_BROKER_TCP_PORT=str(port)) as watching:
        watching.says("Waiting for the broker (host 127.0.0.1")
        with EmbeddedBroker(port=port) as late:
            if late.protocol != "5":
                pytest.skip("there is no Mosquitto here, and it cannot be installed")
            watching.says(f"Watching 127.0.0.1:{port}; Ctrl-C ends.")
            watching.interrupt(signal.SIGINT)
            assert watching.wait() == 128 + signal.SIGINT
        assert not [line for line in watching.err if "Traceback" in line]


# --- serve ----------------------------------------------------------------------------------------------


def serve(log_format: str, state: Path, **more: str) -> list[str]:
    """What a gateway without broker and Triton writes until it is stopped."""
    mqtt, triton = free_ports(2)
    settings = {
        "AIO_BROKER_HOSTNAME": "127.0.0.1",
        "AIO_BROKER_TCP_PORT": str(mqtt),
        "TRITON_GRPC_URL": f"127.0.0.1:{triton}",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "0",
        "LOG_FORMAT": log_format,
        "MODEL_REPOSITORY": "model_repository",
        "MODEL_STATE_DIR": str(state),
        "AIO_BROKER_HOSTNAM": "typo",
    }
    with start("serve", **settings | more) as gateway:
        for text in ("Waiting for the broker", "Waiting for Triton", "Not ready"):
            gateway.says(text)
        gateway.interrupt(signal.SIGTERM)
        assert gateway.wait() == 0
    assert gateway.out == []
    return gateway.err


def test_the_log_is_one_json_object_a_line(tmp_path: Path) -> None:
    entries = [json.loads(line) for line in serve("json", tmp_path)]
    assert all({"event", "level", "timestamp"} <= set(entry) for entry in entries)
    events = [entry["event"] for entry in entries]
    reasons = [entry.get("reason") for entry in entries]
    assert "AIO_BROKER_HOSTNAM is not a setting; did you mean AIO_BROKER_HOSTNAME?" in reasons
    assert events[-1] == "Gateway stopped"
    waiting = next(entry for entry in entries if entry["event"] == "Waiting for the broker")
    assert waiting["level"] == "warning"
    assert waiting["fix"].startswith("Start the broker")


@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_the_log_as_text_has_no_colours_in_a_pipe(tmp_path: Path, colour: dict[str, str]) -> None:
    lines = serve("text", tmp_path, **colour)
    assert any("Waiting for Triton" in line for line in lines)
    assert not [line for line in lines if "\x1b" in line or line.startswith("{")]


def test_a_layout_of_the_user_is_known_before_models_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "one"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text("name: one\nmodel_type: image-classification\ninference: {output: mine}\n")
    (folder / "labels.txt").write_text("a\nb")
    layouts = tmp_path / "layouts"
    layouts.mkdir()
    (layouts / "mine.py").write_text(LAYOUT)
    lines = serve("json", tmp_path / "state", MODEL_REPOSITORY=str(folder.parent), LAYOUTS_DIR=str(layouts))
    (starts,) = (entry for entry in map(json.loads, lines) if entry["event"] == "Gateway starts")
    assert starts["models"] == ["one"]
