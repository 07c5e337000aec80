"""What is remembered of a model on the volume: the stable version, the one before, and where a rollout stands.

One JSON file a model in MODEL_STATE_DIR, replaced as a whole, and beside it the small files of each release that may
serve again: model.yaml, labels, golden examples, config.pbtxt and the signature, laid out as in the repository.
"""

from __future__ import annotations

import msgspec

from gateway.rollout.steps import Ending, Step


class StepRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step that is done."""

    step: Step
    seconds: float
    note: str = ""
    """What it found, or why it was left out; in one line for people."""


class RolloutRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rollout under way, or the last one."""

    version: int
    step: Step
    started_at: float
    """Seconds since 1970, as all times here."""
    ending: Ending = Ending.UNDER_WAY
    steps: tuple[StepRecord, ...] = ()
    percent: int = 0
    """Of the cameras that the candidate was to answer in the canary step that stands."""
    share: float = 0.0
    """Of the hash range 0..1 of cameras that the candidate answers; at least one camera's."""
    progress: str = ""
    """How far the step is, in one line for people."""
    reason: str = ""
    """Why it was refused or rolled back."""
    fix: str = ""
    ended_at: float | None = None
    attempts: int = 1
    """How often it was begun; a gateway that was killed in the middle begins again."""
    weights: dict[str, str] = {}
    """SHA-256 of the files that Triton loads by path, once they are verified."""
    plain: bool = False
    """Without shadow and canary: there is nothing to compare with, or a command said so."""


class ReleaseRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version that serves, or served last."""

    version: int
    digests: dict[str, str]
    """SHA-256 of each file by its path in the repository."""
    stamps: dict[str, tuple[int, int, int, int]]
    """mtime_ns, ctime_ns, inode and size of each file: while they are the same it is not read again."""
    placements: dict[str, tuple[str, int]]
    """Triton model and version of each variant that it brings."""
    promoted_at: float = 0.0


class RefusalRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version that is not to serve."""

    version: int
    step: Step
    reason: str
    fix: str
    at: float
    digest: str = ""
    """Of all its files together; another one at the same version is another drop. Empty: worth another look anyway."""
    weights: dict[str, str] = {}
    """SHA-256 of the files that Triton had loaded; other ones need another number. Empty: it never had."""
    commanded: bool = False
    """A person does not want it, whatever becomes of the files beside its weights."""


class ModelState(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that is remembered of one logical model."""

    model: str
    stable: ReleaseRecord | None = None
    previous: ReleaseRecord | None = None
    rollout: RolloutRecord | None = None
    refused: tuple[RefusalRecord, ...] = ()
    """The newest first; a few are kept."""
    floor: int = 0
    """No version up to this one is tried by itself: a person went back behind it."""
    unloaded: bool = False
    """Taken out of service by command."""
    roller: str = ""
    """The gateway that wrote this."""
    written_at: float = 0.0
