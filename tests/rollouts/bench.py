"""A gateway as a process between real parts, cameras that never pause, and an auditor who has seen every answer."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import paho.mqtt.client as paho
import pybase64
from paho.mqtt.enums import CallbackAPIVersion

from gateway.local.broker import EmbeddedBroker
from gateway.local.tritonserver import EmbeddedTriton
from tests.e2e.site import ANSWERS, Client, RealSite, until
from tests.rollouts import detectors
from tests.rollouts.drops import Model

CAMERAS = 5
PER_SECOND = 50
TIMEOUT_S = 90.0
TOKEN = "of-the-test"

Key = tuple[str, int]
"""A camera, and the number of its snapshot."""


def wait(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT_S) -> None:
    """Poll a condition; fails after the deadline, saying what was waited for."""
    until(condition, what, timeout)


class TritonView:
    """What Triton itself says, asked past the gateway."""

    def __init__(self, triton: EmbeddedTriton) -> None:
        self._triton = triton

    def loaded(self) -> dict[str, tuple[int, ...]]:
        """The versions of each Triton model that are ready or on their way."""
        found: dict[str, list[int]] = {}
        for entry in self._post("/v2/repository/index").json():
            if entry.get("state") not in (None, "UNAVAILABLE"):
                found.setdefault(entry["name"], []).append(int(entry["version"]))
        return {name: tuple(sorted(versions)) for name, versions in found.items()}

    def load(self, name: str) -> None:
        """As somebody else would, without any override."""
        self._post(f"/v2/repository/models/{name}/load")

    def load_versions(self, name: str, config: dict[str, Any], *versions: int) -> None:
        """As somebody else would, with a configuration of his own."""
        text = json.dumps({**config, "version_policy": {"specific": {"versions": list(versions)}}})
        self._post(f"/v2/repository/models/{name}/load", {"parameters": {"config": text}})

    def config(self, name: str) -> dict[str, Any]:
        """The configuration that Triton has loaded."""
        answer = httpx.get(f"{self._triton.http_url}/v2/models/{name}/config", timeout=TIMEOUT_S, trust_env=False)
        return dict(answer.raise_for_status().json())

    def unload(self, name: str) -> None:
        """As somebody else would."""
        self._post(f"/v2/repository/models/{name}/unload")

    def _post(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        url = f"{self._triton.http_url}{path}"
        return httpx.post(url, json=body or {}, timeout=TIMEOUT_S, trust_env=False).raise_for_status()


@dataclass
class Auditor:
    """Every answer and every word on `ai/models`, in the order in which they came."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)
    """Topics of which the retained message was taken away."""
    answered: set[Key] = field(default_factory=set)

    def see(self, message: paho.MQTTMessage) -> None:
        """In paho's thread."""
        if not message.payload:
            self.cleared.append(message.topic)
            return
        body = json.loads(message.payload)
        if body["message_type"] in ANSWERS:
            self.answers.append(body)
            self.answered.add((body["device_id"], body["timestamp"]))
        elif body["message_type"] == "ai_model":
            self.reports.append(body)

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The snapshots that failed."""
        return [body for body in self.answers if body["message_type"] == "ai_inference_error"]

    def versions(self, model: str) -> dict[str, list[str]]:
        """By camera the versions that answered, each time another one came."""
        found: dict[str, list[str]] = {}
        for body in self.answers:
            if body["message_type"] == "ai_inference_result" and body["model_name"] == model:
                seen = found.setdefault(body["device_id"], [])
                if not seen or seen[-1] != body["model_version"]:
                    seen.append(body["model_version"])
        return found


class Cameras:
    """Some cameras that send snapshots at QoS 1, each with a picture of its own."""

    def __init__(self, port: int, topic: str, model: str, per_second: int) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.max_queued_messages_set(0)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._topic = topic
        self._model = model
        self._per_second = per_second
        self._pictures = [pybase64.b64encode_as_string(_picture(number)) for number in range(CAMERAS)]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._send, name="cameras")
        self._published: list[paho.MQTTMessageInfo] = []
        self.sent: set[Key] = set()

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End, with all that was sent at the broker."""
        if not self._end.is_set():
            self._end.set()
            self._thread.join()
            for info in self._published:
                info.wait_for_publish(TIMEOUT_S)
            self._client.disconnect()
            self._client.loop_stop()

    def _send(self) -> None:
        started, first, number = time.monotonic(), int(time.time() * 1000), 0
        while not self._end.wait(max(0.0, started + number / self._per_second - time.monotonic())):
            camera = number % CAMERAS
            key = (f"camera-{camera}", first + number * 1000 // self._per_second)
            body = {"device_id": key[0], "timestamp": key[1], "image_data": self._pictures[camera]}
            if self._model:
                body["model_name"] = self._model
            self.sent.add(key)
            self._published.append(self._client.publish(self._topic, json.dumps(body), qos=1))
            number += 1


def _picture(camera: int) -> bytes:
    """Each camera sees something else."""
    return detectors.picture(*((210 + camera, 30, 40) if camera % 2 else (30, 210 + camera, 40)))


class Bench:
    """One site; `start` with a repository that is filled. Cameras run from `watch` to `audit`.

    One `beside` another shares its models and what is remembered of them, and has cameras and a broker's session of its
    own.
    """

    def __init__(
        self,
        broker: EmbeddedBroker,
        folder: Path,
        *,
        triton: EmbeddedTriton | None = None,
        beside: Bench | None = None,
        launcher: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.broker = broker
        self.folder = folder
        self.repository: Path = beside.repository if beside else folder / "repository"
        self.state_dir: Path = beside.state_dir if beside else folder / "state"
        self.repository.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = environment
        self._given_triton = triton
        self._launcher = tuple(launcher)
        self._stack = ExitStack()
        self._cameras: list[Cameras] = []
        self._ended: set[float] = set()
        """When the rollouts began whose end was waited for."""
        self.auditor = Auditor()

    def model(self, name: str = "detector", *variants: str) -> Model:
        """A model of this repository."""
        return Model(self.repository, name, variants or ("onnx",))

    def start(self) -> Self:
        """Triton, the gateway and the auditor; returns when the gateway is ready."""
        token = self.folder / "token"
        token.write_text(TOKEN)
        self.triton = self._given_triton or self._stack.enter_context(EmbeddedTriton(self.repository))
        self.view = TritonView(self.triton)
        self.site = RealSite(
            self.broker,
            self.triton,
            **{
                "MODEL_REPOSITORY": str(self.repository),
                "MODEL_STATE_DIR": str(self.state_dir),
                "DROP_QUIET_S": "1",
                "API_TOKEN_FILE": str(token),
                # What waits for a load, or for the gateway itself, is answered late rather than dropped.
                "QUEUE_MAX_MESSAGES": "5000",
                "SNAPSHOT_DEADLINE_MS": "60000",
                **self._environment,
            },
        )
        self.site.launcher = self._launcher
        self._viewer = Client(self.broker.port, f"edge-ai/{self.site.unit}/+/+/ai/#", on_message=self.auditor.see)
        self._stack.callback(self._viewer.close)
        self._stack.callback(self._stop_gateway)
        self._stack.callback(self._stop_cameras)
        self.site.start()
        self.site.wait_ready()
        return self

    def _stop_gateway(self) -> None:
        if self.site.process.running:
            self.site.process.stop(10.0)

    def _stop_cameras(self) -> None:
        for cameras in self._cameras:
            cameras.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "site"):  # pytest shows it of tests that fail
            print("\n".join(line[:600] for line in self.log().splitlines() if "No result" not in line))
            print(json.dumps(self.auditor.reports[-1:], indent=1))
        self._stack.close()

    # --- snapshots ----------------------------------------------------------------------------------

    def watch(self, model: str = "", per_second: int = PER_SECOND) -> None:
        """Let the cameras run; returns when each has its first answer."""
        cameras = Cameras(self.broker.port, self.site.topic, model, per_second)
        before = len(self.auditor.answered)
        self._cameras.append(cameras)
        cameras.start()
        wait(lambda: len(self.auditor.answered) > before + CAMERAS, "the first answers")

    def more(self, count: int = PER_SECOND // 2) -> None:
        """Return when so many further snapshots have been answered."""
        least = len(self.auditor.answered) + count
        wait(lambda: len(self.auditor.answered) >= least, f"{count} further answers")

    def audit(self) -> None:
        """Stop the cameras; fails unless every snapshot has been answered, and none by an error."""
        self._stop_cameras()
        sent = set[Key]().union(*(cameras.sent for cameras in self._cameras))
        try:
            wait(lambda: self.auditor.answered >= sent, f"an answer to each of {len(sent)} snapshots")
        except AssertionError as error:
            missing = sorted(sent - self.auditor.answered)
            raise AssertionError(f"{error}: {len(missing)} have none, such as {missing[:3]}") from None
        errors = [body["error"] for body in self.auditor.errors]
        assert not errors, f"{len(errors)} errors, such as {errors[:3]}"

    def changes_once(self, model: Model, *versions: int) -> None:
        """Every camera has been answered by these versions, one after the other, and never by one before again."""
        seen = self.auditor.versions(model.name)
        assert len(seen) == CAMERAS
        assert all(each == [str(version) for version in versions] for each in seen.values()), seen

    # --- models -------------------------------------------------------------------------------------

    def report(self, model: Model) -> dict[str, Any]:
        """What the API says of a model."""
        return dict(self.site.get(f"/api/models/{model.name}").json())

    def rollout(self, model: Model) -> dict[str, Any]:
        """The rollout that `ai/models` told of last; empty when none was told of."""
        reports = [each for each in self.auditor.reports if each["model_name"] == model.name]
        return (reports[-1]["rollout"] if reports else None) or {}

    def reaches(self, model: Model, version: int, *steps: str) -> None:
        """Wait until a rollout is at one of these steps."""

        def is_there() -> bool:
            rollout = self.rollout(model)
            assert rollout.get("version") != version or rollout["ending"] == "under_way", rollout
            return rollout.get("version") == version and rollout["step"] in steps

        wait(is_there, f"{model.name} {version} at {steps}")

    def is_at(self, model: Model, version: int, step: str) -> bool:
        """Whether a rollout stands at that step, or its ending."""
        rollout = self.rollout(model)
        return rollout.get("version") == version and rollout["step"] == step

    def has_begun(self, model: Model, attempt: int) -> bool:
        """Whether a rollout has been begun so often, as is remembered before anything else is done."""
        state = json.loads((self.state_dir / f"{model.name}.json").read_bytes())
        rollout = state.get("rollout")
        return rollout is not None and rollout.get("attempts", 1) == attempt

    def ended(self, model: Model, version: int) -> dict[str, Any]:
        """Wait until a rollout of a version has ended, another one each time; returns it as `ai/models` told of it."""

        def is_over() -> bool:
            rollout = self.rollout(model)
            new = rollout.get("started_at") not in self._ended
            return new and rollout.get("version") == version and rollout["ended_at"] is not None

        try:
            wait(is_over, f"the end of the rollout of {model.name} {version}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the last one: {self.rollout(model)}") from None
        self._ended.add(self.rollout(model)["started_at"])
        return self.rollout(model)

    def is_promoted(self, model: Model, version: int) -> None:
        """Wait until a version serves and its rollout is over."""
        rollout = self.ended(model, version)
        assert rollout["ending"] == "promoted", rollout

    def is_refused(self, model: Model, version: int, *words: str, step: str = "", stable: int = 1) -> dict[str, Any]:
        """Wait until a version is refused; the reason has these words, on the topic and in the API."""
        rollout = self.ended(model, version)
        assert rollout["ending"] in ("refused", "rolled_back"), rollout
        said = f"{rollout['reason']} {rollout['fix']}"
        assert all(re.search(word, said) for word in words), f"{said!r} lacks one of {words}"
        assert not step or rollout["step"] == step, rollout
        report = self.report(model)
        assert report["version"] == stable
        assert report["rollout"]["reason"] == rollout["reason"]
        assert version in [each["version"] for each in report["refused"]]
        wait(lambda: self.loads_only(model, stable), f"Triton without version {version}: {self.view.loaded()}")
        return rollout

    def loads_only(self, model: Model, *versions: int, variants: Sequence[str] = ()) -> bool:
        """Whether Triton has these versions of each variant of a model, and no other."""
        loaded = self.view.loaded()
        return all(loaded.get(model.triton_model(variant), ()) == versions for variant in variants or model.variants)

    def command(self, model: Model, action: str, version: int | None = None) -> httpx.Response:
        """Give a command over HTTP."""
        return httpx.post(
            f"http://127.0.0.1:{self.site.http_port}/api/models/{model.name}/{action}",
            json={} if version is None else {"version": version},
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    def log(self) -> str:
        """All that the gateway has said that is still kept."""
        return "\n".join(self.site.process.log_tail(5000))

    def kill_gateway(self) -> None:
        """As if the machine had lost power, but for the volume."""
        self.site.process.kill()

    def restart_gateway(self) -> None:
        """After a kill; the same client id, so that the broker has kept what came meanwhile."""
        self.auditor.reports.clear()
        self.site.start()
        self.site.wait_ready()


def steps_of(bench: Bench, model: Model) -> Iterator[str]:
    """The steps of the rollouts of a model as they were told of, each time another one came."""
    last = ""
    for report in bench.auditor.reports:
        if report["model_name"] == model.name and report["rollout"] and report["rollout"]["step"] != last:
            last = report["rollout"]["step"]
            yield last
