"""6: ask each chosen variant within the deadline, all at the same time, and fall back when the first fails."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from gateway.errors import BackendInvalidResponse, DeadlineExceeded, ModelUnavailable, SnapshotError
from gateway.flow.breakers import Attempt, Suspended
from gateway.flow.tensors import Allocate
from gateway.live import Live
from gateway.messages import Answer, Answered, InferRequest, InferResponse, Prepared, PreparedInput, Selection
from gateway.metrics import Metrics
from gateway.models.catalog import ServedModel, ServedVariant, State
from gateway.models.input_plan import InputPlan
from gateway.ports import InferenceServer
from gateway.traces import Kind, Pairs, SnapshotSpan, new_span_id

TILES_AT_ONCE = 4
"""Requests of one picture's tiles that are under way together; each holds an encoded tensor."""


class Inference:
    """Asks Triton on behalf of the flow; without `metrics` it counts nothing, for what is not production."""

    def __init__(self, server: InferenceServer, metrics: Metrics | None, live: Live) -> None:
        self._server = server
        self._metrics = metrics
        self._live = live

    @property
    def allocate(self) -> Allocate:
        """Where to put input tensors."""
        return self._server.tensor

    async def infer(self, prepared: Prepared, selection: Selection, attempt: Attempt) -> Answered:
        """Answers of the primary variant, of those compared, and of fallbacks as needed.

        In the returned selection `primary` names a variant that answered; raises the first variant's error when
        none did. `attempt` says which variants may be asked, and is told of those that fail.
        """
        primary, compared = selection.primary, selection.compared
        if not compared:  # no task beside this one for what waits for one answer anyway
            answers = {primary: await self._ask(prepared, primary, attempt, selection.policy, needed=True)}
        else:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(
                        self._ask(prepared, name, attempt, selection.policy, needed=name == primary),
                        name=f"ask {name}",
                    )
                    for name in (primary, *compared)
                }
            answers = {name: task.result() for name, task in tasks.items()}
        if answers[selection.primary].error is not None:
            selection = await self._fall_back(prepared, selection, answers, attempt)
        return Answered(
            job=prepared.job,
            inputs=prepared.inputs,
            selection=selection,
            answers=answers,
            queued_ms=prepared.queued_ms,
            preprocess_ms=prepared.preprocess_ms,
        )

    async def _fall_back(
        self, prepared: Prepared, selection: Selection, answers: dict[str, Answer], attempt: Attempt
    ) -> Selection:
        for name in (*selection.compared, *selection.fallback):
            if name not in answers or isinstance(answers[name].error, Suspended):
                answers[name] = await self._ask(prepared, name, attempt, "fallback", needed=True)
            if answers[name].error is None:
                error = answers[selection.primary].error
                if self._metrics is not None:
                    self._metrics.fallbacks.labels(prepared.job.model.spec.name, name).inc()
                return replace(
                    selection,
                    policy="dual" if selection.compared else "fallback",
                    reason=f"{selection.primary} failed: {error.code}" if error else selection.reason,
                    primary=name,
                )
        errors = [answer.error for answer in answers.values() if answer.error is not None]
        raise next((error for error in errors if not isinstance(error, Suspended)), errors[0])

    async def _ask(self, prepared: Prepared, name: str, attempt: Attempt, policy: str, *, needed: bool) -> Answer:
        """One variant's answer; its error is part of the answer, since it does not fail the snapshot by itself."""
        model, span = prepared.job.model, prepared.job.snapshot.origin.span
        step_id = None if span is None else new_span_id()
        started = time.monotonic()
        try:
            variant = model.variants[name]
            if variant.state is not State.READY:
                raise ModelUnavailable(f"variant '{name}' is {variant.state.value}: {variant.reason}")
            attempt.begin(name, needed=needed)
            answer = await self._request(prepared, model, variant, started, attempt, step_id)
        except Suspended as error:
            attempt.over(name, error)
            return Answer(variant=name, infer_ms=0.0, error=error)
        except SnapshotError as error:
            attempt.over(name, error)
            attempt.came(name, error)
            if self._metrics is not None:
                self._metrics.inference_errors.labels(model.spec.name, name, error.code).inc()
            answer = Answer(variant=name, infer_ms=(time.monotonic() - started) * 1000, error=error)
        else:
            attempt.over(name, None)
            if self._metrics is not None:
                self._metrics.inference_duration_seconds.labels(model.spec.name, name).observe(answer.infer_ms / 1000)
        if span is not None:
            _add_answer(span, step_id, model, answer, started, policy)
        return answer

    async def _request(
        self,
        prepared: Prepared,
        model: ServedModel,
        variant: ServedVariant,
        started: float,
        attempt: Attempt,
        step_id: int | None,
    ) -> Answer:
        name, span = variant.name, prepared.job.snapshot.origin.span
        given = prepared.inputs[name]
        trace = () if span is None else span.context(step_id)
        step = max(1, min(variant.max_batch, model.spec.inference.batch_size))
        outputs: list[dict[str, NDArray[Any]]] = []
        until = min(prepared.job.deadline_at, started + self._live.current.infer_timeout_ms / 1000)
        starts = list(range(0, given.count, step))
        for at in range(0, len(starts), TILES_AT_ONCE):
            left = until - time.monotonic()
            if left <= 0:
                asked = f"{at * step} of {given.count} tiles had been asked" if at else "the variant could be asked"
                raise DeadlineExceeded(f"the time ran out {'when' if at else 'before'} {asked}")
            wave = [slice(start, min(start + step, given.count)) for start in starts[at : at + TILES_AT_ONCE]]
            attempt.sent(name)
            responses = await self._ask_all(
                [self._question(prepared, variant, part, given, left, trace) for part in wave]
            )
            for part, response in zip(wave, responses, strict=True):
                outputs += _by_picture(response, part.stop - part.start, variant)
        return Answer(
            variant=name,
            infer_ms=(time.monotonic() - started) * 1000,
            model_version=responses[-1].model_version,
            outputs=tuple(outputs),
        )

    def _question(
        self, prepared: Prepared, variant: ServedVariant, part: slice, given: PreparedInput, left_s: float, trace: Pairs
    ) -> InferRequest:
        return InferRequest(
            model=variant.triton_model,
            inputs=_part(given, part, variant),
            outputs=tuple(dict.fromkeys(output.tensor for output in variant.outputs.values())),
            timeout_s=left_s,
            version=variant.version if variant.pinned else "",
            request_id=prepared.job.snapshot.origin.result_id,
            trace=trace,
            tenant=prepared.job.snapshot.origin.place.business_unit,
        )

    async def _ask_all(self, requests: list[InferRequest]) -> list[InferResponse]:
        """All answers, or the first error; what is under way then is not waited for any more."""
        if len(requests) == 1:
            return [await self._server.infer(requests[0])]
        tasks = [asyncio.ensure_future(self._server.infer(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


def _add_answer(
    span: SnapshotSpan, step_id: int | None, model: ServedModel, answer: Answer, started: float, policy: str
) -> None:
    span.step(
        f"infer {answer.variant}",
        started,
        started + answer.infer_ms / 1000,
        kind=Kind.CLIENT,
        span_id=step_id,
        error=answer.error,
        model=model.spec.name,
        variant=answer.variant,
        version=answer.model_version or str(model.version or ""),
        policy=policy,
    )


def _part(given: PreparedInput, part: slice, variant: ServedVariant) -> dict[str, NDArray[Any]]:
    """Some of the pictures as the inputs of one request."""
    extras = variant.plan.extras if isinstance(variant.plan, InputPlan) else ()
    bare = {extra.name for extra in extras if not extra.batch_axis}
    if given.count == 1 and variant.max_batch and not bare:
        return dict(given.tensors)
    return {
        name: tensor[part] if variant.max_batch and name not in bare else tensor[part.start]
        for name, tensor in given.tensors.items()
    }


def _by_picture(response: InferResponse, count: int, variant: ServedVariant) -> list[dict[str, NDArray[Any]]]:
    """The output tensors of each picture of a request by role; raises BackendInvalidResponse."""
    for output in variant.outputs.values():
        tensor = response.outputs[output.tensor]
        if output.batch_axis and (not tensor.ndim or len(tensor) != count):
            raise BackendInvalidResponse(
                f"output '{output.tensor}' has the shape {list(tensor.shape)} for a batch of {count}"
            )
    return [
        {
            role: response.outputs[output.tensor][index] if output.batch_axis else response.outputs[output.tensor]
            for role, output in variant.outputs.items()
        }
        for index in range(count)
    ]
