"""What is seen of a new version while it is tried beside the stable one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gateway.messages import VariantResult


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What one snapshot showed: the results by variant of each version that was asked, their errors among them.

    `stable` is empty when only the candidate was asked, `candidate` when only the stable version was. Results are as
    published: filtered, renamed, in pixels of the picture. What is the fault of the picture, or of a Triton that is
    away, is no observation.
    """

    device_id: str
    candidate: Mapping[str, VariantResult] = field(default_factory=dict)
    stable: Mapping[str, VariantResult] = field(default_factory=dict)
    published_by_candidate: bool = False


class Jury(Protocol):
    """Who judges a candidate by what the flow sees of it; cheap calls on the event loop."""

    @property
    def wants_pairs(self) -> bool:
        """Whether further snapshots should be asked of both versions, one at a time."""
        ...

    def saw(self, observation: Observation) -> None:
        """Take one observation in."""
        ...
