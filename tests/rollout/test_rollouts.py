"""Drops from their files to their ending, in a whole gateway on the in-memory broker and Triton."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.commands import serve
from gateway.errors import BackendRejected, CommandRefused
from gateway.models import loader as loader_module
from gateway.models.catalog import State
from gateway.rollout import roller as roller_module
from gateway.rollout import transaction as transaction_module
from gateway.rollout.commands import Action, Command
from gateway.rollout.state import ModelState
from gateway.rollout.steps import Ending, Step
from gateway.rollout.store import StateNotKept, StateStore
from gateway.rollout.verify import Checks
from gateway.testing import MemoryTriton
from tests.flow.builders import jpeg, settings, signature, snapshot_json
from tests.front_door import run_here
from tests.harness import HELMET, NO_HELMET, Site, sees, site, until, write_model
from tests.model_signers import write_key

JPEG = jpeg()
VARIANTS = ("detector-onnx", "detector-torch")
QUICK = {"shadow": 4, "canary": [30, 60], "hold": 0, "min_samples": 3, "keep": 0}
CAMERAS = tuple(f"camera-{number}" for number in range(5))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own intervals, only shorter."""
    monkeypatch.setattr(loader_module, "CHECK_INTERVAL_S", 0.05)
    monkeypatch.setattr(loader_module, "STRANGE_FOR_S", 0.6)
    monkeypatch.setattr(roller_module, "FOLLOW_INTERVAL_S", 0.1)
    monkeypatch.setattr(transaction_module, "FOLLOWERS_S", 0.3)


class LastingTriton(MemoryTriton):
    """One that goes on when a gateway has hung up."""

    async def close(self) -> None:
        """The connection of one gateway is nothing to the others."""


@dataclass
class Shop:
    """A repository and a Triton on it; `drop` puts a version into both."""

    repository: Path
    triton: MemoryTriton = field(default_factory=LastingTriton)

    def model(self, name: str = "detector", rollout: Any = None, **more: Any) -> Path:
        return write_model(self.repository, name, rollout=rollout or QUICK, **more)

    def drop(self, version: int, sight: Any = HELMET, *, weights: str = "", variants: Any = VARIANTS) -> None:
        for name in variants:
            self.triton.add_model(signature(name, version=str(version)), sees(sight))
        for name in variants:
            folder = self.repository / name / str(version)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.onnx").write_text(weights or f"{name} {version}")

    @contextlib.asynccontextmanager
    async def open(self, **environment: Any) -> AsyncIterator[Counter]:
        """A gateway on it with five cameras that send all the time."""
        async with site(self.repository, triton=self.triton, drop_quiet_s=0.15, **environment) as place:
            counter = Counter(self, place)
            sending = asyncio.create_task(counter.send())
            try:
                yield counter
            finally:
                sending.cancel()
                await asyncio.wait([sending])
            await until(lambda: len(place.results) + len(place.errors) >= counter.sent, "the last answers")


@dataclass
class Counter:
    """What a customer of the shop sees."""

    shop: Shop
    place: Site
    sent: int = 0

    async def send(self) -> None:
        for number in itertools.count():
            camera = CAMERAS[number % len(CAMERAS)]
            self.place.snapshot(snapshot_json(JPEG, device_id=camera, timestamp=number))
            self.sent += 1
            await asyncio.sleep(0.01)

    @property
    def state(self) -> ModelState:
        return self.place.gateway.rollouts.states["detector"]

    @property
    def version(self) -> int:
        return self.place.gateway.models.current.models["detector"].version

    async def ended(self, version: int, ending: Ending) -> ModelState:
        """Wait until the rollout of that version has come out so."""

        def so() -> bool:
            rollout = self.state.rollout
            return bool(rollout and (rollout.version, rollout.ending) == (version, ending) and rollout.ended_at)

        await until(so, f"version {version} {ending}: {self.state.rollout} {self.state.refused}")
        return self.state

    async def at(self, version: int, step: Step) -> None:
        def there() -> bool:
            rollout = self.state.rollout
            return bool(rollout and (rollout.version, rollout.step) == (version, step))

        await until(there, f"version {version} at {step}: {self.state.rollout}")

    async def loaded(self, *versions: int) -> None:
        """Wait until Triton serves exactly these versions of both variants."""
        for name in VARIANTS:
            async with asyncio.timeout(20):
                while await self.shop.triton.serving(name) != versions:
                    await asyncio.sleep(0.01)

    async def command(self, action: Action, version: int | None = None) -> str:
        return await self.place.gateway.rollouts.execute(Command(action, "detector", version))

    def versions_by_camera(self) -> dict[str, list[str]]:
        """The versions that answered each camera, one for each stretch."""
        seen: dict[str, list[str]] = {}
        for result in self.place.results:
            stretch = seen.setdefault(result["device_id"], [])
            if stretch[-1:] != [result["model_version"]]:
                stretch.append(result["model_version"])
        return seen


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    place = Shop(tmp_path / "models")
    place.model()
    place.drop(1)
    return place


async def test_the_first_version_serves_without_a_trial_and_is_remembered(shop: Shop) -> None:
    async with shop.open() as counter:
        state = await counter.ended(1, Ending.PROMOTED)
        assert state.stable is not None
        assert state.stable.version == 1
        assert state.rollout is not None
        assert [each.step for each in state.rollout.steps] == [
            Step.VERIFIED, Step.LOADED, Step.SIGNATURE, Step.WARMED, Step.GOLDEN, Step.PROMOTED,
        ]  # fmt: skip
    remembered = msgspec.json.decode((shop.repository / ".edge-gateway" / "detector.json").read_bytes())
    assert remembered["stable"]["version"] == 1


async def test_a_good_version_passes_every_step_and_each_camera_changes_once(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        state = await counter.ended(2, Ending.PROMOTED)
        await counter.loaded(2)
    assert state.rollout is not None
    assert [each.step for each in state.rollout.steps][-4:] == [
        Step.SHADOW, Step.CANARY, Step.PROMOTED, Step.DRAINED,
    ]  # fmt: skip
    assert state.previous is not None
    assert state.previous.version == 1
    assert not counter.place.errors
    assert len(counter.place.results) == counter.sent
    assert counter.versions_by_camera() == {camera: ["1", "2"] for camera in CAMERAS}
    reports = [body["status"] for body in counter.place.of("ai_model")]
    assert "rolling_out" in reports
    assert counter.place.metrics.value("rollouts_total", model="detector", ending="promoted") == 2


async def test_an_unsigned_version_is_not_loaded_and_the_signed_one_serves_on(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key.pem"
    write_key(key)
    verify = serve._checks(settings(model_public_key_file=key.with_suffix(".pub"))).verify_signature
    assert verify is not None
    assert run_here(capsys, "models", "sign", str(shop.repository / "detector"), "--private-key", str(key)).code == 0
    async with shop.open(checks=Checks(None, verify)) as counter:
        await until(lambda: len(counter.place.results) > 0, "answers of version 1")
        shop.drop(2)
        state = await counter.ended(2, Ending.REFUSED)
        assert state.refused[0].step is Step.VERIFIED
        assert "sign" in state.refused[0].reason
        await counter.loaded(1)
        answered = len(counter.place.results)
        await until(lambda: len(counter.place.results) > answered, "more answers")
        assert counter.version == 1


async def test_a_version_that_sees_something_else_is_refused_in_shadow(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2, NO_HELMET)
        state = await counter.ended(2, Ending.REFUSED)
        await counter.loaded(1)
        assert state.refused[0].step is Step.SHADOW
        assert "agrees with the stable version by 0.00" in state.refused[0].reason
        assert state.refused[0].weights
        assert any("refused at shadow" in text for text in counter.place.gateway.health.report().degraded)
    assert set(itertools.chain(*counter.versions_by_camera().values())) == {"1"}
    assert not counter.place.errors


async def test_a_version_that_fails_in_its_canary_is_rolled_back_and_no_snapshot_fails(shop: Shop) -> None:
    shop.model(rollout={**QUICK, "shadow": 0, "min_samples": 1000})
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        await counter.at(2, Step.CANARY)
        await until(lambda: any(r["model_version"] == "2" for r in counter.place.results), "an answer of the canary")
        for name in VARIANTS:
            shop.triton.fail(name, BackendRejected("it has crashed"), 2)
        state = await counter.ended(2, Ending.ROLLED_BACK)
        await counter.loaded(1)
        assert "BACKEND_REJECTED" in state.refused[0].reason
    assert not counter.place.errors
    assert len(counter.place.results) == counter.sent


async def test_a_version_that_triton_refuses_leaves_the_stable_one_and_may_be_mended(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.triton.refuse_load("detector-onnx", "corrupt file", version=2)
        with capture_logs() as logs:
            shop.drop(2)
            state = await counter.ended(2, Ending.REFUSED)
        (line,) = [each for each in logs if each["log_level"] == "error"]  # of one failure
        assert line["event"] == "A version is refused"
        assert "corrupt file" in line["reason"]
        assert state.refused[0].step is Step.LOADED
        assert "corrupt file" in state.refused[0].reason
        await counter.loaded(1)

        shop.triton.refuse_load("detector-onnx", None, version=2)
        (shop.repository / "detector" / "golden").mkdir()
        (shop.repository / "detector" / "golden" / "expected.json").write_text("[]")
        await counter.ended(2, Ending.PROMOTED)


async def test_a_number_is_not_used_again_with_other_weights(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2, NO_HELMET)
        await counter.ended(2, Ending.REFUSED)
        shop.drop(2, HELMET, weights="others")
        await until(lambda: "other weights" in counter.state.refused[0].reason, "the advice")
        assert "Count up" in counter.state.refused[0].fix
        assert counter.version == 1

        shop.drop(1, NO_HELMET, weights="others")
        await until(lambda: counter.state.refused[0].version == 1, "the advice for the stable version")
        assert "2/" in counter.state.refused[0].fix
        await counter.loaded(1)
        shop.drop(3)
        await counter.at(3, Step.LOADED)
        state = await counter.ended(3, Ending.REFUSED)  # Triton would load the other weights of 1 with it
        assert "version 1 has other weights" in state.refused[0].reason
    assert all(result["predictions"][0]["class"] == "person_with_helmet" for result in counter.place.results)


async def test_a_version_that_brings_one_variant_is_served_by_that(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2, variants=["detector-torch"])
        await counter.ended(2, Ending.PROMOTED)
        variants = counter.place.gateway.models.current.models["detector"].variants
        assert (variants["onnx"].state, variants["torch"].state) == (State.ABSENT, State.READY)
        report = counter.place.gateway.health.report()
        assert report.ready
        assert any("version 2" in text for text in report.degraded)


async def test_a_new_model_comes_into_service_and_a_removed_one_goes(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        for name in ("walker-onnx", "walker-torch"):
            shop.triton.add_model(signature(name), sees(HELMET))
            (shop.repository / name / "1").mkdir(parents=True)
            (shop.repository / name / "1" / "model.onnx").write_text(name)
        shop.model("walker", mqtt={"input_topics": ["walk/#"]})
        states = counter.place.gateway.rollouts
        await until(lambda: "walker" in states.states and states.states["walker"].stable is not None, "the new model")

        for path in (shop.repository / "walker").iterdir():
            path.unlink()
        (shop.repository / "walker").rmdir()
        await until(lambda: "walker" not in counter.place.gateway.models.current.models, "the end of the model")
        async with asyncio.timeout(20):
            while await shop.triton.serving("walker-onnx"):
                await asyncio.sleep(0.01)
        assert any(body["status"] == "removed" for body in counter.place.of("ai_model"))


async def test_a_changed_model_yaml_holds_at_once_and_after_a_restart(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.model(inference={"output": "yolov8", "confidence_threshold": 0.95})
        await until(lambda: any(not r["predictions"] for r in counter.place.results), "the new threshold")
        await until(lambda: counter.state.stable is not None and _threshold(shop, 1) == 0.95, "that it is kept")
    async with shop.open() as counter:
        model = counter.place.gateway.models.current.models["detector"]
        assert model.spec.inference.confidence_threshold == 0.95
        assert counter.state.rollout is not None
        assert len(shop.triton.load_calls) == 2  # Triton had it all the while


def _threshold(shop: Shop, version: int) -> float:
    import yaml

    kept = shop.repository / ".edge-gateway" / "releases" / "detector" / str(version) / "detector" / "model.yaml"
    return float(yaml.safe_load(kept.read_text())["inference"].get("confidence_threshold", 0.5))


async def test_a_model_yaml_that_comes_with_a_version_is_that_versions(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        await counter.place.ready()  # model.yaml was looked at for version 1 by then
        shop.drop(2, NO_HELMET)
        shop.model(inference={"output": "yolov8", "confidence_threshold": 0.95})
        await counter.ended(2, Ending.REFUSED)
        assert counter.place.gateway.models.current.models["detector"].spec.inference.confidence_threshold == 0.5
    async with shop.open() as counter:  # also after a restart, with version 2 still lying there
        await counter.place.ready()
        assert counter.place.gateway.models.current.models["detector"].spec.inference.confidence_threshold == 0.5
        assert counter.version == 1
    assert not counter.place.errors


# --- commands ----------------------------------------------------------------------------------------


async def test_promote_ends_a_trial(shop: Shop) -> None:
    shop.model(rollout={**QUICK, "shadow": 100_000})
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        await counter.at(2, Step.SHADOW)
        assert "version 2" in await counter.command(Action.PROMOTE)
        await counter.ended(2, Ending.PROMOTED)


async def test_rollback_gives_up_what_is_tried(shop: Shop) -> None:
    shop.model(rollout={**QUICK, "min_samples": 100_000})
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        await counter.at(2, Step.CANARY)
        assert "given up" in await counter.command(Action.ROLLBACK)
        state = await counter.ended(2, Ending.ROLLED_BACK)
        assert "rolled back by command" in state.refused[0].reason
        await counter.loaded(1)


@pytest.mark.parametrize("keep", [3600, 0])
async def test_rollback_returns_to_the_version_before(shop: Shop, keep: int) -> None:
    shop.model(rollout={**QUICK, "keep": keep})
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        await until(lambda: counter.version == 2, "version 2")
        if keep:
            loads = len(shop.triton.load_calls)
            assert await counter.command(Action.ROLLBACK) == "version 1 serves"
            assert counter.version == 1  # at once
            # Nothing had to be loaded for it; at most the other version has been let go meanwhile.
            assert {versions for _, versions, _ in shop.triton.load_calls[loads:]} <= {(1,)}
        else:
            await counter.loaded(2)
            assert "being loaded" in await counter.command(Action.ROLLBACK)
            await until(lambda: counter.version == 1, "version 1")
        await counter.loaded(1)
        assert counter.state.refused[0].version == 2
        with pytest.raises(CommandRefused, match="no version before"):
            await counter.command(Action.ROLLBACK)
        assert "is tried" in await counter.command(Action.LOAD, 2)
        await until(lambda: counter.version == 2, "version 2 again")
    assert not counter.place.errors


async def test_unload_and_load(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        await counter.command(Action.UNLOAD)
        await counter.loaded()
        await until(lambda: bool(counter.place.errors), "an error")
        assert counter.place.errors[-1]["error"]["code"] == "MODEL_UNAVAILABLE"
        assert counter.place.gateway.health.report().ready
    async with shop.open(wait=False) as counter:  # still, after a restart
        await until(lambda: bool(counter.place.errors), "an error")
        await counter.command(Action.LOAD)
        await counter.loaded(1)
        await until(lambda: bool(counter.place.results), "a result")


@pytest.mark.parametrize(
    ("action", "version", "code"),
    [
        (Action.PROMOTE, None, "NOTHING_TO_DO"),
        (Action.PROMOTE, 1, "NOTHING_TO_DO"),
        (Action.PROMOTE, 7, "VERSION_UNKNOWN"),
        (Action.ROLLBACK, None, "NOTHING_TO_DO"),
        (Action.ROLLBACK, 7, "VERSION_UNKNOWN"),
        (Action.LOAD, None, "NOTHING_TO_DO"),
        (Action.LOAD, 7, "VERSION_UNKNOWN"),
        (Action.UNLOAD, 1, "COMMAND_INVALID"),
        (Action.UNLOAD, 7, "NOTHING_TO_DO"),
    ],
)
async def test_commands_without_a_point_are_refused(shop: Shop, action: Action, version: int | None, code: str) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        with pytest.raises(CommandRefused) as refusal:
            await counter.command(action, version)
        assert refusal.value.code == code


# --- more than one, and the end in the middle ---------------------------------------------------------


async def test_a_rollout_goes_on_after_a_restart_in_the_middle(shop: Shop) -> None:
    shop.model(rollout={**QUICK, "shadow": 100_000})
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        await counter.at(2, Step.SHADOW)
    shop.model(rollout=QUICK)
    async with shop.open() as counter:
        assert counter.version == 1
        state = await counter.ended(2, Ending.PROMOTED)
        assert state.rollout is not None
        assert state.rollout.attempts == 1  # an orderly stop is no death
    assert not counter.place.errors


async def test_of_two_gateways_one_rolls_out_and_the_other_follows(shop: Shop) -> None:
    async with shop.open() as first:
        await first.ended(1, Ending.PROMOTED)
        async with site(
            shop.repository, triton=shop.triton, drop_quiet_s=0.15, gateway_id="second", aio_mqtt_client_id="second"
        ) as second:
            assert second.gateway.models.current.models["detector"].version == 1
            assert (first.place.metrics.value("roller"), second.metrics.value("roller")) == (1, 0)
            with pytest.raises(CommandRefused) as refusal:
                await second.gateway.rollouts.execute(Command(Action.UNLOAD, "detector"))
            assert refusal.value.code == "NOT_THE_ROLLER"
            shop.drop(2)
            await first.ended(2, Ending.PROMOTED)
            await until(lambda: second.gateway.models.current.models["detector"].version == 2, "the follower")
            assert second.gateway.rollouts.states["detector"].stable is not None
        await first.loaded(2)


async def test_the_other_gateway_goes_on_when_the_first_one_ends(shop: Shop) -> None:
    shop.model(rollout={**QUICK, "shadow": 0, "min_samples": 100_000})
    async with site(shop.repository, triton=shop.triton, drop_quiet_s=0.15, gateway_id="first") as first:
        await until(lambda: first.metrics.value("roller") == 1, "the lease")
        async with shop.open(gateway_id="second", aio_mqtt_client_id="second") as second:
            shop.drop(2)
            await second.at(2, Step.CANARY)
            await until(lambda: any(r["model_version"] == "2" for r in second.place.results), "the canary here too")
            await first.stop()
            await until(lambda: second.place.metrics.value("roller") == 1, "the lease")
            async with asyncio.timeout(20):
                while True:  # it goes on with the rollout in a moment
                    with contextlib.suppress(CommandRefused):
                        await second.command(Action.PROMOTE)
                        break
                    await asyncio.sleep(0.02)
            await second.ended(2, Ending.PROMOTED)
            assert not second.place.errors


# --- what a fresh reading found -----------------------------------------------------------------------


async def test_going_back_behind_a_version_lasts(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        await counter.ended(2, Ending.PROMOTED)
        shop.drop(3)
        await counter.ended(3, Ending.PROMOTED)
        await counter.command(Action.ROLLBACK, 1)
        await counter.ended(1, Ending.PROMOTED)
        shop.model(inference={"output": "yolov8", "confidence_threshold": 0.6})  # something changes beside it
        await asyncio.sleep(0.6)  # several times as long as a drop takes to be noticed
        assert counter.version == 1
        shop.drop(4)
        await counter.ended(4, Ending.PROMOTED)


async def test_what_is_still_written_is_left_alone_whatever_else_changes(shop: Shop) -> None:
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2)
        growing = shop.repository / "detector-onnx" / "2" / "model.onnx"
        for number in range(12):
            with growing.open("a") as file:
                file.write(str(number))
            counter.place.gateway.reload()  # makes every model be looked at
            await asyncio.sleep(0.05)
            assert counter.state.rollout is not None
            assert counter.state.rollout.version == 1
        await counter.ended(2, Ending.PROMOTED)


async def test_a_first_start_with_a_bad_version_on_top_serves_the_one_below(shop: Shop) -> None:
    shop.drop(2)
    for name in VARIANTS:
        shop.triton.refuse_load(name, "corrupt file", version=2)
    async with shop.open() as counter:
        await until(lambda: counter.version == 1, "version 1")
        assert counter.state.refused[0].version == 2
        await until(lambda: bool(counter.place.results), "a result")


async def test_a_state_that_cannot_be_written_refuses_a_version_once(shop: Shop, monkeypatch: Any) -> None:
    refused: list[int] = []

    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        monkeypatch.setattr(StateStore, "write", _full)
        shop.drop(2)
        await until(lambda: bool(counter.state.refused), "the refusal")
        assert "No space left" in counter.state.refused[0].reason
        refused.append(int(counter.place.metrics.value("rollouts_total", model="detector", ending="refused")))
        await asyncio.sleep(0.6)
        assert counter.place.metrics.value("rollouts_total", model="detector", ending="refused") == refused[0]
        assert counter.version == 1
    assert not counter.place.errors


def _full(_store: StateStore, _state: ModelState) -> None:
    raise StateNotKept("No space left on device", where="the volume", fix="Make room")


async def test_who_takes_over_knows_what_was_written_last(shop: Shop) -> None:
    async with site(shop.repository, triton=shop.triton, drop_quiet_s=0.15, gateway_id="first") as first:
        await until(lambda: first.metrics.value("roller") == 1, "the lease")
        async with shop.open(gateway_id="second", aio_mqtt_client_id="second") as second:
            shop.drop(2)
            await second.at(2, Step.SHADOW)
            await first.gateway.rollouts.execute(Command(Action.PROMOTE, "detector"))
            await until(lambda: first.gateway.models.current.models["detector"].version == 2, "the promotion")
            await first.stop()
            await until(lambda: second.place.metrics.value("roller") == 1, "the lease")
            await until(lambda: second.version == 2, "version 2 here too")
            await asyncio.sleep(0.3)
            assert second.version == 2
            assert second.state.stable is not None
            assert second.state.stable.version == 2


async def test_a_variant_that_comes_later_is_taken_in(shop: Shop) -> None:
    shop.model(rollout={**QUICK, "shadow": 100_000})
    async with shop.open() as counter:
        await counter.ended(1, Ending.PROMOTED)
        shop.drop(2, variants=["detector-onnx"])
        await counter.at(2, Step.SHADOW)
        shop.drop(2, variants=["detector-torch"])
        await until(lambda: bool(counter.state.refused), "the end of the first try")
        shop.model(rollout=QUICK)
        await counter.ended(2, Ending.PROMOTED)
        variants = counter.place.gateway.models.current.models["detector"].variants
        assert {each.state for each in variants.values()} == {State.READY}
