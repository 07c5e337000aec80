"""The two ports: what the flow needs of a broker and of an inference server, and nothing more.

`gateway.adapters` implements them with paho and tritonclient, `gateway.testing` in memory; the same contract
tests (tests/contract/) hold both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gateway.errors import GatewayError
from gateway.messages import (
    InferRequest,
    InferResponse,
    Message,
    ModelSignature,
    Publication,
)

if TYPE_CHECKING:  # the front of several workers has no numpy, and saves its memory
    import numpy as np
    from numpy.typing import NDArray

    from gateway.traces import Span

WAITING_BYTES = 2048
"""What a publication costs while it waits, beside its own bytes."""
MAX_PROPERTIES = 64
"""MQTT 5 properties, user properties among them, of a message that is taken in; one with more is oversize."""
MAX_PROPERTIES_BYTES = 8192
"""Bytes of them on the wire; one with more is oversize."""


def held_by(publication: Publication) -> int:
    """Bytes of memory that a publication holds while it waits for the broker."""
    pairs = sum(map(len, chain.from_iterable(publication.user_properties)))
    texts = len(publication.topic) + len(publication.correlation_data or b"") + pairs
    return len(publication.payload) + texts + WAITING_BYTES


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory of one GPU in bytes."""

    used: int
    total: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Totals since the model was loaded, as Triton counts them; `memory_bytes` where it reports it."""

    success_count: int
    queue_ns: int
    compute_ns: int
    memory_bytes: int | None = None
    last_inference_at: float | None = None
    """Seconds since 1970 by Triton's clock; None when it has not been asked."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How one of several servers stands that answer together; `reason` says why it takes no requests, or not all."""

    address: str
    state: Literal["in service", "catching up", "away"]
    reason: str = ""


class Broker(Protocol):
    """One session with an MQTT broker, at least once in both directions.

    Subscriptions, the last will and the credentials are given to the constructor of the implementation.
    """

    @property
    def connected(self) -> bool:
        """True while the session is up and every subscription has been granted."""
        ...

    @property
    def trouble(self) -> str:
        """Why the session is not up, as far as is known; empty while it is."""
        ...

    @property
    def backlog(self) -> int:
        """Bytes of what waits for the broker in this process's memory alone, as `held_by` counts them."""
        ...

    async def run(self) -> None:
        """Keep the session up, connecting again with jittered back-off, until `close`; raises only what is final."""
        ...

    def sessions(self) -> AsyncIterator[bool]:
        """Yield the state of the session now and at each change: True up and subscribed, False lost."""
        ...

    def messages(self) -> AsyncIterator[Message]:
        """Yield messages as they arrive, until `close`; none is acknowledged by itself."""
        ...

    def awaits(self, message: Message) -> bool:
        """Whether a QoS 1 message can still be acknowledged; by its `delivery`, as `acknowledge` goes.

        False once it is done or its connection is gone, for ever: what the broker sends again is another delivery.
        """
        ...

    def acknowledge(self, message: Message) -> None:
        """Acknowledge a QoS 1 message; without effect if its connection is gone (the broker sends it again)."""
        ...

    async def publish(self, publication: Publication) -> None:
        """Return when the broker has acknowledged (QoS 0: when it is sent); wait out a lost connection.

        Where too much waits already, it waits for room before; nothing is refused for that.

        Raises PublishRefused when the broker refuses it or it exceeds the broker's maximum packet size.
        """
        ...

    async def leave_groups(self) -> None:
        """End every subscription with `$share/` in front, for good: others of the group get what comes from now on.

        Waits for a session, and returns when the broker has confirmed it, or when `run` has ended. Given up before, it
        is done by the next session all the same. What the broker holds for this client already still comes.
        """
        ...

    @property
    def dealt_at(self) -> float:
        """When the last message of a group came that has been left, by its `received_at`; 0.0 before the first one."""
        ...

    async def close(self) -> None:
        """Disconnect in order, so that the last will is not sent; end `run`, `messages` and `sessions`.

        A publish that still waits raises BrokerUnavailable. Messages not acknowledged stay with the broker.
        """
        ...


class InferenceServer(Protocol):
    """An inference server with a model repository; all methods have a time limit of their own."""

    @property
    def trouble(self) -> GatewayError | None:
        """Why the server cannot be reached, where more is known than that, such as a certificate that has expired."""
        ...

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """How each of several servers behind this one port stands; () where it is one."""
        ...

    async def is_ready(self) -> bool:
        """True when the server answers within about 2 s that it is live; never raises."""
        ...

    async def serving(self, model: str) -> tuple[int, ...]:
        """The versions of the model that answer now, the lowest first; () when none does.

        Raises BackendUnavailable when the server says nothing within about 2 s, which is not the same as ().
        """
        ...

    async def load(self, model: str, versions: tuple[int, ...] = (), config: str | None = None) -> None:
        """Load, so that exactly these versions of the model serve; what serves already goes on without a break.

        `config` is the text of a config.pbtxt that holds in place of the one in the repository; None: there is
        none, the server fills it in. Without versions the server's own rules hold, and its own config.pbtxt.
        All or nothing: when one version cannot be loaded, the ones before keep serving. Raises BackendUnavailable
        when the server cannot be reached, ModelUnavailable with the server's reason when it refuses the model,
        ConfigError when `config` cannot be read.
        """
        ...

    async def unload(self, model: str) -> None:
        """Unload all versions; returns when none takes new requests. Raises as `load` does; a model that is not
        loaded is no error."""
        ...

    async def describe(self, model: str, version: int = 0) -> ModelSignature:
        """The signature of that version, 0: of the highest that serves; raises as `load` does."""
        ...

    async def gpu_memory(self) -> GpuMemory | None:
        """Of the GPU with the most free memory; None where there is no GPU or the server does not say. Never raises."""
        ...

    def tensor(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Memory for one input tensor (contents undefined), where the server can read it if that is possible at all.

        For `infer`, and free again when nobody holds the array or a part of it. May be called in threads; what cannot
        be shared is ordinary memory, never an error.
        """
        ...

    async def infer(self, request: InferRequest) -> InferResponse:
        """Ask one model.

        Raises BackendUnavailable (not reachable), ModelUnavailable (not loaded), BackendTimeout,
        BackendRejected (the request or the model failed), BackendInvalidResponse (unreadable answer).
        """
        ...

    async def statistics(self, model: str) -> ModelStatistics:
        """Totals of all versions of the model since they were loaded; raises as `load` does."""
        ...

    async def close(self) -> None:
        """Free the connection."""
        ...


class SpanSink(Protocol):
    """Where finished spans go."""

    def take(self, spans: Sequence[Span]) -> None:
        """Take the spans of one trace; never waits and never raises: what is too much is dropped and counted."""
        ...

    async def close(self) -> None:
        """Send what is there, within a few seconds; what cannot be sent by then is dropped."""
        ...
