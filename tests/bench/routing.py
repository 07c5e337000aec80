"""What it costs a snapshot that versions may be tried and variants given up: choosing, its turn, telling who watches.

Not a test: it asserts nothing and its figures are those of this machine at this moment.
Run it with `python -m tests.bench.routing`.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from dataclasses import replace

import structlog

from gateway.errors import ModelCrashed
from gateway.flow.breakers import Attempt, Breakers
from gateway.flow.canary import Tried
from gateway.flow.pipeline import Pipeline
from gateway.flow.variants import choose
from gateway.live import Live
from gateway.messages import Job, Predicted, Publication, Selection, VariantResult
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel
from gateway.models.trial import Observation
from gateway.testing import MemoryBroker, MemoryTriton
from tests.flow.builders import job, settings
from tests.flow.trial_site import CAMERAS, flow, on_trial, release

ROUNDS = 9
TIMES = 20_000
SNAPSHOTS = 300


class Deaf:
    """A jury that keeps nothing, so that only the way to it is measured."""

    wants_pairs = False

    def saw(self, observation: Observation) -> None:
        """Forget it."""


def entries() -> dict[str, ServedModel]:
    """The entry of the model in each situation."""
    stable, candidate = release(1), release(2)
    return {
        "no rollout": stable,
        "shadow": on_trial(stable, candidate, Deaf()),
        "canary, stable answers": on_trial(stable, candidate, Deaf(), 1e-9),
        "canary, candidate answers": on_trial(stable, candidate, Deaf(), 1.0),
    }


def answer_of(asked: Job, model: ServedModel) -> Predicted:
    """An answer as the steps before would have made it."""
    result = VariantResult("onnx", "1", 1.0)
    return Predicted(replace(asked, model=model), (64, 48), Selection("single", "", "onnx"), {"onnx": result}, 0, 0, 0)


async def routed(pipeline: Pipeline, asked: Job, predicted: Predicted) -> None:
    """All that a snapshot goes through for the sake of versions."""
    with pipeline._limiter.enter(asked) as place:
        turn = await pipeline._turn(asked, place)
        name, turns = turn.model.spec.name, pipeline._turns
        if turn.release is not turn.model:
            turns.hold(name, turn.model.version)
            turns.drop(name, turn.model.version)
        pipeline._shadow.offer(Tried(predicted, turn.model, stable=predicted.results), None)
        turns.leave(name, turn.device_id, turn.release.version)


def before(models: Models, asked: Job) -> None:
    """What it went through when there was one version of each model."""
    models.current.named(asked.model.spec.name)


async def nanoseconds(model: ServedModel) -> tuple[float, float]:
    """With versions, and without: the best of several rounds, for each snapshot."""
    models, broker = Models(), MemoryBroker()
    client = broker.client("gateway", [], Publication("x", b""))
    pipeline = Pipeline(Live(settings()), client, MemoryTriton(), models, Metrics())
    models.put(model)
    asked = job(CAMERAS[0], model=model)
    predicted = answer_of(asked, model)
    took, base = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        for _ in range(TIMES):
            await routed(pipeline, asked, predicted)
        took.append((time.perf_counter_ns() - started) / TIMES)
        started = time.perf_counter_ns()
        for _ in range(TIMES):
            before(models, asked)
        base.append((time.perf_counter_ns() - started) / TIMES)
    pipeline.close()
    return min(took), min(base)


def breakers_nanoseconds(*, watched: bool, opened: bool = False) -> float:
    """Choosing the variant, and its breaker, where there is one; of the processor, the best of several rounds."""
    live, models, model = Live(settings()), Models(), release(1)
    models.put(model)
    breakers = Breakers(live, models, Metrics())
    breakers.follow(models.current)
    for _ in range(live.current.breaker_failures if opened else 0):
        with Attempt(breakers, model) as attempt:
            attempt.begin("onnx", needed=True)
            attempt.came("onnx", ModelCrashed("the process of the model has ended"))
    asked, took = job(CAMERAS[0], model=model).snapshot, []
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for _ in range(TIMES):
            primary = choose(asked, model, live.current, breakers.withheld(model)).primary
            breakers.due(model)
            with Attempt(breakers if watched else None, model) as attempt:
                attempt.begin(primary, needed=True)
                attempt.sent(primary)
                attempt.came(primary, None)
        took.append((time.process_time_ns() - started) / TIMES)
    return min(took)


async def whole(model: ServedModel) -> float:
    """Median milliseconds from arrival to result, one snapshot after the other, with a Triton that takes no time."""
    async with flow(1, 2) as place:
        place.models.put(model)
        for number in range(SNAPSHOTS):
            place.send(CAMERAS[0])
            await place.answered(number + 1)
        return statistics.median(float(body["metadata"]["timings_ms"]["total"]) for body in place.results)


async def main() -> None:
    """Print a line for each situation."""
    base = breakers_nanoseconds(watched=False)
    for name, opened in (("breakers, all closed", False), ("breakers, one open", True)):
        print(f"{name:27} {breakers_nanoseconds(watched=True, opened=opened) - base:6.0f} ns more a snapshot")
    for name, model in entries().items():
        took, base = await nanoseconds(model)
        print(f"{name:27} {took - base:6.0f} ns more a snapshot, of {await whole(model):.2f} ms from arrival to result")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(main())
