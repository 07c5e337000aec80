"""Gateways as processes that share one subscription and one model volume, Tritons beside them, and every answer."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import paho.mqtt.client as paho

from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from tests.e2e.site import ANSWERS, Client, RealSite, until
from tests.rollouts.bench import Auditor, Cameras
from tests.rollouts.drops import AT_ONCE, Model

PER_SECOND = 40
QUIET_S = 60.0
"""Longest wait for the answers that are still to come."""


@dataclass
class Tally(Auditor):
    """Every answer, and when it came."""

    at: list[float] = field(default_factory=list)

    def see(self, message: paho.MQTTMessage) -> None:
        """In paho's thread."""
        before = len(self.answers)
        super().see(message)
        if len(self.answers) > before:
            self.at.append(time.time())


@dataclass(frozen=True)
class Account:
    """What became of the snapshots of one stretch of time."""

    sent: int
    lost: int
    """Snapshots without an answer."""
    duplicates: int
    """Answers beyond the first one to a snapshot."""
    errors: tuple[str, ...]
    """The error codes of those that failed."""
    longest_gap_s: float
    """Between two answers, of all cameras together."""
    longest_wait_s: float
    """Of a snapshot from the moment at which it was sent to its answer, a late duplicate among them."""

    def __str__(self) -> str:
        codes = ", ".join(f"{count} {code}" for code, count in Counter(self.errors).items()) or "none"
        return (
            f"sent {self.sent}, lost {self.lost}, duplicates {self.duplicates}, errors {codes}, "
            f"longest gap {self.longest_gap_s:.2f} s, longest wait {self.longest_wait_s:.2f} s"
        )


class Replica(RealSite):
    """One gateway of several: a name, a client id and a session of its own, and the topics of all."""

    def __init__(self, broker: EmbeddedBroker, triton: EmbeddedTriton, unit: str, number: int, **more: str) -> None:
        super().__init__(broker, triton, **more)
        self.unit, self.name = unit, f"gw-{number}"

    def start(self, **environment: str) -> None:
        """Start the process; does not wait."""
        shared = f"$share/{self.unit}/edge-ai/{self.unit}/{{facility}}/{{gateway_id}}/camera/snapshots"
        own = {"GATEWAY_ID": self.name, "AIO_MQTT_CLIENT_ID": f"{self.unit}-{self.name}", "MQTT_INPUT_TOPICS": shared}
        super().start(**{**own, **environment})

    @property
    def is_roller(self) -> bool:
        return self.metric("edge_gateway_roller") == 1

    @property
    def not_ready(self) -> str:
        """Why it is not ready."""
        try:
            return "; ".join(self.get("/ready").json()["reasons"])
        except httpx.HTTPError:
            return ""

    def outstanding(self, endpoint: str) -> float:
        """Requests to one Triton that have no answer yet."""
        return self._of_endpoint("outstanding", endpoint)

    def serves(self, endpoint: str) -> bool:
        """Whether one Triton takes requests of this gateway."""
        return self._of_endpoint("up", endpoint) == 1

    def _of_endpoint(self, what: str, endpoint: str) -> float:
        wanted = f'edge_gateway_triton_endpoint_{what}{{endpoint="{endpoint}"}} '
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))

    def again(self, **environment: str) -> None:
        """Start it again, and wait until it is ready."""
        self.start(**environment)
        self.wait_ready()

    def end(self) -> None:
        """Whatever has become of it."""
        if self._process is not None and self._process.running:
            self._process.stop(10.0)


class Replicas:
    """`count` gateways before these Tritons; cameras send from `begin` to `end`."""

    def __init__(
        self, broker: EmbeddedBroker, tritons: Sequence[EmbeddedTriton], repository: Path, count: int = 3, **more: str
    ) -> None:
        first = RealSite(broker, tritons[0])
        environment = {
            "MODEL_REPOSITORY": str(repository),
            "MODEL_STATE_DIR": str(repository / ".edge-gateway"),
            "TRITON_GRPC_URL": ",".join(triton.grpc_url for triton in tritons),
            "TRITON_METRICS_URL": ",".join(triton.metrics_url for triton in tritons),
            "DROP_QUIET_S": "1",
            **more,
        }
        self._broker = broker
        self._topic = f"edge-ai/{first.unit}/plant/gw/camera/snapshots"
        self.replicas = [Replica(broker, tritons[0], first.unit, number, **environment) for number in range(count)]
        self.tally = Tally()
        self._viewer = Client(broker.port, f"edge-ai/{first.unit}/+/+/ai/#", on_message=self.tally.see)
        self._cameras: Cameras | None = None
        self._counted = 0

    def start(self) -> None:
        """All of them; returns when all are ready."""
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            replica.wait_ready()

    def begin(self, per_second: int = PER_SECOND) -> None:
        """Let the cameras send; returns when some answers have come."""
        self._counted = len(self.tally.answers)
        self._cameras = Cameras(self._broker.port, self._topic, "", per_second)
        self._cameras.start()
        self.more(per_second)

    def more(self, count: int = PER_SECOND) -> None:
        """Wait for so many further answers."""
        least = len(self.tally.answered) + count
        until(lambda: len(self.tally.answered) >= least, f"{count} further answers", QUIET_S)

    def end(self) -> Account:
        """Stop the cameras, wait for what is still to come, and count."""
        cameras = self._cameras
        assert cameras is not None
        cameras.stop()
        self._cameras = None
        with contextlib.suppress(AssertionError):  # the account says how many are missing
            until(lambda: self.tally.answered >= cameras.sent, "the last answers", QUIET_S)
        answers, at = self.tally.answers[self._counted :], self.tally.at[self._counted :]
        return Account(
            sent=len(cameras.sent),
            lost=len(cameras.sent - self.tally.answered),
            duplicates=len(answers) - len({body["result_id"] for body in answers}),
            errors=tuple(body["error"]["code"] for body in answers if body["message_type"] == ANSWERS[1]),
            longest_gap_s=max((after - before for before, after in itertools.pairwise(at)), default=0.0),
            longest_wait_s=max(
                (at - body["timestamp"] / 1000 for at, body in zip(at, answers, strict=True)), default=0.0
            ),
        )

    def roll(self, **environment: str) -> list[str]:
        """Restart one after the other in order, as a StatefulSet does; returns what each said before its end."""
        said = []
        for replica in self.replicas:
            code = replica.process.stop(30.0)
            assert code == 0, replica.process.log_excerpt()
            said.append("\n".join(replica.process.log_tail(50)))
            replica.again(**environment)
        return said

    def kill_each(self) -> None:
        """kill -9 of one after the other; each comes back under its own name."""
        for replica in self.replicas:
            replica.process.kill()
            replica.again()
            self.more()

    def log(self) -> str:
        """What all of them have said."""
        return "\n".join(f"{each.name} {line}" for each in self.replicas for line in each.process.log_tail(5000))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cameras is not None:
            self._cameras.stop()
        for replica in self.replicas:
            replica.end()
        self._viewer.close()


def detector(repository: Path) -> Model:
    """A quick detector, and its first version."""
    model = Model(repository, "detector", ("onnx",))
    model.write_logical(rollout=AT_ONCE)
    model.drop(1)
    return model
