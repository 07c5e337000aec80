"""What the cameras of the bench send: scenes as JPEG, in JSON or as they are, every snapshot different."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.bench.plan import QUALITY, Case
from gateway.bench.records import FrameSet

RESOLUTIONS = {"720p": (1280, 720), "1080p": (1920, 1080), "4k": (3840, 2160)}
FRAMES = 8
SCENE_STEP = 37
"""Between the seeds of two frames, so that they show different halls."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message of a camera; `number` comes back in the answer, as the correlation data of MQTT 5."""

    number: int
    topic: str
    payload: bytes
    user_properties: tuple[tuple[str, str], ...] = ()


class Frames:
    """JPEGs of test scenes by resolution, each drawn once; `drawn` are those that are there already."""

    def __init__(self, drawn: Mapping[str, tuple[bytes, ...]] | None = None, *, quality: int = QUALITY) -> None:
        """`quality` is that of JPEG, 1 to 100."""
        self._quality = quality
        self._jpegs = dict(drawn or {})
        self._texts: dict[str, tuple[bytes, ...]] = {}

    def jpegs(self, resolution: str) -> tuple[bytes, ...]:
        """Some frames of this resolution, as files."""
        if resolution not in self._jpegs:
            self._jpegs[resolution] = tuple(_draw(resolution, number, self._quality) for number in range(FRAMES))
        return self._jpegs[resolution]

    def texts(self, resolution: str) -> tuple[bytes, ...]:
        """The same in base64."""
        if resolution not in self._texts:
            self._texts[resolution] = tuple(map(base64.b64encode, self.jpegs(resolution)))
        return self._texts[resolution]

    def sets(self) -> list[FrameSet]:
        """What was drawn so far, by resolution; the sizes are those of the files."""
        return [
            FrameSet(resolution, *RESOLUTIONS[resolution], self._quality, sum(map(len, jpegs)) / len(jpegs) / 1000)
            for resolution, jpegs in self._jpegs.items()
        ]


def _draw(resolution: str, number: int, quality: int) -> bytes:
    from gateway.local.scenes import TEST_SEEDS, render_scene

    buffer = io.BytesIO()
    scene = render_scene(TEST_SEEDS[number * SCENE_STEP], RESOLUTIONS[resolution])
    scene.image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Feed:
    """The snapshots of one case, numbered from `first` on; the cameras take turns."""

    def __init__(self, case: Case, frames: Frames, topic: str, model: str) -> None:
        self._case = case
        self._topic = topic
        self._asked = (("model_name", model), ("backend_preference", "dual" if case.mode == "dual" else "onnx"))
        self._contents = (frames.texts if case.payload == "json" else frames.jpegs)(case.resolution)

    def make(self, number: int) -> Outgoing:
        """Snapshot `number`; the same number gives the same snapshot."""
        device = f"camera-{number % self._case.cameras:03}"
        content = self._contents[number % len(self._contents)]
        if self._case.payload == "raw":
            return Outgoing(number, self._topic, content, (("device_id", device), *self._asked))
        head = f'{{"device_id":"{device}","timestamp":{1_700_000_000 + number / 1000:.3f},'
        head += "".join(f'"{name}":"{value}",' for name, value in self._asked)
        return Outgoing(number, self._topic, b"".join((head.encode(), b'"image_data":"', content, b'"}')))
