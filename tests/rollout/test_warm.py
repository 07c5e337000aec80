"""Every batch size is asked before snapshots come; what fails says with which one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.errors import BackendRejected, BackendUnavailable, ConfigError, ModelUnavailable
from gateway.layouts.binding import BoundOutput
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.catalog import ServedModel, ServedVariant, State
from gateway.models.input_plan import ExtraInput, InputPlan, WindowPlan
from gateway.models.spec import ModelSpec
from gateway.rollout.warm import ROUNDS, warm
from gateway.testing import MemoryTriton
from tests.flow.builders import sensor_spec, served, signature, spec

Arrays = Mapping[str, NDArray[Any]]


def one_each(inputs: Arrays) -> Arrays:
    """An empty answer to each picture."""
    return {"output0": np.zeros((len(inputs["images"]), 7, 10), np.float32)}


async def candidate(
    triton: MemoryTriton, *, max_batch: int = 4, model: ModelSpec | None = None, answer: Any = one_each, **more: Any
) -> ServedModel:
    """Version 2 of a detector with two variants, loaded."""
    made = served(model)
    for variant in made.variants.values():
        drop = replace(signature(variant.triton_model), version="2", max_batch_size=max_batch)
        triton.add_model(drop, answer, **more)
        await triton.load(variant.triton_model)
    variants = {
        name: replace(variant, version="2", pinned=True, max_batch=max_batch) for name, variant in made.variants.items()
    }
    return replace(made, variants=variants, version=2)


def asked(triton: MemoryTriton) -> list[tuple[str, int]]:
    """Model and batch size of each request, rounds counted once."""
    sizes = [(each.model.removeprefix("detector-"), len(each.inputs["images"])) for each in triton.requests]
    assert sizes[::ROUNDS] == sizes[ROUNDS - 1 :: ROUNDS]
    return sizes[::ROUNDS]


async def test_each_variant_is_asked_for_each_batch_size_what_is_sent_first() -> None:
    triton = MemoryTriton()
    count = await warm(await candidate(triton), triton, 30)
    assert asked(triton) == [
        ("onnx", 1),
        ("torch", 1),
        *(("onnx", n) for n in (2, 3, 4)),
        ("torch", 2),
        ("torch", 3),
        ("torch", 4),
    ]
    assert count == len(triton.requests)
    assert {each.version for each in triton.requests} == {"2"}
    assert all(each.warm_up for each in triton.requests)


@pytest.mark.parametrize(
    ("max_batch", "batch_size", "largest"), [(1, 1, 1), (2, 1, 2), (64, 1, 8), (64, 12, 12), (4, 12, 4)]
)
async def test_the_sizes_are_those_that_are_sent_and_those_that_may_be_joined(
    max_batch: int, batch_size: int, largest: int
) -> None:
    triton = MemoryTriton()
    model = spec(inference={"output": "yolov8", "batch_size": batch_size})
    await warm(await candidate(triton, max_batch=max_batch, model=model), triton, 30)
    assert sorted(size for name, size in asked(triton) if name == "onnx") == list(range(1, largest + 1))


async def test_the_input_is_what_a_grey_picture_makes_of_it() -> None:
    triton = MemoryTriton()
    await warm(await candidate(triton), triton, 30)
    image = triton.requests[0].inputs["images"]
    assert (image.dtype.name, image.shape) == ("float32", (1, 3, 64, 64))
    assert np.allclose(image, 114 / 255, atol=0.01)


async def test_a_variant_that_does_not_serve_is_not_asked() -> None:
    triton = MemoryTriton()
    model = await candidate(triton)
    model = model.with_variant(replace(model.variants["torch"], state=State.ABSENT))
    await warm(model, triton, 30)
    assert {name for name, _ in asked(triton)} == {"onnx"}


@pytest.mark.parametrize(
    ("batch", "max_batch", "images"), [((), 0, [(3, 64, 64)]), ((-1,), 2, [(1, 3, 64, 64), (2, 3, 64, 64)])]
)
async def test_inputs_beside_the_picture_and_models_without_a_batch_axis(
    batch: tuple[int, ...], max_batch: int, images: list[tuple[int, ...]]
) -> None:
    triton, seen = MemoryTriton(), []

    def answer(inputs: Arrays) -> Arrays:
        seen.append((inputs["images"].shape, inputs["size"].shape, inputs["size"].dtype.name))
        return {"output0": np.zeros((*inputs["images"].shape[:-3], 7, 10), np.float32)}

    inputs = (TensorSpec("images", "FP32", (*batch, 3, 64, 64)), TensorSpec("size", "INT64", (2,)))
    outputs = (TensorSpec("output0", "FP32", (*batch, 7, 10)),)
    triton.add_model(ModelSignature("detector-onnx", "2", inputs, outputs), answer)
    await triton.load("detector-onnx")
    model = served()
    plan = InputPlan("images", 64, 64, extras=(ExtraInput("size", "input_width_height", "INT64", batch_axis=False),))
    output = {"output": BoundOutput("output0", batch_axis=bool(batch))}
    variant = replace(model.variants["onnx"], version="2", plan=plan, outputs=output, max_batch=max_batch)
    await warm(replace(model, variants={"onnx": variant}), triton, 30)
    assert seen[::ROUNDS] == [(shape, (2,), "int64") for shape in images]


async def test_a_model_on_plain_numbers_gets_mean_readings() -> None:
    triton = MemoryTriton()
    tensors = (TensorSpec("x", "FP32", (-1, 4, 2)),), (TensorSpec("y", "FP32", (-1, 4, 2)),)
    triton.add_model(ModelSignature("t", "1", *tensors, 2), lambda inputs: {"y": inputs["x"]})
    await triton.load("t")
    variant = ServedVariant("onnx", "t", State.READY, plan=WindowPlan("x", (4, 2)), max_batch=2,
                            outputs={"reconstruction": BoundOutput("y", batch_axis=True)})  # fmt: skip
    model = sensor_spec(sensor={"window": 4, "channels": 2, "mean": [20, 1], "std": [2, 3]})
    await warm(ServedModel(model, ("normal", "anomaly"), {"onnx": variant}), triton, 30)
    assert [each.inputs["x"].shape for each in triton.requests[::ROUNDS]] == [(1, 4, 2), (2, 4, 2)]
    assert not triton.requests[0].inputs["x"].any()


def fails_on(size: int) -> Any:
    def answer(inputs: Arrays) -> Arrays:
        if len(inputs["images"]) == size:
            raise BackendRejected("out of memory", fix="Use a smaller batch")
        return one_each(inputs)

    return answer


async def test_what_fails_says_variant_and_batch_size() -> None:
    triton = MemoryTriton()
    model = await candidate(triton, answer=fails_on(3))
    with pytest.raises(ConfigError) as caught:
        await warm(model, triton, 30)
    assert caught.value.message == "onnx fails on a batch of 3: out of memory"
    assert (caught.value.where, caught.value.fix) == ("Triton model 'detector-onnx'", "Use a smaller batch")


async def test_a_model_that_answers_a_batch_as_one_is_refused() -> None:
    triton = MemoryTriton()
    model = await candidate(triton, answer=lambda _inputs: {"output0": np.zeros((1, 7, 10), np.float32)})
    with pytest.raises(ConfigError, match=r"onnx fails on a batch of 2: output 'output0' has the shape \[1, 7, 10\]"):
        await warm(model, triton, 30)


async def test_a_model_that_does_not_answer_in_time_is_refused() -> None:
    triton = MemoryTriton()
    model = await candidate(triton, latency_s=60.0)
    with pytest.raises(ConfigError, match=r"onnx fails on a batch of 1: no answer within 0.1 s"):
        await warm(model, triton, 0.1)


async def test_when_the_time_runs_out_only_sizes_that_may_be_joined_are_left_out() -> None:
    triton = MemoryTriton()

    def answer(inputs: Arrays) -> Arrays:
        if len(inputs["images"]) == 2:
            triton.freeze()
        return one_each(inputs)

    model = await candidate(triton, answer=answer)
    assert await warm(model, triton, 1.0) == 2 * ROUNDS + 1
    assert {size for _, size in ((each.model, len(each.inputs["images"])) for each in triton.requests)} == {1, 2}


async def test_a_triton_that_is_away_is_said_as_it_is() -> None:
    triton = MemoryTriton()
    model = await candidate(triton)
    triton.lose("detector-onnx")
    with pytest.raises(ModelUnavailable):
        await warm(model, triton, 30)
    triton.stop()
    with pytest.raises(BackendUnavailable):
        await warm(model, triton, 30)
