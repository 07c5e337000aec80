"""Model drops as an engineer would copy them into the repository, whole and spoilt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.rollouts import detectors

QUICK: Mapping[str, Any] = {
    "shadow": 20,
    "canary": [20, 60],
    "hold": "1s",
    "min_samples": 10,
    "keep": "1s",
    # Several processes share two cores with all that else runs there.
    "max_slowdown": 4.0,
}
"""A rollout of a few seconds at 50 snapshots a second."""
AT_ONCE: Mapping[str, Any] = {"shadow": 0, "canary": [], "keep": "100ms"}
"""A rollout without trials, of which the version before goes soon."""
GOLDEN = (("red.png", (230, 20, 60), "person"), ("green.png", (20, 230, 60), "forklift"))


@dataclass(frozen=True)
class Model:
    """One logical model in a repository, with the variants that it has."""

    repository: Path
    name: str
    variants: Sequence[str] = ("onnx",)

    @property
    def folder(self) -> Path:
        """Of model.yaml."""
        return self.repository / self.name

    def triton_model(self, variant: str) -> str:
        """The Triton model of a variant."""
        return f"{self.name}-{variant}"

    def triton_folder(self, variant: str) -> Path:
        """Its folder."""
        return self.repository / self.triton_model(variant)

    def file(self, variant: str, version: int) -> Path:
        """The weights."""
        return self.triton_folder(variant) / str(version) / detectors.MODEL_FILES[variant]

    def write_logical(self, *, rollout: Any = QUICK, golden: bool = True, **more: Any) -> None:
        """model.yaml, labels.txt and the golden examples."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "labels.txt").write_text("\n".join(detectors.LABELS) + "\n")
        body: dict[str, Any] = {
            "name": self.name,
            "model_type": "object-detection",
            "labels": "labels.txt",
            "variants": {variant: self.triton_model(variant) for variant in self.variants},
            "preprocessing": {"resize": [detectors.SIDE, detectors.SIDE], "normalize": True},
            "inference": {"output": "yolov8", "confidence_threshold": 0.4},
            "mqtt": {"input_topics": ["#"]},
            "rollout": rollout if isinstance(rollout, str) else dict(rollout),
            **more,
        }
        (self.folder / "model.yaml").write_text(yaml.safe_dump(body))
        if golden:
            self.write_golden()

    def write_golden(self, times: int = 1) -> None:
        """Two pictures, and what is in them; asked about so many times each."""
        folder = self.folder / "golden"
        folder.mkdir(exist_ok=True)
        expected = []
        for name, colour, label in GOLDEN:
            (folder / name).write_bytes(detectors.picture(*colour))
            confidence = round(max(colour) / 255, 4)
            expected.append(
                {
                    "image": name,
                    "predictions": [{"class": label, "confidence": confidence, "bbox": [8.0, 8.0, 24.0, 24.0]}],
                }
            )
        (folder / "expected.json").write_text(json.dumps(expected * times))

    def drop(self, version: int, *variants: str, swapped: Sequence[str] = (), slow: bool = False) -> None:
        """One version of these variants, or of all, as a copy that is made in no time."""
        for variant in variants or self.variants:
            self.write(variant, version, self.content(variant, version, swapped=variant in swapped, slow=slow))

    def content(
        self,
        variant: str,
        version: int,
        *,
        swapped: bool = False,
        slow: bool = False,
        ballast: detectors.Floats | None = None,
    ) -> bytes:
        """The weights of one version of a variant."""
        if variant == "onnx":
            return detectors.onnx_detector(version, swapped=swapped, slow=slow, ballast=ballast)
        if variant == "torch":
            return detectors.torch_detector(version, swapped=swapped)
        return detectors.python_detector()

    def write(self, variant: str, version: int, content: bytes, config: str | None = None) -> Path:
        """One version of one variant with this content."""
        return detectors.write(self.triton_folder(variant), variant, content, version, config)

    def remove(self, version: int) -> None:
        """The version folders."""
        for variant in self.variants:
            shutil.rmtree(self.triton_folder(variant) / str(version), ignore_errors=True)

    def remove_all(self) -> None:
        """All of the model."""
        for folder in (self.folder, *(self.triton_folder(variant) for variant in self.variants)):
            shutil.rmtree(folder)
