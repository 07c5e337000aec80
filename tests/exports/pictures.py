"""The pictures that the models are fitted to and asked about: ours, small, with their truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gateway.local.scenes import DETECTOR_CLASSES, SceneObject, render_scene

PICTURE_SIZE = (640, 360)
SEEDS = (100_052, 100_034, 100_117)
"""Crowded training scenes. A model that is fitted to so few knows them by heart after a minute, which is the point."""

CLASSES = DETECTOR_CLASSES


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, where it lies as a PNG file, and the objects in it in its own pixels."""

    path: Path
    image: Image.Image
    objects: tuple[SceneObject, ...]

    def boxes(self) -> list[tuple[int, int, int, int]]:
        return [found.bbox for found in self.objects]

    def classes(self) -> list[int]:
        return [CLASSES.index(found.class_name) for found in self.objects]


def pictures(folder: Path) -> list[Picture]:
    """The scenes, saved into the folder as `scene-<n>.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, seed in enumerate(SEEDS):
        scene = render_scene(seed, PICTURE_SIZE)
        path = folder / f"scene-{number}.png"
        scene.image.save(path)
        made.append(Picture(path, scene.image, scene.objects))
    return made


def crops(whole: list[Picture]) -> list[Picture]:
    """Every object cut out with a little of what is around it: what a classifier is fitted to.

    The files lie beside the whole pictures as `crop-<n>.png`; the first ones are of different classes.
    """
    cut: dict[int, list[Image.Image]] = {class_id: [] for class_id in range(len(CLASSES))}
    for picture in whole:
        for (x1, y1, x2, y2), class_id in zip(picture.boxes(), picture.classes(), strict=True):
            margin = max(x2 - x1, y2 - y1) // 8
            right, bottom = min(picture.image.width, x2 + margin), min(picture.image.height, y2 + margin)
            cut[class_id].append(picture.image.crop((max(0, x1 - margin), max(0, y1 - margin), right, bottom)))
    turns = [(turn, class_id) for class_id, images in cut.items() for turn in range(len(images))]
    made = []
    for number, (turn, class_id) in enumerate(sorted(turns)):
        image = cut[class_id][turn]
        path = whole[0].path.with_name(f"crop-{number}.png")
        image.save(path)
        made.append(Picture(path, image, (SceneObject(CLASSES[class_id], (0, 0, *image.size)),)))
    return made
