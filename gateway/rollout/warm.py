"""Asking a candidate once for every batch size, so that the first snapshots do not pay for what it does only once."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from PIL import Image

from gateway.errors import BackendTimeout, BackendUnavailable, ConfigError, ModelUnavailable, SnapshotError
from gateway.flow.preprocess import prepare_picture, prepare_window
from gateway.messages import InferRequest
from gateway.models.catalog import ServedModel, ServedVariant, State
from gateway.models.input_plan import InputPlan, WindowPlan
from gateway.models.spec import ModelSpec
from gateway.ports import InferenceServer

log = structlog.get_logger(__name__)

JOINED = 8
"""Pictures that Triton's dynamic batching is expected to join, at most, from requests of different cameras."""
ROUNDS = 2
"""TorchScript counts at a first call what it optimises for at a second."""
GREY = (114, 114, 114)
SIDES = (64, 48)

Tensors = dict[str, NDArray[Any]]


async def warm(candidate: ServedModel, server: InferenceServer, timeout_s: float, *, join: bool = True) -> int:
    """Ask every variant that serves, one after the other, for each batch size; returns how many requests that took.

    First the sizes that the gateway sends, then those up to 8 that Triton may `join` them to; when the time runs out,
    the rest of the latter is left out. Raises BackendUnavailable and ModelUnavailable, which say nothing of the model,
    and ConfigError with the variant and the batch size when one fails.
    """
    until = time.monotonic() + timeout_s
    asked = 0
    for variant, singles, sizes, joined in await asyncio.to_thread(_questions, candidate):
        for size in sizes if join or not joined else ():
            try:
                for _ in range(ROUNDS):
                    await _ask(variant, _batch(singles, size, variant), size, server, until)
                    asked += 1
            except BackendTimeout as error:
                if not joined:
                    raise _failed(variant, size, f"no answer within {timeout_s:g} s", error.fix) from error
                log.warning("No time was left to warm up for a batch", triton_model=variant.triton_model, batch=size)
                return asked
    return asked


def _questions(candidate: ServedModel) -> list[tuple[ServedVariant, Tensors, range, bool]]:
    """Each variant with its input and batch sizes: those that are sent, of all variants, before those joined."""
    questions = []
    for variant in candidate.variants.values():
        if variant.state is not State.READY or variant.plan is None:
            continue
        singles = _neutral(candidate.spec, variant.plan)
        sent = max(1, min(variant.max_batch, candidate.spec.inference.batch_size))
        questions.append((variant, singles, range(1, sent + 1), False))
        questions.append((variant, singles, range(sent + 1, min(variant.max_batch, JOINED) + 1), True))
    return sorted(questions, key=lambda question: question[-1])


async def _ask(variant: ServedVariant, inputs: Tensors, size: int, server: InferenceServer, until: float) -> None:
    """One request; raises BackendTimeout too."""
    left = until - time.monotonic()
    if left <= 0:
        raise BackendTimeout("no time was left")
    request = InferRequest(
        model=variant.triton_model,
        inputs=inputs,
        outputs=tuple(dict.fromkeys(output.tensor for output in variant.outputs.values())),
        timeout_s=left,
        version=variant.version if variant.pinned else "",
        warm_up=True,
    )
    try:
        answer = await server.infer(request)
    except (BackendUnavailable, ModelUnavailable, BackendTimeout):
        raise
    except SnapshotError as error:
        raise _failed(variant, size, error.message, error.fix) from error
    for output in variant.outputs.values():
        shape = answer.outputs[output.tensor].shape
        if output.batch_axis and shape[:1] != (size,):
            text = f"output '{output.tensor}' has the shape {list(shape)}"
            raise _failed(variant, size, text, "Export the model so that it answers each picture of a batch")


def _failed(variant: ServedVariant, size: int, reason: str, fix: str) -> ConfigError:
    where = f"Triton model '{variant.triton_model}'"
    return ConfigError(f"{variant.name} fails on a batch of {size}: {reason}", where=where, fix=fix)


def _neutral(spec: ModelSpec, plan: InputPlan | WindowPlan) -> Tensors:
    """What a grey picture, or mean readings, make of all inputs, with a batch axis of 1."""
    if isinstance(plan, WindowPlan):
        reading = spec.sensor.mean or (0.0,) * spec.sensor.channels
        readings = np.tile(np.array(reading, np.float64), (spec.sensor.window, 1))
        return dict(prepare_window(readings, spec.sensor, [plan])[plan].tensors)
    buffer = io.BytesIO()
    Image.new("RGB", SIDES, GREY).save(buffer, "PNG")
    prepared = prepare_picture(buffer.getvalue(), spec.preprocessing, [plan], SIDES[0] * SIDES[1])[plan]
    return {name: tensor[:1] for name, tensor in prepared.tensors.items()}


def _batch(singles: Tensors, size: int, variant: ServedVariant) -> Tensors:
    """The same input so many times; without the batch axis where the model has none."""
    extras = variant.plan.extras if isinstance(variant.plan, InputPlan) else ()
    bare = {extra.name for extra in extras if not extra.batch_axis}
    return {
        name: np.repeat(tensor, size, axis=0) if variant.max_batch and name not in bare else tensor[0]
        for name, tensor in singles.items()
    }
