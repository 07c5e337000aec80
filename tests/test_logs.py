"""The log: one JSON object a line whatever is logged, readable text, and no secrets in either."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gateway.logs import configure_logging, use_colour
from tests.command_line import start
from tests.mosquitto_server import Mosquitto


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def logger(level: str, log_format: str) -> tuple[structlog.stdlib.BoundLogger, io.StringIO]:
    """A logger of the gateway and what it writes."""
    stream = io.StringIO()
    structlog.reset_defaults()
    configure_logging(level, log_format, stream)
    return structlog.get_logger("gateway.test"), stream


def entries(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_entry_is_one_json_object_with_its_keys() -> None:
    log, stream = logger("info", "json")
    log.info("A model serves", model="détecteur\n2", version=3, topics=("a", "b"), path=Path("/x"))
    (entry,) = entries(stream)
    assert entry.pop("timestamp")
    assert entry == {
        "event": "A model serves",
        "level": "info",
        "model": "détecteur\n2",
        "version": 3,
        "topics": ["a", "b"],
        "path": "PosixPath('/x')",
    }


def test_an_exception_is_one_json_object_with_the_traceback() -> None:
    log, stream = logger("info", "json")
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        log.exception("Task failed", task="intake")
        log.error("A defect", exc_info=error)
    for entry in entries(stream):
        assert entry["level"] == "error"
        assert "RuntimeError: two\nlines" in str(entry["exception"])


def test_libraries_log_in_the_same_form() -> None:
    _, stream = logger("info", "json")
    library = logging.getLogger("some.library")
    library.warning("%d of %s\nfailed", 3, "parts")
    try:
        raise OSError("gone")
    except OSError:
        library.exception("no luck")
    first, second = entries(stream)
    assert (first["event"], first["level"]) == ("3 of parts\nfailed", "warning")
    assert "OSError: gone" in str(second["exception"])


def test_what_cannot_be_encoded_does_not_break_the_line() -> None:
    log, stream = logger("info", "json")
    log.info("odd", data=b"\xff\x00", lone="\ud800", nothing=None, nan=float("nan"), thing=object())
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize(("level", "expected"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_the_level_holds_for_the_gateway_and_its_libraries(level: str, expected: int) -> None:
    log, stream = logger(level, "json")
    for write in (log.debug, log.info, log.warning):
        write("x")
    assert len(entries(stream)) == expected
    library = logging.getLogger("some.library")
    for number in (logging.DEBUG, logging.INFO, logging.WARNING):
        library.log(number, "x")
    assert len(entries(stream)) == 2 * expected


@pytest.mark.parametrize("log_format", ["json", "text", "sentence"])
def test_no_name_from_outside_steers_a_terminal_or_ends_a_line(log_format: str) -> None:
    log, stream = logger("info", log_format)
    name = "cam\x1b[2J\x9b2J\x07\x7f\u2028\u202e\ud800\U000e0041"
    log.warning("No result", device_id=name, topics=[name])
    logging.getLogger("some.library").warning("no %s", name)
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))
    assert stream.getvalue().count("\n") == 2
    stream.truncate(0)
    try:
        raise RuntimeError(name)
    except RuntimeError:
        log.exception("A defect")
    assert all(line.isprintable() for line in stream.getvalue().strip("\0").split("\n"))


def test_in_json_a_name_is_what_it_was() -> None:
    log, stream = logger("info", "json")
    log.info("No result", device_id="cam\x9b\u202e\U000e0041\xa0")
    assert entries(stream)[0]["device_id"] == "cam\x9b\u202e\U000e0041\xa0"


def test_text_names_event_and_keys_without_colours_in_a_file() -> None:
    log, stream = logger("info", "text")
    log.warning("Waiting for the broker", host="broker", port=1883)
    (line,) = stream.getvalue().splitlines()
    assert "Waiting for the broker" in line
    assert "host=broker" in line
    assert "\x1b" not in line


def test_a_sentence_says_what_where_why_and_how_to_mend_it() -> None:
    log, stream = logger("warning", "sentence")
    log.warning("Waiting for the broker", host="broker", port=1883, reason="refused", fix="Start it")
    log.error("Odd")
    assert stream.getvalue().splitlines() == [
        "edge-gateway: Waiting for the broker (host broker, port 1883): refused. Start it",
        "edge-gateway: Odd",
    ]


def test_colour_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert use_colour(Terminal())
    assert not use_colour(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not use_colour(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour(Terminal())


@pytest.mark.parametrize("right", [True, False], ids=["accepted", "refused"])
async def test_the_password_never_appears_in_the_log(tmp_path: Path, right: bool) -> None:
    secret = "correct-horse-battery-staple"
    users = tmp_path / "users"
    password = tmp_path / "password"
    password.write_text(f"{secret}\n")
    users.write_text(f"gateway:{secret if right else 'another'}\n")
    users.chmod(0o600)
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("mosquitto_passwd is not installed")
    await hash_passwords(program, users)
    mosquitto = Mosquitto(tmp_path, f"password_file {users}", anonymous=False)
    await mosquitto.start()
    settings = {
        "AIO_BROKER_HOSTNAME": "127.0.0.1",
        "AIO_BROKER_TCP_PORT": str(mosquitto.port),
        "AIO_MQTT_USERNAME": "gateway",
        "AIO_MQTT_PASSWORD_FILE": str(password),
        "TRITON_GRPC_URL": "127.0.0.1:9",
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": "0",
        "LOG_LEVEL": "debug",
        "MODEL_REPOSITORY": "model_repository",
        "MODEL_STATE_DIR": str(tmp_path / "state"),
    }
    try:
        with start("serve", **settings) as gateway:
            gateway.says("Connected to the broker" if right else "No session with the broker")
            gateway.says("Waiting for Triton")
            gateway.interrupt(signal.SIGTERM)
            assert gateway.wait() == 0
    finally:
        await mosquitto.stop()
    log = "\n".join([*gateway.out, *gateway.err])
    assert secret not in log
    for line in gateway.err:
        json.loads(line)


async def hash_passwords(program: str, users: Path) -> None:
    """Turn the plain passwords of a file into what Mosquitto reads."""
    process = await asyncio.create_subprocess_exec(program, "-U", str(users))
    assert await process.wait() == 0


@pytest.mark.parametrize("log_format", ["json", "text", "sentence"])
def test_a_traceback_shows_no_values(log_format: str) -> None:
    """Tokens, passwords and pictures are values of local variables somewhere on the way."""
    out = io.StringIO()
    configure_logging("info", log_format, out)
    token = "SEKRET-" + "TOKEN"
    try:
        raise RuntimeError(f"a defect of {len(token)}")
    except RuntimeError as error:
        structlog.get_logger("x").error("A defect", exc_info=error)
        logging.getLogger("foreign").error("A defect", exc_info=error)
    assert "RuntimeError" in out.getvalue()
    assert token not in out.getvalue()
