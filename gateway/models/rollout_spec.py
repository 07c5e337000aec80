"""`rollout` in model.yaml: what a new version has to pass before it serves, and how fast."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gateway.schema import StrictModel

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(value: Any) -> Any:
    """`60s`, `5m`, `1.5h`, or a number of seconds."""
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.strip())
    if not found:
        raise ValueError(f"'{value[:40]}' is no duration; write 60s, 5m or 1h")
    return float(found[1]) * _UNITS[found[2]]


Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str), Field(ge=0, le=31_536_000)]
"""A duration in seconds, or with its unit: `500ms`, `60s`, `5m`, `1h`, `2d`."""


class RolloutSpec(StrictModel):
    """How a new version comes into service; `rollout: immediate` leaves out shadow and canary."""

    shadow: int = Field(50, ge=0, le=1_000_000)
    """Snapshots that both versions are asked about, only the stable one's answer being published; 0 leaves it out."""
    canary: tuple[int, ...] = (10, 50)
    """Percentages of the cameras that the new version answers, step by step; `[]` leaves it out."""
    hold: Seconds = 60.0
    """Least time of each canary step."""
    min_samples: int = Field(20, ge=1, le=1_000_000)
    """Answers of the new version that each canary step waits for."""
    max_error_rate: float = Field(0.01, ge=0, le=1)
    """Share of the new version's answers that may fail."""
    max_slowdown: float = Field(2.0, ge=1, le=1000)
    """How many times as long as the stable version's p99 and median those of the new version may be."""
    min_agreement: float = Field(0.5, ge=0, le=1)
    """Least mean agreement with the stable version on the same snapshots, 0..1; a better model may differ."""
    min_variant_agreement: float = Field(0.9, ge=0, le=1)
    """Least mean agreement of the new version's variants with each other."""
    golden_iou: float = Field(0.7, ge=0, le=1)
    """Least overlap of a box with the one that golden/expected.json says."""
    golden_confidence: float = Field(0.1, ge=0, le=1)
    """Most that a confidence may differ from golden/expected.json."""
    keep: Seconds = 10.0
    """How long the version before stays loaded, so that `models rollback` takes effect at once."""
    give_up: Seconds = 86_400.0
    """A rollout that has not come to a verdict by then, for want of snapshots, is rolled back."""

    @model_validator(mode="before")
    @classmethod
    def _immediate(cls, value: Any) -> Any:
        if value == "immediate":
            return {"shadow": 0, "canary": ()}
        if isinstance(value, str):
            raise ValueError(f"'{value[:40]}' is no rollout; write immediate, or its keys")  # noqa: TRY004
        return value

    @field_validator("canary")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= each <= 100 for each in value) or list(value) != sorted(set(value)):
            raise ValueError("percentages are whole numbers from 1 to 100, each larger than the one before")
        return value
