"""What is said of a camera, and the file of the health."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.cameras import sending, status
from gateway.cameras.sending import Feed
from gateway.cameras.status import Status, write_health
from gateway.errors import ConfigError
from gateway.testing import MemoryBroker
from tests.broker_session import until
from tests.cameras.test_sending import TOPIC, Counting, camera
from tests.cameras.test_sending import sending as running


def test_a_camera_that_comes_and_goes_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Status(1)
    assert [(one.lost("gone"), one.found()) for _ in range(3)] == [(True, True), (False, False), (False, False)]
    assert one.lost("another reason")
    monkeypatch.setattr(status, "SAY_AGAIN_S", -1.0)  # ten minutes later
    assert (one.lost("gone"), one.found()) == (True, True)


def test_a_refusal_between_good_ones_is_said_once() -> None:
    one = Status(1)
    said = []
    for size in range(900, 903):
        said.append(one.refused(f"The packet has {size} bytes, the broker takes 500"))
        one.taken()
    assert said == [True, False, False]


def test_who_does_not_send_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Status(1)
    assert one.as_json() == {"sends": False, "sent": 0, "reason": "not read yet"}
    one.found()
    assert one.as_json()["reason"] == "nothing has been sent yet"
    one.taken()
    assert one.as_json() == {"sends": True, "sent": 1, "reason": ""}
    monkeypatch.setattr(one, "_limit_s", -1.0)
    assert one.as_json() == {"sends": False, "sent": 1, "reason": "nothing has been sent for 0 s"}


def test_a_device_is_not_replaced_by_the_file_of_the_health(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "health.json")
    with pytest.raises(ConfigError, match="it is no regular file"):
        write_health(tmp_path / "health.json", {})
    assert (tmp_path / "health.json").is_fifo()


def test_the_file_of_the_health_is_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    (tmp_path / ".health.json.new").symlink_to(victim)
    write_health(tmp_path / "health.json", {})
    assert victim.read_text() == "precious"
    assert not (tmp_path / "health.json").is_symlink()


async def test_a_file_that_cannot_be_written_any_more_ends_no_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "WRITE_EVERY_S", 0.02)
    broker, source, folder = MemoryBroker(), Counting(), tmp_path / "run"
    folder.mkdir()
    with capture_logs() as log:
        async with running(broker, Feed(camera(), source, TOPIC), health=folder / "health.json"):
            await until((folder / "health.json").exists)
            folder.rename(tmp_path / "away")
            await until(lambda: any(line["log_level"] == "warning" for line in log))
            made = source.made
            await until(lambda: source.made >= made + 3)
            folder.mkdir()
            await until((folder / "health.json").exists)
    said = [line["event"] for line in log if line["log_level"] == "warning"]
    assert said == ["The file of the health is not written"]
