"""The steps of the transaction, in order, under the names that users see."""

from __future__ import annotations

import enum

from gateway.errors import GatewayError


class Step(enum.StrEnum):
    """Where a rollout stands; the names are those of `ai/models`, the API, the metrics and the log."""

    STABLE_ON_DISK = "stable_on_disk"
    """The files have not changed for DROP_QUIET_S, and those of SHA256SUMS, if there is one, are complete."""
    VERIFIED = "verified"
    """Schema, sizes, labels, config.pbtxt, digests and the signature are as they have to be."""
    LOADED = "loaded"
    """Triton has loaded every variant beside the stable version."""
    SIGNATURE = "signature"
    """Inputs, outputs and labels of what is loaded fit model.yaml."""
    WARMED = "warmed"
    """Every batch size that will be sent has been asked once."""
    GOLDEN = "golden"
    """The golden examples give what expected.json says, with every variant."""
    SHADOW = "shadow"
    """Asked about the same snapshots as the stable version, unpublished."""
    CANARY = "canary"
    """Answers some of the cameras."""
    PROMOTED = "promoted"
    """Answers all cameras, and is remembered as the stable version."""
    DRAINED = "drained"
    """The version before is unloaded."""


class Ending(enum.StrEnum):
    """How a rollout came out."""

    UNDER_WAY = "under_way"
    PROMOTED = "promoted"
    REFUSED = "refused"
    """Before it answered any camera."""
    ROLLED_BACK = "rolled_back"
    """After the canary had begun, or by command."""


class StepFailed(GatewayError):
    """A step says no; the reason is for people."""

    def __init__(self, message: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(message, fix=fix, where=where)
