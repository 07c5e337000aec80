"""Versions of a model beside each other, held by the memory server and by the real Triton alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest

from gateway.adapters.triton import TritonServer
from gateway.errors import ModelUnavailable
from gateway.local.tritonserver import EmbeddedTriton
from gateway.ports import InferenceServer
from tests import triton_models as models
from tests.contract.conftest import BROKEN
from tests.contract.inference_servers import ROWS, Controls, ask, until

MODEL = "times"
CONFIG = models.config_text(models.times_signature(MODEL, 1))
IN_FLIGHT = 4


@asynccontextmanager
async def traffic(server: InferenceServer, version: str = "") -> AsyncIterator[list[str]]:
    """Requests without a pause, several at once; gives the versions that answered, raises what failed."""
    versions: list[str] = []

    async def keep_asking() -> None:
        while True:
            versions.append((await server.infer(ask(MODEL, version=version))).model_version)
            await asyncio.sleep(0.001)

    askers = [asyncio.create_task(keep_asking()) for _ in range(IN_FLIGHT)]
    try:
        yield versions
    finally:
        for asker in askers:
            asker.cancel()
        for asker in askers:
            with suppress(asyncio.CancelledError):
                await asker


async def until_heard(answered: list[str], version: str) -> None:
    """Return when the traffic has been answered by a version."""

    async def heard() -> bool:
        return version in answered

    await until(heard)


async def answers(server: InferenceServer, versions: Sequence[int]) -> None:
    """Each version answers for itself, and no version means the highest."""
    assert await server.serving(MODEL) == tuple(versions)
    for version in versions:
        response = await server.infer(ask(MODEL, version=str(version)))
        assert response.model_version == str(version)
        np.testing.assert_array_equal(response.outputs["y__0"], ROWS * version)
    assert (await server.infer(ask(MODEL))).model_version == str(max(versions))


async def test_a_version_comes_beside_takes_over_and_goes_back(server: InferenceServer) -> None:
    await server.load(MODEL, (1,), CONFIG)
    async with traffic(server) as answered:
        await until_heard(answered, "1")
        await server.load(MODEL, (1, 2), CONFIG)
        await answers(server, (1, 2))
        await until_heard(answered, "2")
        await server.load(MODEL, (2,), CONFIG)
        await answers(server, (2,))
        with pytest.raises(ModelUnavailable):
            await server.infer(ask(MODEL, version="1"))
        await server.load(MODEL, (1,), CONFIG)
        await answers(server, (1,))
        answered.clear()
        await until_heard(answered, "1")


async def test_what_is_loaded_is_not_loaded_again(server: InferenceServer) -> None:
    await server.load(MODEL, (1,), CONFIG)
    for _ in range(3):
        await server.infer(ask(MODEL, version="1"))
    await until_counted(server, 3)
    before = await server.statistics(MODEL)
    for versions in ((1,), (1, 2), (2, 1, 2)):
        await server.load(MODEL, versions, CONFIG)

    assert (await server.statistics(MODEL)).success_count == before.success_count
    assert await server.serving(MODEL) == (1, 2)


async def until_counted(server: InferenceServer, count: int) -> None:
    """Triton answers first and counts afterwards."""

    async def counted() -> bool:
        return (await server.statistics(MODEL)).success_count >= count

    await until(counted)


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ((1, BROKEN), f"version {BROKEN}: .*cannot read the model"),
        ((BROKEN,), f"version {BROKEN}: .*cannot read the model"),
        ((1, 9), "version 9: not in the model's folder"),
        ((8, 9), "version 8, 9: not in the model's folder"),
        ((2, 9), "version 9: not in the model's folder"),
        ((1, 2, 9), "version 9: not in the model's folder"),
    ],
    ids=["beside", "instead", "missing beside", "missing instead", "one missing instead", "one missing beside"],
)
async def test_a_version_that_cannot_be_loaded_changes_nothing(
    server: InferenceServer, versions: tuple[int, ...], reason: str
) -> None:
    await server.load(MODEL, (1,), CONFIG)
    async with traffic(server, "1"):
        with pytest.raises(ModelUnavailable, match=reason) as refused:
            await server.load(MODEL, versions, CONFIG)
        await answers(server, (1,))

    assert refused.value.fix
    assert f"'{MODEL}'" in refused.value.where
    assert "\n" not in str(refused.value)


async def test_nothing_stays_of_a_first_load_that_lacks_a_version(server: InferenceServer) -> None:
    await server.unload(MODEL)
    with pytest.raises(ModelUnavailable, match="version 9"):
        await server.load(MODEL, (1, 9), CONFIG)

    assert await server.serving(MODEL) == ()


async def test_an_unloaded_model_is_gone_and_counts_anew(server: InferenceServer) -> None:
    await server.load(MODEL, (1,), CONFIG)
    await server.infer(ask(MODEL))
    await server.unload(MODEL)

    assert await server.serving(MODEL) == ()
    for call in (server.infer(ask(MODEL)), server.describe(MODEL, 1), server.statistics(MODEL)):
        with pytest.raises(ModelUnavailable):
            await call
    await server.unload(MODEL)
    await server.unload("nowhere")
    await server.load(MODEL, (1,), CONFIG)
    fresh = await server.statistics(MODEL)
    assert (fresh.success_count, fresh.last_inference_at) == (0, None)


async def test_a_request_that_runs_outlives_the_unload(server: InferenceServer) -> None:
    await server.load(MODEL, (1,), CONFIG)
    running = [asyncio.create_task(server.infer(ask(MODEL, version="1"))) for _ in range(20)]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    await server.unload(MODEL)

    for result in await asyncio.gather(*running, return_exceptions=True):
        # What had not yet arrived finds no model; nothing ends in the middle.
        assert isinstance(result, ModelUnavailable) or list(getattr(result, "outputs", ())) == ["y__0"]


async def test_each_version_has_its_signature(server: InferenceServer) -> None:
    await server.load(MODEL, (1, 2), CONFIG)

    for version in (1, 2):
        described = await server.describe(MODEL, version)
        assert replace(described, on_gpu=None) == models.times_signature(MODEL, version)
    assert (await server.describe(MODEL)).version == "2"
    with pytest.raises(ModelUnavailable):
        await server.describe(MODEL, 7)


async def test_a_model_without_a_configuration(server: InferenceServer) -> None:
    await server.unload("bare")
    await server.load("bare")
    assert await server.serving("bare") == (2,)  # Triton's own rule: the latest
    await server.load("bare", (1,))
    assert await server.serving("bare") == (1,)
    await server.load("bare")  # what was asked for holds until something changes
    assert await server.serving("bare") == (1,)

    np.testing.assert_array_equal((await server.infer(ask("bare"))).outputs["y__0"], ROWS)


async def test_gpu_memory_is_known_or_none(server: InferenceServer) -> None:
    memory = await server.gpu_memory()

    assert memory is None or 0 <= memory.used <= memory.total
    await server.close()
    assert await server.gpu_memory() is None


async def test_a_frozen_server_does_not_pass_for_a_missing_version(server: InferenceServer, controls: Controls) -> None:
    await server.load(MODEL, (1,), CONFIG)
    controls.freeze()
    try:
        loading = asyncio.create_task(server.load(MODEL, (1, 2), CONFIG))
        done, _ = await asyncio.wait([loading], timeout=0.2)
        assert not done
    finally:
        controls.thaw()
    await loading

    await answers(server, (1, 2))


@pytest.mark.triton
@pytest.mark.parametrize("versions", [(1,), (1, 2)])
async def test_a_version_whose_process_has_crashed_is_loaded_again(
    triton: EmbeddedTriton, versions: tuple[int, ...]
) -> None:
    last = str(versions[-1])
    server = TritonServer(triton.grpc_url)

    async def fails() -> bool:  # Triton runs a version in two processes and asks them by turns
        try:
            await server.infer(ask(MODEL, version=last))
        except ModelUnavailable as error:
            return "process of the model has ended" in error.message
        return False

    try:
        await server.load(MODEL, versions, CONFIG)
        backends_of(triton, last)[0].kill()
        await until(fails)
        assert await server.serving(MODEL) == versions[:-1]
        await server.load(MODEL, versions, CONFIG)
        await answers(server, versions)
        async with traffic(server, last) as answered:
            await until_heard(answered, last)
    finally:
        await server.close()


def backends_of(triton: EmbeddedTriton, version: str) -> list[psutil.Process]:
    """The processes that run a version."""
    found = []
    for process in psutil.Process(triton.pid).children():
        with suppress(psutil.ZombieProcess):  # Triton leaves behind what has crashed before
            if any(f"/{MODEL}/{version}/" in word for word in process.cmdline()):
                found.append(process)
    return found
