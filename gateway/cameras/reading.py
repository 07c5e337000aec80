"""Reads one camera in a thread of its own, for as long as it is wanted: it is opened anew whenever it is lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from gateway.addresses import endpoint, scheme_of
from gateway.cameras.newest import Newest, Picture
from gateway.cameras.spec import CameraSource
from gateway.cameras.status import Status
from gateway.errors import UserError
from gateway.terminal.send import find_files, read_picture
from gateway.terminal.video import MAX_PAUSE_S, VIDEOS, Video, is_address, open_video

log = structlog.get_logger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Before a camera that is lost is opened again: twice as long each time."""
MOST_BEHIND_S = 5.0
"""How far a stream may fall behind: whoever decodes too slowly would see ever older frames, out of the network's and
the camera's buffers."""
ENVELOPE_BYTES = 2048
"""Of a JSON snapshot beside its picture, at most."""


class Source(Protocol):
    """Where pictures come from."""

    def play(self, newest: Newest) -> Iterator[None]:
        """Leave its pictures in `newest` until it ends, with a step for each; blocks. Raises UserError."""
        ...


class Lag:
    """How far a stream has fallen behind since it was least behind."""

    def __init__(self) -> None:
        self._least = float("inf")

    def behind_s(self, frame_s: float, now_s: float) -> float:
        """For a frame of that time in the stream, seen now: seconds by the two clocks, which need no common zero."""
        late = now_s - frame_s
        self._least = min(self._least, late)
        return late - self._least


class Stream:
    """A camera on the network: its frames come at their own pace, or it has one picture for each request."""

    def __init__(self, camera: CameraSource, max_pixels: int, max_bytes: int) -> None:
        self._camera = camera
        self._video = open_video(camera.source, 1, max_pixels)
        self._may_be_picture = scheme_of(camera.source) in ("http", "https")
        self._max_bytes = max_bytes

    def play(self, newest: Newest) -> Iterator[None]:
        """Every frame; the next one replaces it. Ends with UserError: a camera's stream has no end of its own.

        An address of one picture ends when the next one is due.
        """
        lag, started, count = Lag(), time.monotonic(), 0
        for frame in self._video.pictures(keyframes=self._camera.keyframes):
            if frame.time is not None and lag.behind_s(frame.time, time.monotonic()) > MOST_BEHIND_S:
                fix = "Set keyframes, or take a smaller stream of the camera"
                raise UserError("it cannot be decoded as fast as it comes", where=self._video.name, fix=fix)
            newest.put(_frame(self._video, frame, self._camera, self._max_bytes))
            count += 1
            yield
        if count == 1 and self._may_be_picture:
            newest.rest(started + 1 / self._camera.rate - time.monotonic())
            return
        raise UserError("the stream has ended", where=self._video.name, fix="See whether the camera restarts")


class Files:
    """Pictures and videos of one path, looked up anew for each round."""

    def __init__(self, camera: CameraSource, max_pixels: int, max_bytes: int) -> None:
        self._camera = camera
        self._max_pixels = max_pixels
        self._max_bytes = max_bytes
        self._path = Path(camera.source)
        self._unreadable: set[Path] = set()
        if not self._path.exists():
            raise UserError("no such file or folder", where=camera.source, fix="Check the path")

    def play(self, newest: Newest) -> Iterator[None]:
        """One round: each picture once, and each video at its own pace. One that cannot be read stops no others."""
        files = find_files([self._path], VIDEOS)
        self._unreadable &= set(files)
        for path in files:
            try:
                yield from self._file(path, newest)
            except UserError as error:
                self._pass_over(path, error)
            else:
                self._unreadable.discard(path)

    def _pass_over(self, path: Path, error: UserError) -> None:
        if path not in self._unreadable:
            self._unreadable.add(path)
            device, name = self._camera.device, path.name
            log.warning("A file is passed over", device=device, file=name, reason=error.message, fix=error.fix)

    def _file(self, path: Path, newest: Newest) -> Iterator[None]:
        if path.suffix.lower() in VIDEOS:
            yield from self._film(open_video(path, 1, self._max_pixels), newest)
        else:
            content = read_picture(path, self._max_bytes)
            newest.hand_over(Picture(lambda: content))
            yield

    def _film(self, video: Video, newest: Newest) -> Iterator[None]:
        started, first_s = time.monotonic(), None
        for frame in video.pictures(keyframes=self._camera.keyframes):
            picture = _frame(video, frame, self._camera, self._max_bytes)
            if frame.time is None:  # a bare stream of frames has no pace of its own
                newest.hand_over(picture)
            else:
                first_s = frame.time if first_s is None else first_s
                newest.rest(min(MAX_PAUSE_S, started + frame.time - first_s - time.monotonic()))
                newest.put(picture)
            yield


def _frame(video: Video, frame: object, camera: CameraSource, max_bytes: int) -> Picture:
    def encoded() -> bytes:
        content = video.jpeg(frame, camera.quality, camera.max_width)
        if len(content) > max_bytes:
            what = f"a frame is larger than MAX_PAYLOAD_BYTES allows ({max_bytes} bytes)"
            raise UserError(what, where=video.name, fix="Set max_width, or a lower quality")
        return content

    return Picture(encoded, time.time())


def source_of(camera: CameraSource, max_pixels: int, max_payload_bytes: int) -> Source:
    """Where its pictures come from; raises UserError for what can never be read here.

    A picture whose snapshot is larger than `max_payload_bytes` is refused here: the gateway would not read it.
    """
    base64 = camera.form == "json"
    max_bytes = max(0, max_payload_bytes - ENVELOPE_BYTES) * 3 // 4 if base64 else max_payload_bytes
    return (Stream if is_address(camera.source) else Files)(camera, max_pixels, max_bytes)


def start_reading(camera: CameraSource, source: Source, newest: Newest, status: Status) -> None:
    """Read it in a thread until `newest` is closed; one that hangs in a read keeps no process from ending."""
    work = partial(_guarded, camera, source, newest, status)
    threading.Thread(target=work, daemon=True, name=f"camera {camera.device}"[:60]).start()


def _guarded(camera: CameraSource, source: Source, newest: Newest, status: Status) -> None:
    try:
        _keep_reading(camera, source, newest, status)
    except BaseException as defect:  # noqa: BLE001 - raised again where somebody looks
        newest.fail(defect)


def _keep_reading(camera: CameraSource, source: Source, newest: Newest, status: Status) -> None:
    pause_s = FIRST_PAUSE_S
    while not newest.is_closed():
        problem, steps = None, 0
        try:
            for _ in source.play(newest):
                if newest.is_closed():
                    return
                if not status.readable and status.found():
                    log.info("A camera is read", device=camera.device, source=endpoint(camera.source))
                steps += 1
        except UserError as error:
            problem = error
        if steps:
            pause_s = FIRST_PAUSE_S
        elif problem is None:
            problem = UserError("nothing comes from it", fix="See what the lines before say")
        if problem is not None:
            _complain(camera, status, problem)
            newest.rest(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads reconnects, no secret
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)


def _complain(camera: CameraSource, status: Status, problem: UserError) -> None:
    """Once for each reason, not at each try."""
    if status.lost(problem.message):
        log.warning(
            "A camera cannot be read; it is tried again",
            device=camera.device,
            source=endpoint(camera.source),
            reason=problem.message,
            fix=problem.fix,
        )
