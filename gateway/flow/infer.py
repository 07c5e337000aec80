"""6: ask each chosen variant within the deadline, all at the same time, and fall back when the first fails."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from gateway.errors import DeadlineExceeded, ModelUnavailable, SnapshotError
from gateway.messages import Answer, Answered, InferRequest, Prepared, Selection
from gateway.metrics import Metrics
from gateway.models.catalog import ServedModel, State
from gateway.ports import InferenceServer


class Inference:
    """Asks Triton on behalf of the flow."""

    def __init__(self, server: InferenceServer, metrics: Metrics, timeout_ms: float) -> None:
        self._server = server
        self._metrics = metrics
        self._timeout_s = timeout_ms / 1000

    async def infer(self, prepared: Prepared, selection: Selection) -> Answered:
        """Answers of the primary variant, of those compared, and of fallbacks as needed.

        In the returned selection `primary` names a variant that answered; raises the first variant's error when
        none did.
        """
        asked = (selection.primary, *selection.compared)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(prepared, name), name=f"ask {name}") for name in asked]
        answers = {task.result().variant: task.result() for task in tasks}
        first = answers[selection.primary]
        if first.error is not None:
            selection = await self._fall_back(prepared, selection, answers, first.error)
        return Answered(
            job=prepared.job,
            geometry=prepared.geometry,
            selection=selection,
            answers=answers,
            queued_ms=prepared.queued_ms,
            preprocess_ms=prepared.preprocess_ms,
        )

    async def _fall_back(
        self, prepared: Prepared, selection: Selection, answers: dict[str, Answer], error: SnapshotError
    ) -> Selection:
        for name in (*selection.compared, *selection.fallback):
            if name not in answers:
                answers[name] = await self._ask(prepared, name)
            if answers[name].error is None:
                self._metrics.fallbacks.labels(prepared.job.model.spec.name, name).inc()
                return replace(
                    selection,
                    policy="dual" if selection.compared else "fallback",
                    reason=f"{selection.primary} failed: {error.code}",
                    primary=name,
                )
        raise error

    async def _ask(self, prepared: Prepared, name: str) -> Answer:
        """One variant's answer; its error is part of the answer, since it does not fail the snapshot by itself."""
        model = prepared.job.model
        started = time.monotonic()
        try:
            answer = await self._request(prepared, model, name, started)
        except SnapshotError as error:
            self._metrics.inference_errors.labels(model.spec.name, name, error.code).inc()
            return Answer(variant=name, infer_ms=(time.monotonic() - started) * 1000, error=error)
        self._metrics.inference_duration_seconds.labels(model.spec.name, name).observe(answer.infer_ms / 1000)
        return answer

    async def _request(self, prepared: Prepared, model: ServedModel, name: str, started: float) -> Answer:
        variant = model.variants[name]
        if variant.state is not State.READY:
            raise ModelUnavailable(f"variant '{name}' is {variant.state.value}: {variant.reason}")
        left = prepared.job.deadline_at - started
        if left <= 0:
            raise DeadlineExceeded("the time ran out before the variant could be asked")
        tensor = prepared.tensor if variant.batched else prepared.tensor[0]
        response = await self._server.infer(
            InferRequest(
                model=variant.triton_model,
                inputs={variant.input_name: tensor},
                outputs=variant.output_names,
                timeout_s=min(left, self._timeout_s),
                request_id=prepared.job.snapshot.origin.result_id,
            )
        )
        outputs = tuple(response.outputs[output] for output in variant.output_names)
        return Answer(
            variant=name,
            infer_ms=(time.monotonic() - started) * 1000,
            model_version=response.model_version,
            outputs=outputs if variant.batched else tuple(output[None] for output in outputs),
        )
