"""The command line as a person meets it: help, errors in one line, sending and watching."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import cli
from gateway.local.broker import EmbeddedBroker
from gateway.local.processes import free_ports
from tests.command_line import ROOT, environment, run, start
from tests.e2e.site import Client, until
from tests.flow.builders import jpeg

COMMANDS = sorted(cli.commands)
PICTURES = "model_repository/industrial-safety/golden"


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def at(broker: EmbeddedBroker) -> dict[str, str]:
    """The settings that lead to the broker."""
    return {
        "AIO_BROKER_HOSTNAME": broker.host,
        "AIO_BROKER_TCP_PORT": str(broker.port),
        "MQTT_PROTOCOL": broker.protocol,
        "GATEWAY_ID": "gw",
    }


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg())
    return path


# --- help -----------------------------------------------------------------------------------------------


def test_without_arguments_there_is_an_overview() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert "GATEWAY_CONFIG" in done.stdout
    assert "..." not in done.stdout.split("To begin with")[0].split("Commands:")[1], "a summary is cut off"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself_and_each_option(command: str, option: str) -> None:
    done = run(command, option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: edge-gateway {command} ")
    for parameter in cli.commands[command].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), f"{parameter.name} has no help"


def test_version() -> None:
    from gateway import __version__

    assert run("--version").stdout == f"edge-gateway, version {__version__}\n"


# --- errors of the user ---------------------------------------------------------------------------------


def one_line(*arguments: str, **settings: str) -> str:
    """The only line that a wrong command writes."""
    done = run(*arguments, **settings)
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("edge-gateway: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sevre"], "no command 'sevre'; did you mean 'serve'? See edge-gateway --help"),
        (["xyzzy"], "no command 'xyzzy'; commands: "),
        (["serve", "--port", "1"], "No such option '--port'. See edge-gateway serve --help"),
        (["serve", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["send"], "Missing argument 'PICTURES...'. See edge-gateway send --help"),
        (["send", "nowhere.jpg"], "nowhere.jpg: no such file or folder. Check the path"),
        (["send", "tests/flow"], "tests/flow: no pictures there. Name JPEG or PNG files"),
        (["send", PICTURES, "--topic", "a/+/b"], "'a/+/b' has wildcards. Name one topic with --topic"),
        (["send", PICTURES, "--topic", ""], "is no topic. Name one topic with --topic"),
        (["send", PICTURES, "--as", "raw", "--model", "x"], "--model and --backend need the JSON form. Leave --as raw"),
        (["send", PICTURES, "--as", "png"], "'png' is not one of 'json', 'raw'"),
        (["send", PICTURES, "--repeat", "0"], "0 is not in the range"),
        (["watch", "--count", "many"], "'many' is not a valid integer range"),
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


def test_a_port_in_use_is_one_line_with_the_fix() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "Choose a free port with HTTP_PORT" in one_line(
            "serve", HTTP_HOST="127.0.0.1", HTTP_PORT=port, MODEL_REPOSITORY="model_repository", LOG_LEVEL="error"
        )
        assert f"port {port} for the MQTT broker is taken" in one_line("stack", "--mqtt-port", port)
        assert f"port {port} for Triton's grpc is taken" in one_line("triton", "--grpc-port", port)


def test_an_unreadable_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert "no such file or folder" in one_line("send", str(tmp_path / "loop.jpg"))


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


# --- send and watch -------------------------------------------------------------------------------------

RESULT = {
    "message_type": "ai_inference_result",
    "result_id": "00",
    "device_id": "cam7",
    "model_name": "detector",
    "model_version": "1",
    "backend_used": "onnx",
    "inference_time_ms": 3.5,
    "predictions": [{"class": "forklift", "class_id": 2, "confidence": 0.87, "bbox": [1, 2, 3, 4]}],
    "metadata": {"alert_triggered": True, "timings_ms": {"total": 7.25}},
}
RESULTS = "edge-ai/bu/plant/gw/ai/inference/vision"


def publish(path: Path, message: dict[str, object], at: dict[str, str]) -> None:
    """Any message on the topic of results, by our own command: what it sends raw is sent as it is."""
    path.write_text(json.dumps(message))
    done = run("send", str(path), "--as", "raw", "--topic", RESULTS, **at)
    assert done.returncode == 0, done


def test_watch_shows_a_readable_line_and_ctrl_c_ends_it(tmp_path: Path, at: dict[str, str]) -> None:
    with start("watch", **at) as watching:
        watching.says("Watching")
        publish(tmp_path / "x.json", RESULT, at)
        watching.says("forklift 0.87")
        watching.interrupt(signal.SIGINT)
        assert watching.wait() == 128 + signal.SIGINT
    (line,) = watching.out
    assert "result    cam7" in line
    assert "3.5 ms of    7.2 ms" in line
    assert line.endswith("ALERT")
    assert len(watching.err) == 1, "only that it watches"


def test_watch_ends_after_so_many_answers_and_prints_messages_as_they_are(tmp_path: Path, at: dict[str, str]) -> None:
    with start("watch", "--json", "--count", "2", **at) as watching:
        watching.says("Watching")
        publish(tmp_path / "s.json", {"message_type": "ai_status", "status": "ready"}, at)
        publish(tmp_path / "n.json", {"message_type": "of somebody else"}, at)
        publish(tmp_path / "a.json", RESULT, at)
        publish(tmp_path / "b.json", {**RESULT, "device_id": "cam8"}, at)
        assert watching.wait() == 0
    assert [json.loads(line).get("device_id") for line in watching.out] == [None, "cam7", "cam8"]


def test_watch_into_a_pipe_that_closes_ends_quietly(tmp_path: Path, at: dict[str, str]) -> None:
    with start("watch", **at) as watching:
        watching.says("Watching")
        publish(tmp_path / "a.json", RESULT, at)
        watching.says("forklift")
    command = [sys.executable, "-m", "gateway", "watch"]
    with subprocess.Popen(
        command, env=environment(**at), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as piped:
        assert piped.stdout is not None
        assert piped.stderr is not None
        assert "Watching" in piped.stderr.readline()
        piped.stdout.close()
        publish(tmp_path / "a.json", RESULT, at)
        try:
            assert piped.wait(30) == 128 + signal.SIGPIPE
        finally:
            piped.kill()
        assert piped.stderr.read() == ""


@pytest.mark.parametrize("form", ["json", "raw"])
def test_what_send_sends_is_a_snapshot_of_the_device(form: str, picture: Path, at: dict[str, str]) -> None:
    done = run("send", str(picture), "--as", form, "--device", "cam9", "--repeat", "2", "--rate", "50", **at)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    topic = {"json": "edge-ai/default/default/gw/camera/snapshots", "raw": "azure-iot-operations/data/cam9/snapshot"}
    assert all(line.startswith("sent photo.jpg (") and line.endswith(f" to {topic[form]}") for line in lines)


def test_every_snapshot_that_send_repeats_is_a_new_one(
    broker: EmbeddedBroker, picture: Path, at: dict[str, str]
) -> None:
    if broker.protocol != "5":
        pytest.skip("the viewer of this test speaks MQTT 5")
    seen: list[dict[str, object]] = []
    viewer = Client(broker.port, "repeated", on_message=lambda message: seen.append(json.loads(message.payload)))
    arguments = ["--repeat", "3", "--rate", "50", "--topic", "repeated", "--model", "m", "--backend", "dual"]
    assert run("send", str(picture), *arguments, **at).returncode == 0
    until(lambda: len(seen) == 3, "three snapshots")
    viewer.close()
    assert len({body["timestamp"] for body in seen}) == 3
    assert {(body["device_id"], body["model_name"], body["backend_preference"]) for body in seen} == {
        ("camera-01", "m", "dual")
    }


def test_send_fills_the_parts_of_any_input_topic(picture: Path, at: dict[str, str]) -> None:
    done = run("send", str(picture), MQTT_INPUT_TOPICS="$share/all/{site}/{camera}/picture", **at)
    assert done.stdout.rstrip().endswith(" to site/camera-01/picture")


# --- serve ----------------------------------------------------------------------------------------------


def serve(log_format: str, **more: str) -> list[str]:
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
        "AIO_BROKER_HOSTNAM": "typo",
    }
    with start("serve", **settings | more) as gateway:
        for text in ("Waiting for the broker", "Waiting for Triton", "Not ready"):
            gateway.says(text)
        gateway.interrupt(signal.SIGTERM)
        assert gateway.wait() == 0
    assert gateway.out == []
    return gateway.err


def test_the_log_is_one_json_object_a_line() -> None:
    entries = [json.loads(line) for line in serve("json")]
    assert all({"event", "level", "timestamp"} <= set(entry) for entry in entries)
    events = [entry["event"] for entry in entries]
    assert "AIO_BROKER_HOSTNAM is not a setting; did you mean AIO_BROKER_HOSTNAME?" in events
    assert events[-1] == "Gateway stopped"
    waiting = next(entry for entry in entries if entry["event"] == "Waiting for the broker")
    assert waiting["level"] == "warning"
    assert waiting["fix"].startswith("Start the broker")


@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_the_log_as_text_has_no_colours_in_a_pipe(colour: dict[str, str]) -> None:
    lines = serve("text", **colour)
    assert any("Waiting for Triton" in line for line in lines)
    assert not [line for line in lines if "\x1b" in line or line.startswith("{")]
