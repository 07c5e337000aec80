"""`edge-gateway watch`: what it shows, what it keeps, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.local.annotate import annotate
from gateway.messages import Message
from gateway.terminal.lines import json_line, readable_line
from gateway.terminal.save import Album
from tests.command_line import ROOT, environment, one_line, run, start
from tests.flow.builders import jpeg

RESULTS = "edge-ai/bu/plant/gw/ai/inference/vision"
RESULT: dict[str, Any] = {
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
ALERT: dict[str, Any] = {
    "message_type": "ai_alert",
    "event": "start",
    "device_id": "cam7",
    "model_name": "detector",
    "class_name": "fire",
    "severity": "critical",
    "confidence": 0.914,
    "frames": 3,
    "duration_s": None,
    "reason": None,
}


def publish(path: Path, message: dict[str, object], at: dict[str, str], topic: str = RESULTS) -> None:
    """Any message on the topic of results, by our own command: what it sends raw is sent as it is."""
    path.write_text(json.dumps(message))
    done = run("send", str(path), "--as", "raw", "--topic", topic, **at)
    assert done.returncode == 0, done


# --- lines ----------------------------------------------------------------------------------------------


def line(message: dict[str, Any]) -> str:
    """The line of a message, without its time."""
    said = readable_line("t", json.dumps(message).encode())
    assert said is not None
    return said.split("  ", 1)[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "forklift 0.87  ALERT"),
        ({"predictions": []}, "nothing seen  ALERT"),
        ({"predictions": [], "values": [21.5, 3.25e-7]}, "values 21.5, 3.25e-07  ALERT"),
        ({"predictions": [], "values": list(range(9))}, "values 0, 1, 2, 3 and 5 more  ALERT"),
        (
            {"predictions": [{"class": "anomaly", "class_id": 1, "confidence": 0.9}], "anomaly_score": 0.9},
            "anomaly 0.90; anomaly score 0.90  ALERT",
        ),
        ({"anomaly_score": 0.02, "predictions": []}, "anomaly score 0.02  ALERT"),
    ],
)
def test_a_result_is_one_readable_line(more: dict[str, Any], said: str) -> None:
    assert line({**RESULT, **more}).endswith(f"ms  {said}")


def test_an_alert_is_one_readable_line() -> None:
    assert line(ALERT) == "alert     cam7         detector critical: fire 0.91 after 3 frames"
    over = {**ALERT, "event": "end", "duration_s": 12.34, "frames": 1, "reason": "gone"}
    assert line(over) == "alert     cam7         detector critical: fire ended after 12.3 s and 1 frame"
    assert line({**over, "reason": "gateway_stopped"}).endswith("1 frame (gateway_stopped)")


@pytest.mark.parametrize("message", [{**RESULT, "predictions": 3}, {**ALERT, "event": 5}, {"message_type": "ai_alert"}])
def test_what_is_not_as_documented_is_said_to_be_so(message: dict[str, Any]) -> None:
    said = readable_line("t", json.dumps(message).encode())
    assert said is not None
    assert "not as documented" in said


def test_a_message_is_one_line_of_json_that_steers_no_terminal() -> None:
    said = json_line(b'{"a": 1.50,\n "device_id": "x\xc2\x9b31m\xe2\x80\xae\\u001b\xc3\xa9"}')
    assert said == '{"a":1.50,"device_id":"x\\u009b31m\\u202e\\u001b\u00e9"}'
    assert json.loads(said)["device_id"] == "x\x9b31m\u202e\x1b\u00e9"


# --- the command ----------------------------------------------------------------------------------------


def test_watch_shows_a_readable_line_and_ctrl_c_ends_it(tmp_path: Path, at: dict[str, str]) -> None:
    with start("watch", **at) as watching:
        watching.says("Watching")
        publish(tmp_path / "x.json", RESULT, at)
        watching.says("forklift 0.87")
        publish(tmp_path / "y.json", ALERT, at, "edge-ai/bu/plant/gw/ai/alerts")
        watching.says("critical: fire")
        publish(tmp_path / "z.json", {**RESULT, "values": [4.5]}, at, "edge-ai/bu/plant/gw/ai/inference/sensor")
        watching.says("values 4.5")
        watching.interrupt(signal.SIGINT)
        assert watching.wait() == 128 + signal.SIGINT
    assert len(watching.out) == 3
    assert "result    cam7" in watching.out[0]
    assert "3.5 ms of    7.2 ms" in watching.out[0]
    assert len(watching.err) == 1, "only that it watches"


def test_watch_ends_after_so_many_answers_and_prints_messages_as_they_are(tmp_path: Path, at: dict[str, str]) -> None:
    with start("watch", "--json", "--count", "2", **at) as watching:
        watching.says("Watching")
        publish(tmp_path / "s.json", {"message_type": "ai_status", "status": "ready"}, at)
        publish(tmp_path / "n.json", {"message_type": "of somebody else"}, at)
        publish(tmp_path / "a.json", RESULT, at)
        publish(tmp_path / "b.json", {**RESULT, "device_id": "cam8"}, at)
        assert watching.wait() == 0
    assert [json.loads(text).get("device_id") for text in watching.out] == [None, "cam7", "cam8"]


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


# --- what it keeps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("originals", [False, True])
def test_watch_saves_messages_and_the_pictures_that_results_are_about(
    originals: bool, tmp_path: Path, at: dict[str, str]
) -> None:
    folder, picture = tmp_path / "answers", tmp_path / "photo.jpg"
    picture.write_bytes(jpeg())
    place = {**at, "MQTT_INPUT_TOPICS": "$share/gateways/plant/{camera}/snapshots"}
    with start("watch", "--save", str(folder), "--count", "2", *["--originals"] * originals, **place) as watching:
        watching.says("Watching")
        assert run("send", str(picture), "--as", "raw", "--topic", "plant/cam7/snapshots", **at).returncode == 0
        result_id = result_id_of(picture.read_bytes(), "plant/cam7/snapshots")
        publish(tmp_path / "a.json", {**RESULT, "device_id": "../Cam 7", "result_id": result_id}, at)
        publish(tmp_path / "b.json", RESULT, at)
        assert watching.wait() == 0
    assert len(watching.out) == 2, "snapshots are not shown"
    files = sorted(folder.iterdir())
    assert [path.suffix for path in files] == [".jpg", ".json", ".json"]
    assert json.loads(files[1].read_text())["result_id"] == result_id
    assert files[0].stem == files[1].stem
    assert files[0].stem.endswith("-000001-ai-inference-result--cam-7")
    if originals:
        assert files[0].read_bytes() == picture.read_bytes()
    else:
        with Image.open(files[0]) as drawn, Image.open(picture) as original:
            assert drawn.width == original.width
            assert drawn.height > original.height, "a line of text stands above"


def result_id_of(payload: bytes, topic: str) -> str:
    """As a gateway would call the answer."""
    from gateway.flow.identify import identify

    place = {"business_unit": "", "facility": "", "gateway_id": ""}
    return identify(Message(topic, payload, time.monotonic()), (), place).result_id


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = one_line("watch", "--save", str(tmp_path / "file"))
    assert "nothing can be saved there: File exists. Name a folder that can be written" in said


def see(album: Album, message: Message, kind: str | None) -> str:
    return asyncio.run(album.see(message, kind))


def test_a_full_disk_ends_the_saving_in_one_line_and_not_the_watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album = Album(tmp_path, 5, lambda _message: None)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = Message("t", json.dumps(RESULT).encode(), 0.0)
    said = [see(album, message, "ai_inference_result") for _ in range(3)]
    assert said == [f"Nothing more is saved in {tmp_path}: No space left on device", "", ""]
    assert album.failure == said[0]
    assert not list(tmp_path.iterdir())


def test_only_the_last_messages_are_kept_those_of_earlier_runs_among_them(tmp_path: Path) -> None:
    (tmp_path / "20200101T000000-000001-ai-alert.json").write_text("{}")
    (tmp_path / "20200101T000000-000001-ai-alert.jpg").write_text("")
    (tmp_path / "mine.json").write_text("{}")
    album = Album(tmp_path, 3, lambda message: (message.topic, message.payload))
    for number in range(5):
        see(album, Message(str(number), jpeg(), 0.0), None)
        body = json.dumps({**RESULT, "result_id": str(number)}).encode()
        see(album, Message("t", body, 0.0), "ai_inference_result")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names.pop() == "mine.json", "it is not ours to delete"
    assert [name.split("-", 1)[1] for name in names] == [
        f"{number:06}-ai-inference-result-cam7{suffix}" for number in (3, 4, 5) for suffix in (".jpg", ".json")
    ]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40)), max_size=80), st.integers(1, 6))
def test_pictures_in_mind_are_bounded(tmp_path_factory: pytest.TempPathFactory, sizes: Any, keep: int) -> None:
    import gateway.terminal.save as save

    album = Album(tmp_path_factory.getbasetemp(), keep, lambda message: (message.topic, message.payload))
    limits = save.MAX_PICTURES, save.MAX_PICTURE_BYTES
    save.MAX_PICTURES, save.MAX_PICTURE_BYTES = 3, 60
    try:
        for name, size in sizes:
            see(album, Message(name, bytes(size), 0.0), None)
            assert len(album._pictures) <= 3
            assert album._bytes == sum(map(len, album._pictures.values())) <= 60
    finally:
        save.MAX_PICTURES, save.MAX_PICTURE_BYTES = limits


@given(st.text(max_size=40), st.text(max_size=90))
def test_whatever_a_message_calls_itself_it_stays_in_the_folder(
    tmp_path_factory: pytest.TempPathFactory, kind: str, device: str
) -> None:
    folder = tmp_path_factory.mktemp("album")
    album = Album(folder, 3, lambda _message: None)
    payload = json.dumps({"device_id": device}).encode()
    assert see(album, Message("t", payload, 0.0), kind) == ""
    (path,) = folder.iterdir()
    assert path.read_bytes() == payload
    assert Album(folder, 1, lambda _message: None)._names, "the next run counts it among its own"


# --- pictures with boxes --------------------------------------------------------------------------------


def drawn(image: bytes, **more: Any) -> Image.Image:
    """A picture with its result drawn into it."""
    annotated = annotate(image, {**RESULT, **more}, 10_000_000)
    assert annotated is not None
    return Image.open(io.BytesIO(annotated)).convert("RGB")


def test_boxes_are_drawn_where_they_are_in_the_upright_picture() -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stands upright when it is turned by a quarter
    Image.new("RGB", (400, 200), "white").save(file, "JPEG", exif=exif)
    box = {"class": "forklift", "class_id": 1, "confidence": 0.9, "bbox": [20, 300, 180, 380]}
    picture = drawn(file.getvalue(), predictions=[box])
    bar = picture.height - 400
    assert picture.width == 200
    assert bar > 0
    pixels = np.asarray(picture)
    red, green, blue = map(int, pixels[bar + 379, 100])
    assert red - max(green, blue) > 80, "the lower edge of the box"
    assert pixels[bar + 340, 100].min() > 240, "nothing is drawn inside"


@pytest.mark.parametrize(
    "bbox", [[-50, -50, 9e9, 9e9], [30, 30, 10, 10], [5, 5, 5, 5], [1e308, 1e308, 1e308, 1e308], [-9, -9, -5, -5]]
)
def test_a_box_beyond_the_picture_is_drawn_inside_it(bbox: list[float]) -> None:
    name = "\x1b[31m" + "w" * 9000
    picture = drawn(jpeg(), predictions=[{"class": name, "class_id": -7, "confidence": 0.5, "bbox": bbox}])
    with Image.open(io.BytesIO(jpeg())) as original:
        assert picture.width == original.width


def test_what_cannot_be_drawn_is_kept_as_it_came(tmp_path: Path) -> None:
    assert annotate(b"no picture", RESULT, 10_000_000) is None
    assert annotate(jpeg(), RESULT, 10) is None, "more pixels than are allowed"
    assert annotate(jpeg(), {**RESULT, "predictions": "all"}, 10_000_000) is None
    album = Album(tmp_path, 3, lambda message: ("00", message.payload), lambda image, body: annotate(image, body, 10))
    see(album, Message("t", jpeg(), 0.0), None)
    see(album, Message("t", json.dumps(RESULT).encode(), 0.0), "ai_inference_result")
    assert next(tmp_path.glob("*.jpg")).read_bytes() == jpeg()
