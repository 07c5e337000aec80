"""cameras.yaml: what is taken, and that no password is in what is said of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cameras.spec import read_cameras
from gateway.errors import ConfigError
from tests.command_line import ROOT, one_line

ADDRESS = "rtsp://operator:pass-word-7@192.0.2.7/stream"


def test_the_example_is_right() -> None:
    (camera,) = read_cameras(ROOT / "compose" / "cameras.example.yaml")
    assert (camera.device, camera.rate, camera.form) == ("camera-01", 1, "json")
    assert camera.source == "/models/industrial-safety/golden"


def test_all_keys(tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(
        f"cameras:\n  - {{device: gate-2, source: '{ADDRESS}', rate: 0.5, form: raw, topic: a/b, quality: 75, "
        "max_width: 640, keyframes: true}\n  - {device: gate-3, source: film.mp4}\n"
    )
    first, second = read_cameras(path)
    assert first.source == ADDRESS
    assert (first.quality, first.max_width, first.keyframes, second.quality) == (75, 640, True, 90)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no list of cameras"),
        ("cameras: []", "no list of cameras"),
        (f"cameras: {ADDRESS}", "no list of cameras"),
        (f"cameras: ['{ADDRESS}']", "no list of cameras"),
        (f"cameras: [{{device: a, source: ['{ADDRESS}']}}]", "whose source is no text"),
        (f"cameras: [{{device: a, source: '{ADDRESS}', rate: 0}}]", "rate"),
        (f"cameras: [{{device: a, sourc: '{ADDRESS}'}}]", "did you mean 'source'?"),
        (f"cameras: [{{device: a, source: '{ADDRESS}', topic: a/+/b}}]", "has wildcards"),
        (f"cameras: [{{source: '{ADDRESS}'}}]", "device"),
        (f"cameras: [{{device: a, source: '{ADDRESS}'}}, {{device: a, source: '{ADDRESS}'}}]", "twice"),
        (f"cameras: [{{device: a, source: '{ADDRESS}'}}]\nmore: 1", "unknown key (known keys: cameras)"),
        (f"cameras:\n  - device: a\n    source: film.mp4\n    rate: {ADDRESS}", "line 4: cameras[0].rate: must be"),
        (f"cameras:\n  - device: a\n    source: film.mp4\n    form: {ADDRESS}", "line 4: cameras[0].form: must be"),
        (f"cameras:\n  - device: a\n    '{ADDRESS}': 1", "unknown key"),
        (f"cameras:\n  - device: a\n    {ADDRESS}", "in line 3"),
        (f"cameras:\n  - device: a\n    source: '{ADDRESS}{'x' * 4096}'", "at most 4096 characters"),
        ("cameras: [{device: a+b, source: x, form: raw}, {device: a/b, source: x, form: raw}]", "both be 'a_b'"),
    ],
)
def test_a_mistake_is_named_without_the_password(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as error:
        read_cameras(path)
    assert said in str(error.value)
    assert "pass-word-7" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either SOURCE with its options, or --cameras"),
        (["film.mp4", "--cameras", "cameras.yaml"], "either SOURCE with its options, or --cameras"),
        (["--cameras", "cameras.yaml", "--rate", "2"], "either SOURCE with its options, or --cameras"),
        (["--check-health", "file", "--rate", "2"], "--check-health goes alone"),
        (["--check-health", "nowhere"], "nowhere: cannot be read: No such file or directory"),
        (["nowhere.mp4"], "nowhere.mp4: no such file or folder. Check the path"),
        (["ftp://operator:pass-word-7@host/x"], "ftp://host: is no address that is read"),
        (["rtsp://operator:pass-word-7@[host/x"], "rtsp://***: is no address that is read"),
        (["rtsp://operator:pass-word-7@host/" + "x" * 4096], "source: String should have at most 4096 characters"),
        (["film.mp4", "--rate", "5e-324"], "is not in the range"),
        (["film.mp4", "--topic", "a/#"], "has wildcards"),
        (["film.mp4", "--device", ""], "device"),
    ],
)
def test_a_wrong_command_is_one_line(arguments: list[str], said: str) -> None:
    line = one_line("camera", *arguments)
    assert said in line
    assert "pass-word-7" not in line
