"""The one tree of errors: each says what went wrong, where, and how to fix it.

GatewayError
├── UserError                    exit code 2 on the command line, one line, no traceback
│   ├── ConfigError              a setting, gateway.yaml or a model.yaml
│   └── StackError               the embedded broker or Triton
├── BrokerError
│   ├── BrokerUnavailable        no session with the broker
│   └── PublishRefused           the broker said no to a publish or a subscription
└── SnapshotError                becomes the error message of one snapshot; has a stable code and an outcome
    ├── PayloadTooLarge  PayloadInvalid  ImageUndecodable  ImageTooLarge
    ├── ModelUnknown  VariantUnknown
    ├── QueueFull  RateLimited  DeadlineExceeded
    ├── ModelUnavailable  BackendUnavailable  BackendTimeout  BackendRejected  BackendInvalidResponse
    └── InternalError
"""

from __future__ import annotations

import enum
from typing import ClassVar, Self


class Outcome(enum.StrEnum):
    """What became of a snapshot; every received one gets exactly one of these."""

    PUBLISHED = "published"
    WINDOWED = "windowed"
    """A reading that has joined a window whose turn has not come."""
    DROPPED_STALE = "dropped_stale"
    DROPPED_FULL = "dropped_full"
    DROPPED_LIMITED = "dropped_limited"
    """Beyond the rate that its device or topic may send."""
    REJECTED = "rejected"
    FAILED = "failed"
    ABANDONED = "abandoned"


DROPPED = (Outcome.DROPPED_FULL, Outcome.DROPPED_STALE, Outcome.DROPPED_LIMITED)
"""Nobody was at fault: more came than could be answered."""


class GatewayError(Exception):
    """Something went wrong that a person can act on."""

    def __init__(self, message: str, *, fix: str, where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}. {self.fix}" if self.fix else f"{place}{self.message}"


class UserError(GatewayError):
    """The command or the configuration cannot work as given."""


class ConfigError(UserError):
    """A setting, gateway.yaml or a model.yaml is wrong."""


class StackError(UserError):
    """The embedded broker or Triton cannot be started."""


class CommandRefused(UserError):
    """A command to a model cannot be carried out now.

    `code` is stable: MODEL_UNKNOWN, VERSION_UNKNOWN, NOT_THE_ROLLER, NOTHING_TO_DO, COMMAND_INVALID, UNAUTHORIZED,
    TOO_MANY_FAILURES, REQUEST_TIMEOUT, PAYLOAD_TOO_LARGE or COMMAND_FAILED.
    """

    def __init__(self, code: str, message: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(message, fix=fix, where=where)
        self.code = code


class BrokerError(GatewayError):
    """The broker cannot do what was asked."""


class BrokerUnavailable(BrokerError):
    """There is no session with the broker now."""


class PublishRefused(BrokerError):
    """The broker answered a publish or a subscription with a refusal."""


class SnapshotError(GatewayError):
    """One snapshot cannot be answered with a result; becomes its error message.

    `code` is stable and documented in docs/errors.md; `retryable` says whether sending the same
    snapshot again can succeed.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    outcome: ClassVar[Outcome] = Outcome.FAILED
    retryable: ClassVar[bool] = False
    default_fix: ClassVar[str] = ""
    logged: bool = False
    """Whether the log has it already, with its traceback."""

    def __init__(self, message: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(message, fix=fix or self.default_fix, where=where)

    def forget_frames(self) -> Self:
        """Let go of where it was raised: by its traceback an error that is kept keeps all that those frames held.

        That is the payload, the picture and its tensors. It must not be raised again while it is kept.
        """
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def copy(self) -> Self:
        """The same error without where it was raised, for those who keep it while it travels on or is raised."""
        copied = type(self).__new__(type(self), *self.args)
        copied.__dict__.update(self.__dict__)
        return copied


class PayloadTooLarge(SnapshotError):
    """The message is larger than MAX_PAYLOAD_BYTES, or has too many MQTT properties or too long ones."""

    code = "PAYLOAD_TOO_LARGE"
    outcome = Outcome.REJECTED
    default_fix = "Send a smaller or more compressed picture, or raise MAX_PAYLOAD_BYTES"


class PayloadInvalid(SnapshotError):
    """The message is neither a snapshot or reading in JSON, nor a picture, nor a number, or a field is impossible."""

    code = "PAYLOAD_INVALID"
    outcome = Outcome.REJECTED
    default_fix = (
        'Send the bytes of a picture, or JSON such as {"device_id": "cam-1", "timestamp": 1697385600, '
        '"image_data": "<base64>"}; a sensor sends {"sensor_id": "t-1", "timestamp": 1697385600, "values": [21.5]}'
    )


class ImageUndecodable(SnapshotError):
    """The picture is damaged, truncated or of a format that is not read."""

    code = "IMAGE_UNDECODABLE"
    outcome = Outcome.REJECTED
    default_fix = "Send a complete JPEG, PNG, WebP, BMP or TIFF; check that the camera or connector does not cut it off"


class ImageTooLarge(SnapshotError):
    """The picture has more pixels than MAX_IMAGE_PIXELS; seen in its header, before decoding."""

    code = "IMAGE_TOO_LARGE"
    outcome = Outcome.REJECTED
    default_fix = "Send a picture of fewer pixels, or raise MAX_IMAGE_PIXELS"


class ModelUnknown(SnapshotError):
    """The snapshot asks for a model that is not in the repository, or no model takes its topic."""

    code = "MODEL_UNKNOWN"
    outcome = Outcome.REJECTED
    default_fix = "Use the name of a folder in MODEL_REPOSITORY that has a model.yaml"


class VariantUnknown(SnapshotError):
    """The snapshot prefers a variant which the model does not have."""

    code = "VARIANT_UNKNOWN"
    outcome = Outcome.REJECTED
    default_fix = "Use one of the model's variants, or 'dual', as backend_preference"


class QueueFull(SnapshotError):
    """The snapshot had to make room in the queue for a fresher or more important one."""

    code = "QUEUE_FULL"
    outcome = Outcome.DROPPED_FULL
    retryable = True
    default_fix = "Send fewer frames, give Triton more capacity, or raise QUEUE_MAX_MESSAGES and QUEUE_MAX_BYTES"


class RateLimited(SnapshotError):
    """The device or the topic sends more than RATE_LIMIT_PER_DEVICE or RATE_LIMIT_PER_TOPIC lets it."""

    code = "RATE_LIMITED"
    outcome = Outcome.DROPPED_LIMITED
    retryable = True
    default_fix = "Send fewer frames, or raise RATE_LIMIT_PER_DEVICE or RATE_LIMIT_PER_TOPIC"


class DeadlineExceeded(SnapshotError):
    """The snapshot's time ran out in the queue; nobody waits for its answer any more."""

    code = "DEADLINE_EXCEEDED"
    outcome = Outcome.DROPPED_STALE
    retryable = True
    default_fix = "Send fewer frames, give Triton more capacity, or allow a longer deadline_ms"


class ModelUnavailable(SnapshotError):
    """The model is known but Triton does not serve it now."""

    code = "MODEL_UNAVAILABLE"
    retryable = True
    default_fix = "See /ready and the gateway's log for why the model is not loaded"


class ModelCrashed(ModelUnavailable):
    """The process of the model has ended at Triton, which is the model's own doing."""


class BackendUnavailable(SnapshotError):
    """Triton cannot be reached."""

    code = "BACKEND_UNAVAILABLE"
    retryable = True
    default_fix = "Check that Triton runs and that TRITON_GRPC_URL names it"


class BackendTimeout(SnapshotError):
    """Triton did not answer within the time that the snapshot had left."""

    code = "DEADLINE_EXCEEDED"
    retryable = True
    default_fix = "Give Triton more capacity, or allow a longer deadline_ms or INFER_TIMEOUT_MS"


class BackendRejected(SnapshotError):
    """Triton refused the request or the model failed on it."""

    code = "BACKEND_REJECTED"
    default_fix = "See Triton's log; check that model.yaml fits the model"


class BackendInvalidResponse(SnapshotError):
    """A variant answered with something that its model.yaml does not announce."""

    code = "BACKEND_INVALID_RESPONSE"
    default_fix = "Check that inference.output and labels in model.yaml fit the model"


class InternalError(SnapshotError):
    """A defect of the gateway; the log has the traceback under the same result_id."""

    code = "INTERNAL_ERROR"
    default_fix = "Report it with the log line that has this result_id"
