"""Renders the scenes once and keeps what a model would see of them.

A training picture goes the way of a camera picture: JPEG, scaled decoding, bilinear resize. The steps mirror
`gateway/flow/preprocess.py`; a model trained on smoother pictures than it gets later would lose accuracy there.
"""

import hashlib
import io
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import recipe
from numpy.typing import NDArray
from PIL import Image

import gateway.local
from gateway.local.scenes import (
    DETECTOR_CLASSES,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    WALKWAY_CLASSES,
    Scene,
    render_scene,
)

SPLITS = {"train": TRAIN_SEEDS, "validation": VALIDATION_SEEDS, "test": TEST_SEEDS}
MAX_OBJECTS = 12


@dataclass(frozen=True)
class Split:
    """All scenes of one split. `boxes` holds class, x1, y1, x2, y2 per object in pixels of `frames`; class -1: none."""

    frames: NDArray[np.uint8]  # scene, content height, content width, RGB: the detector's picture without its padding
    boxes: NDArray[np.float32]  # scene, MAX_OBJECTS, 5
    squares: NDArray[np.uint8]  # scene, 224, 224, RGB: the classifier's picture
    walkway: NDArray[np.int64]  # scene

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Letterbox:
    """Where a picture lies inside the model's input."""

    scale: float
    width: int
    height: int
    left: int
    top: int

    @classmethod
    def fit(cls, width: int, height: int) -> "Letterbox":
        scale = min(recipe.DETECTOR_WIDTH / width, recipe.DETECTOR_HEIGHT / height)
        w, h = round(width * scale), round(height * scale)
        return cls(scale, w, h, (recipe.DETECTOR_WIDTH - w) // 2, (recipe.DETECTOR_HEIGHT - h) // 2)


def encode(scene: Scene, seed: int) -> bytes:
    """The scene as a camera would send it."""
    buffer = io.BytesIO()
    scene.image.save(buffer, "JPEG", quality=random.Random(seed).randint(85, 92))
    return buffer.getvalue()


def decode(jpeg: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """Decodes at the smallest scale that is large enough, then resizes to exactly width x height."""
    image = Image.open(io.BytesIO(jpeg))
    image.draft("RGB", (width, height))
    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def detector_input(jpeg: bytes) -> tuple[NDArray[np.float32], Letterbox]:
    """The detector's input tensor (3, H, W) for a JPEG, and where the picture lies in it."""
    with Image.open(io.BytesIO(jpeg)) as image:
        box = Letterbox.fit(*image.size)
    tensor = np.full((recipe.DETECTOR_HEIGHT, recipe.DETECTOR_WIDTH, 3), recipe.PAD_VALUE, np.uint8)
    tensor[box.top : box.top + box.height, box.left : box.left + box.width] = decode(jpeg, box.width, box.height)
    return np.ascontiguousarray(tensor.transpose(2, 0, 1), np.float32) / np.float32(255), box


def classifier_input(jpeg: bytes) -> NDArray[np.float32]:
    """The classifier's input tensor (3, 224, 224) for a JPEG."""
    square = decode(jpeg, recipe.CLASSIFIER_SIZE, recipe.CLASSIFIER_SIZE).astype(np.float32) / 255
    return np.ascontiguousarray(((square - recipe.MEAN) / recipe.STD).transpose(2, 0, 1), np.float32)


def load(split: str, count: int, workers: int) -> Split:
    """The split from the cache, rendered first where the cache lacks it or the renderer has changed."""
    folder = recipe.CACHE / f"{split}-{count}-{_digest()}"
    names = ("frames", "boxes", "squares", "walkway")
    if not (folder / "walkway.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in zip(names, _render(split, count, workers), strict=True):
            np.save(folder / f"{name}.npy", array)
    return Split(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def _digest() -> str:
    sources = [
        Path(__file__),
        *(Path(p) / f"{n}.py" for p in gateway.local.__path__ for n in ("scenes", "sprites", "props", "backdrop")),
    ]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:10]


def _render(split: str, count: int, workers: int) -> tuple[NDArray[Any], ...]:
    box = Letterbox.fit(*recipe.CAMERA_SIZE)
    frames = np.empty((count, box.height, box.width, 3), np.uint8)
    boxes = np.full((count, MAX_OBJECTS, 5), -1, np.float32)
    squares = np.empty((count, recipe.CLASSIFIER_SIZE, recipe.CLASSIFIER_SIZE, 3), np.uint8)
    walkway = np.empty(count, np.int64)
    with ProcessPoolExecutor(workers) as pool:
        for i, sample in enumerate(pool.map(_sample, SPLITS[split][:count], chunksize=8)):
            frames[i], boxes[i], squares[i], walkway[i] = sample
            if (i + 1) % 100 == 0 or i + 1 == count:
                print(f"  {split}: {i + 1}/{count} scenes rendered", flush=True)
    return frames, boxes, squares, walkway


def _sample(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8], int]:
    scene = render_scene(seed, recipe.CAMERA_SIZE)
    jpeg, box = encode(scene, seed), Letterbox.fit(*recipe.CAMERA_SIZE)
    boxes = np.full((MAX_OBJECTS, 5), -1, np.float32)
    for i, found in enumerate(scene.objects[:MAX_OBJECTS]):
        boxes[i] = (DETECTOR_CLASSES.index(found.class_name), *(v * box.scale for v in found.bbox))
    square = decode(jpeg, recipe.CLASSIFIER_SIZE, recipe.CLASSIFIER_SIZE)
    return decode(jpeg, box.width, box.height), boxes, square, WALKWAY_CLASSES.index(scene.walkway)
