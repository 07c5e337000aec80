"""Frames of a video file or a camera's stream as JPEG, by PyAV, which comes with the extra `video`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import io
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.addresses import endpoint, scheme_of
from gateway.errors import UserError
from gateway.terminal.threads import apart

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".mts", ".mjpeg",
          ".mjpg", ".h264", ".264", ".h265", ".265", ".hevc", ".ogv", ".3gp")  # fmt: skip
SCHEMES = ("rtsp", "rtsps", "http", "https")
OPEN_LIMIT_S, READ_LIMIT_S = 10.0, 15.0
"""Until the first answer, and from one frame to the next."""
KEYFRAME_LIMIT_S = 60.0
"""From one key frame to the next: cameras that save bandwidth send few."""
JPEG_QUALITY = 90
CLOCKLESS = 0x80
"""ffmpeg's flag of a format whose packets have no times."""
MAX_PAUSE_S = 10.0
"""Between two frames, whatever their times say."""
PROTOCOLS = {True: "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto", False: "file"}
"""What may be opened: a file must not lead to other addresses, nor an address to files of this machine."""


def is_address(text: str) -> bool:
    """Whether it is the address of a stream rather than a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def open_video(place: str | Path, every: int, max_pixels: int) -> Video:
    """A video to send; raises UserError for an address that is none, and when PyAV is not there."""
    if isinstance(place, str):
        name = endpoint(place)
        if scheme_of(place) not in SCHEMES:
            raise UserError("is no address that is read", where=name, fix=f"Use one of {', '.join(SCHEMES)}")
        return Video(_pyav(name), place, name, True, every, max_pixels)
    if place.exists() and not place.is_file():  # a pipe would keep its reader waiting
        raise UserError("not a regular file", where=place.name, fix="Name a file or a folder of them")
    # With the protocol said, a colon in the name is no address.
    return Video(_pyav(place.name), f"file:{place}", place.name, False, every, max_pixels)


def _pyav(name: str) -> Any:
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise UserError(
            "videos are read by PyAV, which is not installed",
            where=name,
            fix="In the gateway's environment: pip install 'triton-edge-gateway[video]'",
        ) from None
    # Never a level: its own log then waits, in ffmpeg's threads, for the lock of the interpreter, and hangs.
    av.logging.set_level(None)
    return av


@dataclass(frozen=True, slots=True)
class Video:
    """Every n-th frame of a video, at its own pace; `max_pixels` is the largest frame that is decoded."""

    av: Any
    """The module."""
    place: str
    name: str
    live: bool
    """Whether it comes at a pace of its own, from an address."""
    every: int
    max_pixels: int

    async def items(self, rate: float | None) -> AsyncIterator[tuple[str, bytes]]:
        """Name and JPEG of each frame, at the video's own pace.

        With a rate a file goes as fast as it is asked, and of a live stream the frames that come too early are left
        out. Raises UserError when it cannot be read.
        """
        frames = self._frames(rate if self.live else None)
        started, first_s = time.monotonic(), None
        while (frame := await apart(lambda: next(frames, None))) is not None:
            number, seconds, jpeg = frame
            if rate is None and not self.live and seconds is not None:
                first_s = seconds if first_s is None else first_s
                await asyncio.sleep(min(MAX_PAUSE_S, max(0.0, started + seconds - first_s - time.monotonic())))
            yield f"{self.name} frame {number}", jpeg

    def _frames(self, rate: float | None) -> Iterator[tuple[int, float | None, bytes]]:
        """Number from 1, time in the video in seconds, and JPEG; blocks. At most `rate` a second, others left out."""
        due = 0.0
        for number, frame in enumerate(self.pictures(threads=not self.live), 1):
            if (number - 1) % self.every or (rate and time.monotonic() < due):
                continue
            due = time.monotonic() + 1 / rate if rate else 0.0
            yield number, frame.time, self.jpeg(frame)

    def pictures(self, *, keyframes: bool = False, threads: bool = False) -> Iterator[Any]:
        """Each frame as PyAV decodes it, or the key frames alone, which costs a fraction; blocks. Raises UserError.

        With `threads` on several cores, at the price of some frames' delay and memory.
        """
        options = {"protocol_whitelist": PROTOCOLS[self.live]}
        if self.place.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # a lost UDP packet is half a picture
        with (
            self._readable(),
            self.av.open(self.place, options=options, timeout=(OPEN_LIMIT_S, READ_LIMIT_S)) as container,
        ):
            yield from self._decoded(container, keyframes=keyframes, threads=threads)

    def jpeg(self, frame: Any, quality: int = JPEG_QUALITY, max_width: int | None = None) -> bytes:
        """One of the `pictures`, no wider than `max_width` pixels; raises UserError."""
        self._require_size(frame)
        with self._readable():
            if max_width is None or frame.width <= max_width:
                image = frame.to_image()
            else:
                height = max(1, round(frame.height * max_width / frame.width))
                image = frame.to_image(width=max_width, height=height, interpolation="AREA")
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
        return file.getvalue()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except self.av.FFmpegError as error:
            raise self._unreadable(error.strerror or type(error).__name__) from error
        except (ValueError, MemoryError, OSError) as error:  # of damaged files, from the layers between
            raise self._unreadable(str(error) or type(error).__name__) from error

    def _decoded(self, container: Any, *, keyframes: bool, threads: bool) -> Iterator[Any]:
        if not container.streams.video:
            raise self._unreadable("it has no picture")
        stream = container.streams.video[0]
        self._require_size(stream.codec_context)  # as the file says; frames can turn out larger
        # ffmpeg counts some hundred pixels around each frame too, so this bounds memory, not exactly the size.
        stream.codec_context.options = {"max_pixels": str(2 * self.max_pixels + 2**20)}
        if keyframes:
            stream.codec_context.skip_frame = "NONKEY"
        if threads:
            stream.thread_type = "AUTO"
        return self._frames_of(container, stream, KEYFRAME_LIMIT_S if keyframes else READ_LIMIT_S)

    def _frames_of(self, container: Any, stream: Any, limit_s: float) -> Iterator[Any]:
        single = container.format.name.endswith("_pipe")
        # Frames of a format without times are counted as 25 a second, however fast a camera sends them.
        clockless = self.live and (single or bool(container.format.flags & CLOCKLESS))
        last = time.monotonic()
        # All streams, of which one is decoded: the others would hide that this one has stopped.
        for packet in self._packets(container, to_the_end=not (self.live and single)):
            if packet.stream.index == stream.index:
                for frame in packet.decode():
                    if clockless:
                        frame.pts = None
                    yield frame
                    last = time.monotonic()  # what the caller takes is not the camera's
            if time.monotonic() - last > limit_s:
                raise self._unreadable(f"no picture for {limit_s:.0f} s")

    def _packets(self, container: Any, *, to_the_end: bool) -> Iterator[Any]:
        try:
            yield from container.demux()
        except self.av.OSError as error:
            # The end of an answer whose length was not said, as single pictures of HTTP/1.0 come.
            if to_the_end or error.errno != errno.EIO:
                raise

    def _require_size(self, picture: Any) -> None:
        if picture.width * picture.height > self.max_pixels:
            what = f"has {picture.width}x{picture.height} pixels a frame, MAX_IMAGE_PIXELS is {self.max_pixels}"
            raise UserError(what, where=self.name, fix="Send a smaller video, or raise MAX_IMAGE_PIXELS")

    def _unreadable(self, why: str) -> UserError:
        fix = (
            "Check the address, its user and password, and that the camera answers"
            if self.live
            else "Check that the file is a complete video"
        )
        return UserError(f"cannot be read as a video: {why}", where=self.name, fix=fix)
