"""What the camera source is told: one camera, or a YAML file of several."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from gateway.errors import ConfigError
from gateway.schema import StrictModel, parse_secret, read_yaml
from gateway.terminal.send import unpublishable
from gateway.topics import fill

MAX_CAMERAS = 256
LOWEST_RATE = 1e-4
"""Snapshots a second: one in nearly three hours."""


class CameraSource(StrictModel):
    """One camera: where its pictures come from, and how they are sent."""

    device: str = Field(min_length=1, max_length=256)
    """The camera to appear as: `device_id` of its snapshots."""
    source: str = Field(min_length=1, max_length=4096)
    """An address (rtsp://, rtsps://, http://, https://), a video, a picture, or a folder of them; files again and
    again."""
    rate: float = Field(1.0, ge=LOWEST_RATE, le=60)
    """Snapshots a second at most. Of what comes in between the newest is sent, and nothing waits."""
    form: Literal["json", "raw"] = "json"
    """JSON with the picture in base64, or the picture as it is."""
    topic: str | None = None
    """Topic to publish to; without it the first of MQTT_INPUT_TOPICS that fits, for this place."""
    quality: int = Field(90, ge=1, le=100)
    """JPEG quality of frames; pictures in files are sent as they are."""
    max_width: int | None = Field(None, ge=16, le=16_384)
    """Frames that are wider are made as small as this many pixels, in their proportions."""
    keyframes: bool = False
    """Decode key frames alone: a fraction of the work, and a new picture every second or so, as the camera is set."""

    @field_validator("topic")
    @classmethod
    def _one_topic(cls, value: str | None) -> str | None:
        if value is not None and (problem := unpublishable(value)):
            raise ValueError(problem)
        return value


class _Cameras(StrictModel):
    cameras: tuple[CameraSource, ...] = Field(max_length=MAX_CAMERAS)

    @field_validator("cameras")
    @classmethod
    def _each_once(cls, value: tuple[CameraSource, ...]) -> tuple[CameraSource, ...]:
        twice = [device for device, count in Counter(camera.device for camera in value).items() if count > 1]
        if twice:
            raise ValueError(f"the device {twice[0]!r} stands there twice")
        raw = Counter(fill("{device}", {"device": camera.device}) for camera in value if camera.form == "raw")
        if alike := [name for name, count in raw.items() if count > 1]:
            raise ValueError(f"two raw cameras would both be {alike[0]!r} in a topic; name one of them otherwise")
        return value


def read_cameras(path: Path) -> tuple[CameraSource, ...]:
    """The cameras of a file; raises ConfigError."""
    data = read_yaml(path)
    entries = data.get("cameras")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        fix = "Write each camera with its keys: `- device: gate-2`, and below it `  source: rtsp://...`"
        raise ConfigError("has no list of cameras under `cameras`", where=str(path), fix=fix)
    if not all(isinstance(entry.get("source", ""), str) for entry in entries):
        raise ConfigError("has a camera whose source is no text", where=str(path), fix="Write one address or path")
    return parse_secret(_Cameras, data, str(path)).cameras
