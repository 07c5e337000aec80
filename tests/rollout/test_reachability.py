"""Who runs the rollouts where gateways on one model volume have a Triton each, and one of those is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import CommandRefused
from gateway.models import loader as loader_module
from gateway.rollout import caretaker as caretaker_module
from gateway.rollout import roller as roller_module
from gateway.rollout import transaction as transaction_module
from gateway.rollout import turn as turn_module
from gateway.rollout.commands import Action, Command
from gateway.rollout.steps import Ending, Step
from gateway.testing import MemoryTriton
from tests.flow.builders import signature
from tests.harness import HELMET, Site, sees, site, until, write_model

VARIANTS = ("detector-onnx", "detector-torch")
AT_ONCE = {"shadow": 0, "canary": [], "keep": 0}
WAITS = "A model waits for the gateway that runs the rollouts"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own intervals, only shorter."""
    monkeypatch.setattr(loader_module, "CHECK_INTERVAL_S", 0.05)
    monkeypatch.setattr(roller_module, "FOLLOW_INTERVAL_S", 0.1)
    monkeypatch.setattr(turn_module, "LET_GO_AFTER_S", 0.5)
    monkeypatch.setattr(transaction_module, "FOLLOWERS_S", 0.1)


@dataclass
class Volume:
    """One model volume, and the Tritons that read it."""

    repository: Path
    tritons: list[MemoryTriton]

    def drop(self, version: int) -> None:
        for name in VARIANTS:
            for triton in self.tritons:
                triton.add_model(signature(name, version=str(version)), sees(HELMET))
            folder = self.repository / name / str(version)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.onnx").write_text(f"{name} {version}")

    @contextlib.asynccontextmanager
    async def gateway(self, name: str, triton: int, *, wait: bool = True) -> AsyncIterator[Site]:
        async with site(
            self.repository,
            triton=self.tritons[triton],
            wait=wait,
            gateway_id=name,
            aio_mqtt_client_id=name,
            drop_quiet_s=0.15,
        ) as place:
            yield place


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """With a detector of version 1, and two Tritons that can load it."""
    place = Volume(tmp_path / "models", [MemoryTriton(), MemoryTriton()])
    write_model(place.repository, rollout=AT_ONCE)
    place.drop(1)
    return place


def is_roller(place: Site) -> bool:
    return place.metrics.value("roller") == 1


def version(place: Site) -> int:
    return place.gateway.models.current.models["detector"].version


def rollout(place: Site) -> Any:
    return place.gateway.rollouts.states["detector"].rollout


def reasons(place: Site) -> str:
    return "; ".join(place.gateway.health.report().reasons)


async def loads_only(triton: MemoryTriton, *versions: int) -> None:
    """Wait until a Triton serves exactly these versions."""
    async with asyncio.timeout(20):
        while await triton.serving("detector-onnx") != versions:
            await asyncio.sleep(0.01)


async def test_a_gateway_that_has_never_reached_triton_keeps_no_other_one_waiting(volume: Volume) -> None:
    volume.tritons[0].stop()
    async with volume.gateway("first", 0, wait=False) as first:
        await until(lambda: "Triton cannot be reached" in reasons(first), "the reason")
        assert not is_roller(first)
        async with volume.gateway("second", 1) as second:
            assert is_roller(second)
            assert not is_roller(first)
            volume.tritons[0].start()
            await first.ready()  # with a Triton of its own, from what is remembered
            assert (version(first), version(second)) == (1, 1)
            assert not is_roller(first)


async def test_a_roller_whose_triton_stays_away_leaves_the_rollouts_to_another_one(volume: Volume) -> None:
    async with volume.gateway("first", 0) as first, volume.gateway("second", 1) as second:
        assert (is_roller(first), is_roller(second)) == (True, False)
        volume.tritons[0].stop()
        await until(lambda: is_roller(second), "the lease")
        assert not is_roller(first)
        with pytest.raises(CommandRefused, match="cannot reach Triton") as refusal:
            await first.gateway.rollouts.execute(Command(Action.UNLOAD, "detector"))
        assert refusal.value.code == "NOT_THE_ROLLER"
        volume.drop(2)
        await until(lambda: version(second) == 2, "version 2")
        volume.tritons[0].start()
        await until(lambda: version(first) == 2, "version 2 at the first one")
        await first.ready()
        await loads_only(volume.tritons[0], 2)
        assert (is_roller(first), is_roller(second)) == (False, True)


async def test_a_triton_that_restarts_hands_nothing_over(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "LET_GO_AFTER_S", 15.0)
    async with volume.gateway("first", 0) as first, volume.gateway("second", 1) as second:
        volume.tritons[0].stop()
        await until(lambda: not first.gateway.health.report().ready, "unreadiness")
        volume.tritons[0].start()
        await first.ready()
        assert (is_roller(first), is_roller(second)) == (True, False)


async def test_alone_it_takes_the_rollouts_up_again_when_triton_is_back(volume: Volume) -> None:
    async with volume.gateway("first", 0) as first:
        volume.tritons[0].stop()
        await until(lambda: not is_roller(first), "the lease to be given back")
        volume.drop(2)
        volume.tritons[0].start()
        await until(lambda: version(first) == 2, "version 2")
        assert is_roller(first)


async def test_a_new_replica_with_an_empty_triton_serves_what_is_remembered(volume: Volume) -> None:
    async with volume.gateway("first", 0) as first:
        volume.drop(2)
        await until(lambda: rollout(first).version == 2 and rollout(first).ended_at, "the end of the rollout")
        await loads_only(volume.tritons[1])
        async with volume.gateway("second", 1) as second:
            assert version(second) == 2
            await loads_only(volume.tritons[1], 2)


async def test_who_waits_for_the_roller_says_so(volume: Volume) -> None:
    for name in VARIANTS:
        volume.tritons[0].hold_load(name)
    async with volume.gateway("first", 0, wait=False) as first:
        await until(lambda: is_roller(first), "the lease")
        with capture_logs() as logs:
            async with volume.gateway("second", 1, wait=False) as second:
                await until(
                    lambda: "waits for gateway 'first', which runs the rollouts" in reasons(second), "the reason"
                )
                volume.drop(2)  # the volume is read again meanwhile
                for name in VARIANTS:
                    volume.tritons[0].release_load(name)
                await second.ready()
        said = [entry for entry in logs if entry["event"] == WAITS]
        assert [(entry["model"], entry["gateway"]) for entry in said] == [("detector", "first")]


async def test_a_version_that_ends_one_triton_after_the_other_is_refused(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caretaker_module, "ATTEMPTS", 2)
    async with volume.gateway("first", 0) as first:
        write_model(volume.repository, rollout={**AT_ONCE, "shadow": 100_000})
        volume.drop(2)
        for attempt in (1, 2):
            await until(
                lambda attempt=attempt: (rollout(first).step, rollout(first).attempts) == (Step.SHADOW, attempt),  # type: ignore[misc]
                f"attempt {attempt}",
            )
            volume.tritons[0].stop()
            await until(lambda: not is_roller(first), "the lease to be given back")
            volume.tritons[0].start()
        await until(lambda: rollout(first).ending is Ending.REFUSED, "the refusal")
        assert "gone away 2 times" in rollout(first).reason
        await until(lambda: version(first) == 1 and first.gateway.health.report().ready, "version 1")


async def test_an_orderly_stop_while_triton_restarts_is_no_death_in_the_middle(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_module, "LET_GO_AFTER_S", 15.0)
    async with volume.gateway("first", 0) as first:
        write_model(volume.repository, rollout={**AT_ONCE, "shadow": 100_000})
        volume.drop(2)
        await until(lambda: rollout(first).step is Step.SHADOW, "the trial")
        volume.tritons[0].stop()
        await until(lambda: not first.gateway.health.report().ready, "unreadiness")
        assert await first.stop() == 0
    write_model(volume.repository, rollout=AT_ONCE)
    volume.tritons[0].start()
    async with volume.gateway("first", 0, wait=False) as again:
        await until(lambda: rollout(again).ending is Ending.PROMOTED, "version 2")
        assert rollout(again).attempts == 1
