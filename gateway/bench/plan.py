"""What is measured: the cases of a run, narrowed by what the command line asks for. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Payload = Literal["json", "raw"]
Mode = Literal["single", "dual"]
Part = Literal[
    "gateway", "script", "triton", "decoder", "latency", "dual", "start", "memory", "pinned", "batching", "accuracy"
]

SIZES = (224, 320, 640)
RESOLUTIONS = ("720p", "1080p", "4k")
PAYLOADS = ("json", "raw")
MODES = ("single", "dual")
MODELS = ("stub", "sample")
CAMERAS = (1, 10, 200)
PARTS: tuple[Part, ...] = (
    "gateway",
    "script",
    "triton",
    "decoder",
    "latency",
    "dual",
    "start",
    "memory",
    "pinned",
    "batching",
    "accuracy",
)
QUICK: tuple[Part, ...] = ("gateway", "script", "triton", "decoder", "latency")
"""What of it `--quick` measures."""
QUALITY = 75
"""Of the JPEGs: the default of Pillow and libjpeg, and about what a camera sends."""
SAMPLE_SIZE = 0
"""As the size of a case: the sample model, which has its own."""


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One combination; `size` is that of the stub model's square input, 0 stands for the sample model."""

    size: int = 224
    resolution: str = "1080p"
    payload: str = "json"
    mode: str = "single"
    cameras: int = 10
    workers: int = 1

    @property
    def window(self) -> int:
        """Snapshots that are unanswered at any time in a closed loop: as many as do not overflow a gateway's queue."""
        return 8 if self.resolution == "4k" else 16

    @property
    def model(self) -> str:
        """The kind of model."""
        return "sample" if self.size == SAMPLE_SIZE else "stub"

    def __str__(self) -> str:
        model = "sample" if self.size == SAMPLE_SIZE else f"stub {self.size}"
        cameras = f"{self.cameras} camera{'s' if self.cameras > 1 else ''}"
        workers = f", {self.workers} workers" if self.workers > 1 else ""
        return f"{model}, {self.resolution}, {self.payload}, {self.mode}, {cameras}{workers}"


BASE = Case()


@dataclass(frozen=True, slots=True)
class Filters:
    """What the command line asks for; empty stands for the plan's own choice."""

    only: Sequence[str] = ()
    sizes: Sequence[int] = ()
    resolutions: Sequence[str] = ()
    payloads: Sequence[str] = ()
    modes: Sequence[str] = ()
    models: Sequence[str] = ()
    cameras: Sequence[int] = ()
    workers: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run measures; `seconds` of one measurement, `rate` in snapshots a second of the open loop."""

    parts: tuple[Part, ...]
    cases: tuple[Case, ...]
    seconds: float
    pairs: int
    rate: float
    quality: int = QUALITY
    """Of the JPEGs that the cameras send, 1 to 100."""

    def has(self, part: Part) -> bool:
        """Whether this part is measured."""
        return part in self.parts


def make_plan(
    kind: Literal["quick", "default", "full"],
    filters: Filters,
    *,
    seconds: float | None = None,
    rate: float | None = None,
    quality: int = QUALITY,
    cores: int = 2,
) -> Plan:
    """The plan of this kind, narrowed by the filters: a dimension that is named is crossed with the others named.

    By default each dimension is varied alone, with the others as in BASE; `full` crosses all of them.
    """
    asked = filters.only or (QUICK if kind == "quick" else PARTS)
    parts = tuple(part for part in PARTS if part in asked)
    if _names_a_dimension(filters):
        cases = _crossed(filters)
    elif kind == "quick":
        cases = (BASE,)
    elif kind == "default":
        cases = _one_by_one(cores)
    else:
        cases = _crossed(Filters(sizes=SIZES, resolutions=RESOLUTIONS, payloads=PAYLOADS, modes=MODES, models=MODELS))
        cases = tuple(dict.fromkeys((*cases, *_one_by_one(cores))))
    usual_seconds = {"quick": 1.0, "default": 2.0, "full": 5.0}[kind]
    return Plan(parts, cases, seconds or usual_seconds, 1 if kind == "quick" else 2, rate or 5.0, quality)


def _names_a_dimension(filters: Filters) -> bool:
    dimensions = (filters.sizes, filters.resolutions, filters.payloads, filters.modes, filters.models)
    return any((*dimensions, filters.cameras, filters.workers))


def _crossed(filters: Filters) -> tuple[Case, ...]:
    models = filters.models or (("stub",) if filters.sizes else (BASE.model,))
    sizes = [*(filters.sizes or (BASE.size,))] if "stub" in models else []
    sizes += [SAMPLE_SIZE] if "sample" in models else []
    combinations = itertools.product(
        sizes,
        filters.resolutions or (BASE.resolution,),
        filters.payloads or (BASE.payload,),
        filters.modes or (BASE.mode,),
        filters.cameras or (BASE.cameras,),
        filters.workers or (BASE.workers,),
    )
    return tuple(Case(*combination) for combination in combinations)


def _one_by_one(cores: int) -> tuple[Case, ...]:
    varied = [
        *(replace(BASE, size=size) for size in (*SIZES, SAMPLE_SIZE)),
        *(replace(BASE, resolution=resolution) for resolution in RESOLUTIONS),
        *(replace(BASE, payload=payload) for payload in PAYLOADS),
        *(replace(BASE, mode=mode) for mode in MODES),
        *(replace(BASE, cameras=cameras) for cameras in CAMERAS),
        *(replace(BASE, workers=workers) for workers in range(1, min(cores, 4) + 1)),
    ]
    return tuple(dict.fromkeys(varied))
