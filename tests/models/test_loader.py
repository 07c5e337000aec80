"""What the loader does about a Triton that refuses, forgets, goes away, or answers nothing any more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import ConfigError
from gateway.metrics import Metrics
from gateway.models import loader as loader_module
from gateway.models.catalog import Models, ServedVariant, State
from gateway.models.figures import Measurements
from gateway.models.fleet import Fleet
from gateway.models.loader import Loader
from gateway.models.release import Placement, Release
from gateway.models.repository import LogicalModel
from gateway.ports import ModelStatistics
from gateway.testing import MemoryTriton
from tests.flow.builders import LABELS, head, signature, spec

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's own intervals, only shorter."""
    monkeypatch.setattr(loader_module, "CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr(loader_module, "RETRY_REFUSED_S", 0.1)
    monkeypatch.setattr(loader_module, "STRANGE_FOR_S", 0.1)


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        await asyncio.sleep(0.005)


@dataclass
class Bench:
    """A loader that runs against a MemoryTriton."""

    triton: MemoryTriton
    loader: Loader
    fleet: Fleet
    figures: Measurements
    models: Models
    metrics: Metrics

    def variant(self, triton_model: str) -> ServedVariant:
        """The variant of that Triton model, `<model>-<variant>`."""
        name, _, variant = triton_model.rpartition("-")
        return self.models.current.models[name].variants[variant]

    def states(self) -> set[State]:
        """The states that occur."""
        return {each.state for model in self.models.current.models.values() for each in model.variants.values()}

    async def ready(self, *triton_models: str) -> None:
        """Wait until these serve; all, when none is named."""
        if not triton_models:
            await until(lambda: self.states() == {State.READY}, "every variant")
        for name in triton_models:
            await until(lambda name=name: self.variant(name).state is State.READY, name)  # type: ignore[misc]

    async def refused(self, triton_model: str) -> None:
        await until(lambda: self.variant(triton_model).state is State.REFUSED, f"the refusal of {triton_model}")

    async def away(self) -> None:
        """Wait until the loader has noticed that Triton does not answer."""
        await until(lambda: not self.loader.triton_ready, "Triton away")
        assert self.states() == {State.LOADING}
        assert self.metrics.value("triton_ready") == 0


@contextlib.asynccontextmanager
async def loading(
    *names: str, triton: MemoryTriton | None = None, default_backend: str = "onnx", **more: Any
) -> AsyncIterator[Bench]:
    """A running loader of these models, each with two variants that Triton has."""
    triton = triton or MemoryTriton()
    logical = [LogicalModel(spec(name, **more), LABELS, Path(name)) for name in names]
    for model in logical:
        for variant in set(model.spec.variants.values()) - triton.known:
            triton.add_model(signature(variant), lambda _: {"output0": head()})
    models, metrics = Models(), Metrics()
    fleet = Fleet(models, metrics, default_backend)
    for model in logical:
        fleet.serve(unpinned(model))
    loader, figures = Loader(triton, models, fleet, metrics), Measurements(triton, models, fleet)
    running = [asyncio.create_task(loader.run()), asyncio.create_task(figures.run())]
    try:
        yield Bench(triton, loader, fleet, figures, models, metrics)
    finally:
        died = [task for task in running if task.done()]
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert not died, died[0].exception()


def unpinned(model: LogicalModel) -> Release:
    """Whichever version of the model's variants Triton serves."""
    return Release(0, model, {name: Placement(triton, 0) for name, triton in model.spec.variants.items()})


def release(version: int, *variants: str, **more: Any) -> Release:
    """A version of model `a` that brings these variants."""
    model = LogicalModel(spec("a", **more), LABELS, Path("a/model.yaml"))
    return Release(version, model, {name: Placement(f"a-{name}", version) for name in variants or ("onnx", "torch")})


async def test_everything_serves() -> None:
    async with loading("a", "b") as bench:
        await bench.ready()

        assert bench.loader.triton_ready
        assert bench.metrics.value("triton_ready") == 1
        assert bench.metrics.value("model_ready", model="a", variant="onnx") == 1
        assert sorted(bench.triton.loads) == ["a-onnx", "a-torch", "b-onnx", "b-torch"]


async def test_what_triton_has_already_serves_without_a_load() -> None:
    triton = MemoryTriton()
    async with loading("a", triton=triton) as before:
        await before.ready()
    triton.loads.clear()
    async with loading("a", triton=triton) as bench:
        await bench.ready()

        assert triton.loads == []


async def test_each_model_gets_its_first_variant_before_any_second_one() -> None:
    async with loading("a", "b", "c") as bench:
        await bench.ready()

        assert bench.triton.loads == ["a-onnx", "b-onnx", "c-onnx", "a-torch", "b-torch", "c-torch"]


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ({"default_backend": "torch"}, "a-torch"),
        ({"backend": "torch"}, "a-torch"),
        ({"backend": "dual", "default_backend": "torch"}, "a-torch"),
        ({"backend": "onnx", "default_backend": "torch"}, "a-onnx"),
        ({"default_backend": "torch", "variants": {"onnx": "a-onnx"}}, "a-onnx"),
    ],
)
async def test_the_variant_that_would_answer_is_loaded_first(more: dict[str, Any], first: str) -> None:
    async with loading("a", **more) as bench:
        await bench.ready()

        assert bench.triton.loads[0] == first


async def test_a_model_whose_first_variant_is_refused_gets_the_other_before_another_model_gets_two() -> None:
    triton = MemoryTriton()
    triton.refuse_load("b-onnx", "corrupt file")
    async with loading("a", "b", triton=triton) as bench:
        await bench.ready("a-onnx", "a-torch", "b-torch")

        order = [name for name in bench.triton.loads if name != "b-onnx"]
        assert order == ["a-onnx", "b-torch", "a-torch"]


async def test_a_refused_model_serves_once_it_is_mended() -> None:
    triton = MemoryTriton()
    triton.refuse_load("a-onnx", "corrupt file\nat byte 7\n\nAt:\n  /model.py(3): load\n")
    async with loading("a", "b", triton=triton) as bench:
        await bench.refused("a-onnx")
        await bench.ready("a-torch", "b-onnx", "b-torch")
        assert bench.variant("a-onnx").reason == "corrupt file"

        triton.refuse_load("a-onnx", None)
        await bench.ready("a-onnx")


async def test_a_model_that_does_not_fit_is_loaded_anew_and_serves_once_it_fits() -> None:
    triton = MemoryTriton()
    triton.add_model(signature("a-onnx", inputs=(-1, 3, 32, 32)), lambda _: {"output0": head()})
    async with loading("a", triton=triton) as bench:
        await bench.refused("a-onnx")
        assert "preprocessing.resize says" in bench.variant("a-onnx").reason

        triton.add_model(signature("a-onnx"), lambda _: {"output0": head()})
        await bench.ready()


async def test_a_reason_is_logged_once() -> None:
    triton = MemoryTriton()
    triton.refuse_load("a-onnx", "corrupt file\n\nAt:\n  frames that change")
    with capture_logs() as logs:
        async with loading("a", triton=triton) as bench:
            await until(lambda: triton.loads.count("a-onnx") >= 3, "three tries")
            triton.stop()  # an outage changes nothing about the reason
            await bench.away()
            tries = triton.loads.count("a-onnx")
            triton.start()
            await until(lambda: triton.loads.count("a-onnx") >= tries + 2, "two more tries")
            triton.refuse_load("a-onnx", "another reason")
            await until(lambda: bench.variant("a-onnx").reason == "another reason", "the other reason")

    said = [entry["reason"] for entry in logs if entry["event"] == "A model is refused"]
    assert said == ["corrupt file", "another reason"]


async def test_a_model_unloaded_behind_our_back_is_loaded_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "RETRY_REFUSED_S", 3600.0)
    async with loading("a") as bench:
        await bench.ready()
        bench.triton.lose("a-onnx")

        await until(lambda: bench.triton.loads.count("a-onnx") == 2, "the second load")
        await bench.ready()


async def test_triton_goes_away_and_comes_back() -> None:
    async with loading("a", "b") as bench:
        await bench.ready()
        bench.triton.stop()
        await bench.away()
        assert {bench.variant(name).reason for name in ("a-onnx", "b-torch")} == {"Triton cannot be reached"}
        assert bench.metrics.value("model_ready", model="a", variant="onnx") == 0

        bench.triton.start()
        await bench.ready()


async def test_a_refused_model_is_unknown_while_triton_is_away() -> None:
    triton = MemoryTriton()
    triton.refuse_load("a-onnx", "corrupt file")
    async with loading("a", triton=triton) as bench:
        await bench.refused("a-onnx")
        triton.stop()
        await bench.away()
        triton.refuse_load("a-onnx", None)
        triton.start()
        await bench.ready()


async def test_a_triton_that_freezes_is_away_and_nothing_is_loaded_again_after_it() -> None:
    async with loading("a", "b") as bench:
        await bench.ready()
        loads = list(bench.triton.loads)
        with capture_logs() as logs:
            bench.triton.freeze()
            await bench.away()
            bench.triton.thaw()
            await bench.ready()

        assert bench.triton.loads == loads
        assert not [entry for entry in logs if "gone" in entry["event"]]


async def test_a_triton_that_freezes_while_it_loads_is_away_soon_and_serves_everything_again() -> None:
    triton = MemoryTriton()
    triton.hold_load("b-onnx")
    async with loading("a", "b", triton=triton) as bench:
        await bench.ready("a-onnx")
        await until(lambda: triton.held_loads("b-onnx") == 1, "the load that hangs")
        triton.freeze()
        await bench.away()
        await until(lambda: triton.held_loads("b-onnx") == 0, "the end of the load that hung")

        triton.release_load("b-onnx")
        triton.thaw()
        await bench.ready()
        assert bench.loader.triton_ready


async def test_while_one_model_loads_the_others_are_watched() -> None:
    triton = MemoryTriton()
    triton.hold_load("b-onnx")
    async with loading("a", "b", triton=triton) as bench:
        await bench.ready("a-onnx")
        await until(lambda: triton.held_loads("b-onnx") == 1, "the load that hangs")
        triton.lose("a-onnx")
        await until(lambda: bench.variant("a-onnx").state is State.LOADING, "the loss")
        assert "gone" in bench.variant("a-onnx").reason
        assert bench.loader.triton_ready
        assert triton.loads.count("a-onnx") == 1  # loads stay one at a time

        triton.release_load("b-onnx")
        await bench.ready()


async def test_what_comes_back_by_itself_serves_while_another_model_loads() -> None:
    triton = MemoryTriton()
    triton.hold_load("b-onnx")
    async with loading("a", "b", triton=triton) as bench:
        await bench.ready("a-onnx")
        await until(lambda: triton.held_loads("b-onnx") == 1, "the load that hangs")
        triton.lose("a-onnx")
        await until(lambda: bench.variant("a-onnx").state is State.LOADING, "the loss")

        await triton.load("a-onnx")  # somebody else does it
        await bench.ready("a-onnx")
        assert triton.held_loads("b-onnx") == 1


class SilentStatistics(MemoryTriton):
    """Triton's figures never come."""

    async def statistics(self, model: str) -> ModelStatistics:
        await asyncio.Event().wait()
        raise AssertionError("never set")


async def test_figures_that_do_not_come_delay_nothing() -> None:
    async with loading("a", triton=SilentStatistics()) as bench:
        await bench.ready()
        bench.triton.lose("a-onnx")
        await until(lambda: bench.triton.loads.count("a-onnx") == 2, "the second load")
        await bench.ready()


async def test_figures_come_from_triton() -> None:
    triton = MemoryTriton()
    triton.add_model(signature("a-onnx"), lambda _: {"output0": head()}, memory_bytes=5_000_000)
    async with loading("a", triton=triton) as bench:
        await until(lambda: "onnx" in bench.models.current.models["a"].figures, "figures")

        assert bench.models.current.models["a"].figures["onnx"].memory_mb == 5.0


async def test_a_changed_model_yaml_holds_without_a_load() -> None:
    async with loading("a") as bench:
        await bench.ready()
        loads = list(bench.triton.loads)
        changed = LogicalModel(
            spec("a", inference={"output": "yolov8", "confidence_threshold": 0.9}), LABELS, Path("a/model.yaml")
        )
        bench.fleet.serve(unpinned(changed))
        assert bench.models.current.models["a"].spec.inference.confidence_threshold == 0.9
        assert bench.states() == {State.READY}
        assert bench.triton.loads == loads


async def test_a_model_yaml_that_does_not_fit_changes_nothing() -> None:
    async with loading("a") as bench:
        await bench.ready()
        before = bench.models.current
        wrong = LogicalModel(spec("a"), ("one",), Path("a/model.yaml"))
        with pytest.raises(ConfigError, match="for 1 label"):
            bench.fleet.serve(unpinned(wrong))
        assert bench.models.current is before


# --- versions ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(*versions: int) -> AsyncIterator[Bench]:
    """Model `a` with the first of these versions in service, and all of them on disk."""
    triton = MemoryTriton()
    for version in versions:
        for variant in ("a-onnx", "a-torch"):
            triton.add_model(signature(variant, version=str(version)), lambda _: {"output0": head()})
    async with loading(triton=triton) as bench:
        bench.fleet.serve(release(versions[0]))
        await bench.ready()
        yield bench


async def loaded(bench: Bench) -> dict[str, tuple[int, ...]]:
    return {name: await bench.triton.serving(name) for name in ("a-onnx", "a-torch")}


async def until_loaded(bench: Bench, *versions: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while set((await loaded(bench)).values()) != {versions}:
        assert time.monotonic() < deadline, await loaded(bench)
        await asyncio.sleep(0.005)


async def test_the_stable_version_is_loaded_though_a_higher_one_lies_there() -> None:
    async with serving(1, 2) as bench:
        assert await loaded(bench) == {"a-onnx": (1,), "a-torch": (1,)}
        assert bench.variant("a-onnx").version == "1"
        assert bench.models.current.models["a"].version == 1
        assert bench.metrics.value("model_version", model="a") == 1


async def test_a_candidate_is_loaded_beside_and_let_go_again() -> None:
    async with serving(1, 2) as bench:
        bench.fleet.also(release(2))
        candidate = await bench.fleet.settled("a", 2)
        assert candidate.ready
        assert await loaded(bench) == {"a-onnx": (1, 2), "a-torch": (1, 2)}
        assert bench.models.current.models["a"].version == 1

        bench.fleet.drop("a", 2)
        await until_loaded(bench, 1)
        assert bench.states() == {State.READY}


async def test_the_next_version_takes_over_and_the_one_before_goes() -> None:
    async with serving(1, 2) as bench:
        bench.fleet.also(release(2))
        await bench.fleet.settled("a", 2)
        bench.fleet.serve(release(2), release(1))
        assert bench.states() == {State.READY}
        assert bench.models.current.models["a"].version == 2
        assert await loaded(bench) == {"a-onnx": (1, 2), "a-torch": (1, 2)}

        bench.fleet.drop("a", 1)
        await until_loaded(bench, 2)


async def test_a_candidate_that_triton_refuses_leaves_the_stable_version() -> None:
    async with serving(1, 2) as bench:
        bench.triton.refuse_load("a-torch", "corrupt file", version=2)
        bench.fleet.also(release(2))
        candidate = await bench.fleet.settled("a", 2)
        assert {name: each.state for name, each in candidate.variants.items()} == {
            "onnx": State.READY,
            "torch": State.REFUSED,
        }
        assert candidate.variants["torch"].reason == "version 2: corrupt file"
        tries = bench.triton.loads.count("a-torch")
        await until(lambda: bench.variant("a-torch").state is State.READY, "the stable version")
        await asyncio.sleep(0.3)  # longer than it takes until a refused stable version is tried again
        assert bench.triton.loads.count("a-torch") == tries
        bench.fleet.drop("a", 2)
        await until_loaded(bench, 1)


async def test_a_triton_that_restarts_gets_exactly_what_is_wanted() -> None:
    async with serving(1, 2, 3) as bench:
        bench.fleet.also(release(2))
        await bench.fleet.settled("a", 2)
        bench.triton.stop()
        await bench.away()
        bench.triton.start()
        await bench.triton.load("a-onnx")  # somebody loads the highest, as Triton does by itself
        await until_loaded(bench, 1, 2)
        await bench.ready()


async def test_a_version_that_somebody_else_loads_is_unloaded() -> None:
    async with serving(1, 2) as bench:
        await bench.triton.load("a-onnx", (1, 2))
        await until_loaded(bench, 1)


async def test_an_override_that_is_lost_is_put_right() -> None:
    async with serving(1, 2) as bench:
        await bench.triton.load("a-onnx", (2,))
        await until_loaded(bench, 1)
        assert bench.metrics.value("model_repairs_total", model="a", what="lost") == 1


async def test_a_version_may_bring_one_variant_only() -> None:
    async with serving(1, 2) as bench:
        bench.fleet.also(release(2, "torch"))
        await bench.fleet.settled("a", 2)
        bench.fleet.serve(release(2, "torch"))
        assert bench.variant("a-torch").state is State.READY
        assert bench.variant("a-onnx").state is State.ABSENT
        assert "version 2" in bench.variant("a-onnx").reason
        deadline = time.monotonic() + DEADLINE_S
        while (await loaded(bench)) != {"a-onnx": (), "a-torch": (2,)}:
            assert time.monotonic() < deadline, await loaded(bench)
            await asyncio.sleep(0.005)


async def test_a_model_sleeps_and_wakes() -> None:
    async with serving(1) as bench:
        bench.fleet.take_out("a", State.ASLEEP)
        await until_loaded(bench)
        assert bench.models.current.models["a"].asleep
        assert not bench.models.can_answer("a")

        bench.models.wake("a")
        await bench.ready()
        await until_loaded(bench, 1)


async def test_a_model_is_removed() -> None:
    async with serving(1) as bench:
        bench.fleet.remove("a")
        await until_loaded(bench)
        assert not bench.models.current.models
