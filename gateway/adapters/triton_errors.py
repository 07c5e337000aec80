"""What Triton and gRPC say, as errors of our own tree; every status has its place, unknown ones too."""

from __future__ import annotations

import re
from collections.abc import Iterable

from grpc import StatusCode  # type: ignore[import-untyped]

from gateway.errors import (
    BackendInvalidResponse,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ModelCrashed,
    ModelUnavailable,
    SnapshotError,
)

REASON_LENGTH = 400
MAX_ANSWER_BYTES = 64 * 2**20
"""Of one answer with all its tensors; gRPC receives no more of it than that, whatever a model makes up."""

# Triton says UNAVAILABLE for three different things; only the text tells them apart (core: infer_request.cc,
# model_repository_manager.cc, dynamic_batch_scheduler.cc, scheduler_utils.cc).
MODEL_NOT_READY = re.compile(r"unknown model|not at ready state|no available versions|not ready", re.IGNORECASE)
QUEUE_REFUSED = re.compile(r"maximum queue size|queue.*(full|reject)|reject.*queue", re.IGNORECASE)
QUEUE_EXPIRED = re.compile(r"timeout expired", re.IGNORECASE)

# A restarted Triton has no regions (core: shared_memory_manager.cc).
REGION_LOST = re.compile(r"shared memory region", re.IGNORECASE)

TOO_LARGE = re.compile(r"received message larger than max", re.IGNORECASE)  # gRPC's own words, on our side

# The process of a Python backend has crashed (python_backend: stub_launcher.cc, python_be.cc).
PROCESS_ENDED = re.compile(r"stub process\b.*\b(not healthy|unhealthy)", re.IGNORECASE | re.DOTALL)

VERSION_REFUSED = re.compile(
    r"version (\d+) is at UNAVAILABLE state: (.*?)(?:;\s*version \d+ is at|;\s*$|$)", re.DOTALL
)

NONE_IN_FOLDER = "at least one version must be available under the version policy"
MISSING_FOLDER = "Put a folder with the version's number and its model file into the model's folder"
UNREADABLE_FOLDER = (
    "Check that the folder is in Triton's model repository and that its config.pbtxt is valid; "
    "Triton's log says what it dislikes"
)
CRASHED = "See Triton's log for why it crashed; the gateway loads the model again"
FIXES = {
    StatusCode.UNAUTHENTICATED: "Check the credentials and certificates that the gateway uses for Triton",
    StatusCode.PERMISSION_DENIED: "Allow this protocol in Triton (--grpc-restricted-protocol) or fix the credentials",
    StatusCode.RESOURCE_EXHAUSTED: "See Triton's log: it lacks memory, or a proxy limits the size of messages",
    StatusCode.UNIMPLEMENTED: "Check that TRITON_GRPC_URL names Triton's gRPC port, not that of another service",
}


class RegionLost(BackendRejected):
    """Triton does not know the shared memory that a request names; it has been restarted, as a rule."""


class RegionKnown(BackendRejected):
    """Triton has registered this shared memory already."""


def process_has_ended(details: str | None) -> bool:
    """Whether Triton says that the process of a model has crashed. It starts none again, and still lists the
    version as ready, whatever it is asked, until that version is unloaded."""
    return bool(PROCESS_ENDED.search(details or ""))


def answer_error(code: StatusCode, details: str | None, *, model: str, connected: bool) -> SnapshotError:
    """Why an inference gave no answer; `connected` tells a slow server from one that cannot be reached."""
    where, text = f"Triton model '{model}'", shorten(details)
    match code:
        case StatusCode.NOT_FOUND:
            return ModelUnavailable(text, where=where)
        case StatusCode.DEADLINE_EXCEEDED if connected:
            return BackendTimeout("Triton did not answer in time", where=where)
        case StatusCode.UNAVAILABLE if MODEL_NOT_READY.search(text):
            return ModelUnavailable(text, where=where)
        case StatusCode.UNAVAILABLE if QUEUE_REFUSED.search(text):
            return BackendRejected(
                f"Triton's queue is full ({text})", where=where, fix="Send fewer frames or raise max_queue_size"
            )
        case StatusCode.UNAVAILABLE if QUEUE_EXPIRED.search(text):
            return BackendTimeout(f"the request expired in Triton's queue ({text})", where=where)
        case StatusCode.UNAVAILABLE | StatusCode.CANCELLED | StatusCode.DEADLINE_EXCEEDED:
            return BackendUnavailable(f"Triton cannot be reached ({text})", where=where)
        case StatusCode.RESOURCE_EXHAUSTED if TOO_LARGE.search(text):
            limit = f"the answer is larger than {MAX_ANSWER_BYTES // 2**20} MiB"
            return BackendInvalidResponse(limit, where=where, fix="Let the model give fewer or smaller outputs")
        case _ if process_has_ended(details):
            return ModelCrashed(f"the process of the model has ended ({text})", where=where, fix=CRASHED)
        case _:
            return BackendRejected(f"{text} ({_name(code)})", where=where, fix=FIXES.get(code, ""))


def region_lost(details: str | None, *, model: str) -> RegionLost | None:
    """The error for a request that names shared memory, where that is what Triton dislikes about it."""
    lost = REGION_LOST.search(details or "")
    return RegionLost(shorten(details), where=f"Triton model '{model}'") if lost else None


def memory_error(code: StatusCode, details: str | None, *, model: str, connected: bool) -> SnapshotError:
    """Why a call about shared memory failed: Triton is away or busy, or it refuses; it is not about one model."""
    text = shorten(details)
    if code in (StatusCode.CANCELLED, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
        return BackendUnavailable(f"Triton cannot be reached ({text})")
    return (RegionKnown if code is StatusCode.ALREADY_EXISTS else BackendRejected)(text)


def memory_refusal(error: BackendRejected, name: str) -> str:
    """Why Triton refuses a segment, without its name, which nobody can guess and which differs each time."""
    reason = re.sub(rf":?\s*'/{re.escape(name)}'", "", error.message)
    return f"Triton refuses it ({reason})"


def model_error(
    code: StatusCode, details: str | None, *, model: str, connected: bool, versions: tuple[int, ...] = ()
) -> SnapshotError:
    """Why a model cannot be loaded, described or counted: Triton is away, or it refuses the model.

    `versions` are those that a load asked for.
    """
    where = f"Triton model '{model}'"
    away = code in (StatusCode.CANCELLED, StatusCode.UNAVAILABLE) and not MODEL_NOT_READY.search(details or "")
    if away or (code is StatusCode.DEADLINE_EXCEEDED and not connected):
        return BackendUnavailable(f"Triton cannot be reached ({shorten(details)})", where=where)
    if code is StatusCode.DEADLINE_EXCEEDED:
        return ModelUnavailable(
            "Triton did not finish in time", where=where, fix="See Triton's log; a first load may build an engine"
        )
    reason, fix = load_refusal(details, versions)
    return ModelUnavailable(reason, where=where, fix=FIXES.get(code, fix))


def readiness_error(code: StatusCode, details: str | None, *, model: str, connected: bool) -> SnapshotError:
    """Why a question about health has no answer; only "no such model" is one, anything else says nothing of it."""
    if code is StatusCode.NOT_FOUND or (code is StatusCode.UNAVAILABLE and MODEL_NOT_READY.search(details or "")):
        return model_error(code, details, model=model, connected=connected)
    reason = "it did not answer in time" if code is StatusCode.DEADLINE_EXCEEDED else shorten(details)
    return BackendUnavailable(
        f"Triton does not say how it is ({reason})", where=f"Triton model '{model}'", fix=FIXES.get(code, "")
    )


def versions_missing(model: str, versions: Iterable[int]) -> ModelUnavailable:
    """The error for versions that Triton did not find; it loads the others and says nothing."""
    return ModelUnavailable(_not_in_folder(versions), where=f"Triton model '{model}'", fix=MISSING_FOLDER)


def load_refusal(details: str | None, versions: tuple[int, ...] = ()) -> tuple[str, str]:
    """Reason and fix from the text with which Triton refuses a load, without tracebacks and temporary words.

    Our own backends write `... Fix: ...`; NVIDIA's give a reason alone.
    """
    text = details or ""
    if "failed to poll" in text:
        return "Triton cannot read the model's folder", UNREADABLE_FOLDER
    if NONE_IN_FOLDER in text:
        return _not_in_folder(versions), MISSING_FOLDER
    refused = VERSION_REFUSED.search(text)
    if refused:
        text = f"version {refused[1]}: {_without_traceback(refused[2])}"
    reason, _, fix = text.partition(". Fix: ")
    return shorten(reason), shorten(fix) if fix else "See Triton's log for the details"


def shorten(details: str | None) -> str:
    """One line of at most 400 characters, without the request id that Triton puts in front."""
    text = re.sub(r"^\[request id: [^\]]*\] ", "", details or "")
    text = " ".join(_without_traceback(text).split()).rstrip(" .;")
    return (text if len(text) <= REASON_LENGTH else f"{text[: REASON_LENGTH - 3]}...") or "no reason given"


def _not_in_folder(versions: Iterable[int]) -> str:
    numbers = ", ".join(str(version) for version in sorted(versions))
    return f"version {numbers}: not in the model's folder" if numbers else "no version of it is in the model's folder"


def _without_traceback(text: str) -> str:
    """What stands before the frames of Python or TorchScript, and without the names of exception classes."""
    text = re.split(r"\n\s*At:\n|\nTraceback |\s*The above operation failed", text, maxsplit=1)[0]
    return re.sub(r"^(Internal|Invalid argument): (?:\w+Error: )?", "", text)


def _name(code: object) -> str:
    return code.name if isinstance(code, StatusCode) else str(code)
