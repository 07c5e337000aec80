"""What decoding alone costs: in full, to the smallest size that is enough, and to the size that the gateway wants."""

from __future__ import annotations

import io
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from gateway.bench.records import Decoding
from gateway.flow.pictures import decode, open_picture
from gateway.flow.placement import place
from gateway.flow.preprocess import decoded_size
from gateway.models.preprocessing_spec import PreprocessingSpec

MAX_PIXELS = 100_000_000
REPEATS = 24


@dataclass(frozen=True, slots=True)
class Wanted:
    """Width and height to which a picture is decoded at least."""

    smallest: tuple[int, int]
    """As large as the part of the input that it fills."""
    gateway: tuple[int, int]
    """As the gateway asks for it."""


def wanted(picture: tuple[int, int], width: int, height: int) -> Wanted:
    """For a picture of this size (width, height) that is letterboxed into an input."""
    spec = PreprocessingSpec(resize=(height, width))
    size = (height, width)
    return Wanted(fitted(picture, width, height), decoded_size({size: place(*picture, spec, size)}))


def fitted(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Width and height of a picture of this size that is fitted into an input, its proportions kept."""
    scale = min(width / size[0], height / size[1])
    return round(size[0] * scale), round(size[1] * scale)


def scaled_ms(jpegs: Sequence[bytes], wanted: tuple[int, int], repeats: int = REPEATS) -> float:
    """CPU milliseconds, median, of decoding one of these to the next size from `wanted` up that libjpeg offers."""
    return _median_ms(lambda jpeg: decode(open_picture(jpeg, MAX_PIXELS), wanted), jpegs, repeats)


def measure(resolution: str, size: int, jpegs: Sequence[bytes], wanted: Wanted) -> Decoding:
    """In full, to the smallest size that is enough, and as the gateway does it."""
    full = _median_ms(_full, jpegs, REPEATS)
    smallest, gateway = (scaled_ms(jpegs, least) for least in (wanted.smallest, wanted.gateway))
    return Decoding(resolution, size, *wanted.smallest, full, smallest, gateway)


def _full(jpeg: bytes) -> None:
    Image.open(io.BytesIO(jpeg)).convert("RGB")


def _median_ms(way: Callable[[bytes], object], jpegs: Sequence[bytes], repeats: int) -> float:
    taken = []
    for jpeg in itertools.islice(itertools.cycle(jpegs), repeats + 2):
        started = time.thread_time()
        way(jpeg)
        taken.append(time.thread_time() - started)
    return 1000 * statistics.median(taken[2:])
