"""One version of a logical model with all that is needed to serve it, and to serve it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.models.repository import LogicalModel


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one variant of a release lies at Triton; version 0: whichever Triton serves, for nobody here sees it."""

    triton_model: str
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """One version of a logical model; version 0 where its Triton folders cannot be seen from here."""

    version: int
    model: LogicalModel
    placements: Mapping[str, Placement]
    """Of the variants that this version brings."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why it does not bring the others, by variant."""
    configs: Mapping[str, str] = field(default_factory=dict)
    """The text of config.pbtxt by Triton model, as it was when the release was verified; none: Triton fills it in."""
    file_bytes: int = 0
    """Of the model files of its variants; 0 where that is not known."""

    @property
    def name(self) -> str:
        """The name of the logical model."""
        return self.model.spec.name
