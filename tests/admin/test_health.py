"""What /ready makes of models that are rolled out, asleep, unloaded or served in part."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.models.catalog import State
from gateway.rollout.state import ModelState
from gateway.rollout.steps import Ending, Step
from tests.admin.commanded import Office, office, refused, release, rollout
from tests.flow.builders import served, spec

STABLE, BEFORE = release(3), release(2)


async def ready(place: Office) -> tuple[int, list[str], list[str]]:
    answer = await place.http.get("/ready")
    body: dict[str, Any] = answer.json()
    return answer.status_code, body["reasons"], body["degraded"]


async def test_all_is_well() -> None:
    async with office() as place:
        assert await ready(place) == (200, [], [])


@pytest.mark.parametrize("step", list(Step))
async def test_a_running_rollout_changes_nothing(step: Step) -> None:
    async with office() as place:
        place.commands.put(ModelState("detector", STABLE, BEFORE, rollout(step=step)))
        assert await ready(place) == (200, [], [])


async def test_a_refused_version_degrades_until_the_next_one() -> None:
    async with office() as place:
        place.commands.put(ModelState("detector", STABLE, BEFORE, refused(4)))
        text = "model 'detector': version 4 was refused at golden: person.jpg: class 2, expected 0. Train it"
        assert await ready(place) == (200, [], [text])
        place.commands.put(ModelState("detector", STABLE, BEFORE, rollout(5)))
        assert await ready(place) == (200, [], [])
        back = rollout(5, ending=Ending.ROLLED_BACK, reason="p99 81 ms, 20 ms before", fix="")
        place.commands.put(ModelState("detector", STABLE, BEFORE, back))
        text = "model 'detector': version 5 was rolled back at canary: p99 81 ms, 20 ms before"
        assert await ready(place) == (200, [], [text])
        place.commands.put(ModelState("detector", release(6), STABLE, rollout(6, ending=Ending.PROMOTED)))
        assert await ready(place) == (200, [], [])


async def test_a_release_without_one_variant_degrades() -> None:
    async with office() as place:
        model = served(torch=State.ABSENT)
        place.models.put(model)
        status, reasons, degraded = await ready(place)
    assert (status, reasons) == (200, [])
    assert degraded[0].startswith("model 'detector': torch is absent")


async def test_asleep_is_ready_for_kserve_too() -> None:
    async with office() as place:
        place.models.put(served(onnx=State.ASLEEP, torch=State.ASLEEP))
        assert await ready(place) == (200, [], [])
        answer = await place.http.get("/v2/models/detector/ready")
        assert (answer.status_code, answer.json()["ready"]) == (200, True)


@pytest.mark.parametrize("told", ["by the catalogue", "by what is remembered"])
async def test_unloaded_by_command_degrades(told: str) -> None:
    async with office() as place:
        if told == "by the catalogue":
            place.models.put(served(onnx=State.UNLOADED, torch=State.UNLOADED))
        else:
            place.models.put(served(onnx=State.LOADING, torch=State.LOADING))
            place.commands.put(ModelState("detector", STABLE, unloaded=True))
        assert await ready(place) == (200, [], ["model 'detector' is unloaded by command"])


async def test_the_first_version_of_a_new_model_does_not_take_the_gateway_from_the_others() -> None:
    async with office() as place:
        place.models.put(served(spec("gate"), onnx=State.LOADING, torch=State.LOADING))
        place.commands.put(ModelState("gate", rollout=rollout(1, Step.LOADED)))
        assert (await ready(place))[0] == 503  # it has never been ready
        place.models.put(served(spec("gate")))
        assert (await ready(place))[0] == 200
        place.models.put(served(spec("gate"), onnx=State.REFUSED, torch=State.REFUSED))
        place.commands.put(ModelState("gate", rollout=refused(1)))
        status, reasons, degraded = await ready(place)
    assert (status, reasons) == (200, [])
    assert [text.split(":")[0] for text in degraded] == ["model 'gate' does not serve yet", "model 'gate'"]


@pytest.mark.parametrize("state", [State.LOADING, State.REFUSED])
async def test_a_model_that_should_serve_and_does_not_makes_it_unready(state: State) -> None:
    async with office() as place:
        assert (await ready(place))[0] == 200
        place.models.put(served(onnx=state, torch=state))
        status, (reason,), _ = await ready(place)
    assert status == 503
    assert reason.startswith("model 'detector' does not serve: onnx is ")
