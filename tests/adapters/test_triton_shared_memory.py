"""Input tensors through shared memory: read there by a server of our own, and by bytes whatever goes wrong with it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from gateway.adapters import triton_shared_memory
from gateway.adapters.memory_segment import PREFIX
from gateway.adapters.triton import TransferEvents, TritonServer
from gateway.adapters.triton_probe import TritonProbe
from gateway.adapters.triton_proof import CLOSE, distance
from gateway.adapters.triton_shared_memory import SMALLEST
from gateway.errors import BackendTimeout, BackendUnavailable
from gateway.messages import InferRequest, InferResponse
from tests.adapters.reading_triton import ReadingTriton
from tests.adapters.triton_wire import listening

FLOATS = np.dtype(np.float32)
SHAPE = (1, 3, 128, 64)
ROOM = 4 * 128 * 2**10
DEADLINE_S = 20.0


class Site:
    """A server, the gateway's side of it, and what was counted."""

    def __init__(self, url: str, triton: ReadingTriton, folder: Path) -> None:
        self.triton = triton
        self.folder = folder
        self.sent: Counter[str] = Counter()
        self.fell_back: Counter[str] = Counter()
        self.server = TritonServer(
            url,
            shared_memory_bytes=ROOM,
            shared_memory_folder=folder,
            transfers=TransferEvents(lambda way: self.sent.update([way]), lambda why: self.fell_back.update([why])),
        )
        self.asked = 0

    def tensor(self, shape: tuple[int, ...] = SHAPE, dtype: np.dtype[Any] = FLOATS) -> NDArray[Any]:
        """A tensor with content that no other one has."""
        self.asked += 1
        array = self.server.tensor(shape, dtype)
        array[...] = self.asked % 200
        return array

    async def ask(self, *arrays: NDArray[Any], timeout_s: float = DEADLINE_S) -> None:
        """Ask about these and check the answer."""
        inputs = {f"x{number}": array for number, array in enumerate(arrays or (self.tensor(),))}
        response = await self.server.infer(InferRequest("m", inputs, ("y",), timeout_s))
        said = float(np.mean([array.mean() for array in inputs.values()]))
        assert abs(response.outputs["y"][0] - said) < 1e-6 + self.triton.random

    async def prove(self) -> None:
        """Ask until requests go by memory."""
        await until(lambda: self.sent["shared_memory"] >= 1, self.ask)
        before = len(self.triton.by_memory)
        await until(lambda: len(self.triton.by_memory) > before + 1, self.ask)

    @property
    def files(self) -> list[Path]:
        return list(self.folder.glob(f"{PREFIX}*"))


async def until(condition: Callable[[], bool], step: Callable[[], Any] | None = None) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            if step is not None:
                await step()
            await asyncio.sleep(0.002)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with listening() as (wire, url):
        made = Site(url, ReadingTriton(wire, tmp_path), tmp_path)
        yield made
        made.triton.answers.set()
        made.triton.registers.set()
        await made.server.close()


async def test_the_first_answer_comes_by_bytes_and_what_is_proven_goes_by_memory(site: Site) -> None:
    with capture_logs() as logs:
        await site.ask()
        await site.prove()

    last = site.triton.by_memory[-1]
    assert not last.raw_input_contents
    assert last.ByteSize() < 300
    assert site.triton.registrations == 1
    assert site.fell_back["unproven"] == site.sent["bytes"] >= 2
    assert [line["event"] for line in logs] == ["Input tensors go to Triton through shared memory"]
    assert site.server.shared_memory_bytes <= ROOM


async def test_small_tensors_and_those_of_others_go_by_bytes_uncounted(site: Site) -> None:
    await site.ask(site.tensor((1, 8)))
    await site.ask(np.ones(SHAPE, np.float32))

    assert site.sent == {"bytes": 2}
    assert not site.fell_back
    assert not site.triton.registrations


@pytest.mark.parametrize("kind", ["float32", "float16", "uint8", "int8"])
async def test_every_type_is_read_as_it_was_written(site: Site, kind: str) -> None:
    await site.prove()
    await site.ask(site.tensor((2, 3, 128, 128), np.dtype(kind)))

    assert not site.triton.by_memory[-1].raw_input_contents


async def test_inputs_with_and_without_a_slot_go_together(site: Site) -> None:
    await site.prove()
    await site.ask(np.full((1, 2), 7, np.int32), site.tensor(), np.full((1, 2), 9, np.float16))

    sent = site.triton.by_memory[-1]
    assert [bool(tensor.parameters) for tensor in sent.inputs] == [False, True, False]
    assert len(sent.raw_input_contents) == 2


async def test_slices_of_a_batch_and_both_variants_refer_to_one_slot(site: Site) -> None:
    await site.prove()
    batch = site.tensor((4, 3, 64, 64))
    batch[2:] += 1
    await asyncio.gather(site.ask(batch), site.ask(batch), site.ask(batch[:2]), site.ask(batch[2:]))

    offsets = {
        (
            tensor.parameters["shared_memory_offset"].int64_param,
            tensor.parameters["shared_memory_byte_size"].int64_param,
        )
        for request in site.triton.by_memory[-4:]
        for tensor in request.inputs
    }
    start = min(offset for offset, _ in offsets)
    half = batch.nbytes // 2
    assert offsets == {(start, 2 * half), (start, half), (start + half, half)}


async def test_a_triton_that_has_restarted_loses_no_answer(site: Site) -> None:
    await site.prove()
    site.triton.restart()
    await asyncio.gather(*(site.ask() for _ in range(3)))
    assert site.fell_back["lost"] == 3

    before = len(site.triton.by_memory)
    await until(lambda: len(site.triton.by_memory) > before + 2, site.ask)
    assert site.triton.registrations == 2


async def test_an_answer_to_a_lost_region_comes_within_its_own_time(site: Site) -> None:
    await site.prove()
    site.triton.restart()
    site.triton.answers.clear()

    with pytest.raises(BackendTimeout):
        await site.ask(timeout_s=0.3)


async def test_a_triton_that_cannot_open_it_gets_bytes_and_it_is_said_once(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_shared_memory, "RETRY_S", 0.05)
    site.triton.folder = tmp_path / "elsewhere"
    with capture_logs() as logs:
        await until(lambda: site.triton.registrations > 2, site.ask)
    assert len(logs) == 1
    assert "Unable to open shared memory region" in logs[0]["reason"]
    assert PREFIX not in logs[0]["reason"]
    assert "/dev/shm" in logs[0]["fix"]
    assert set(site.sent) == {"bytes"}
    assert site.fell_back["unavailable"] > 0

    site.triton.folder = tmp_path
    with capture_logs() as logs:
        await site.prove()
    assert [line["event"] for line in logs] == ["Input tensors go to Triton through shared memory"]


async def test_one_that_cannot_be_read_takes_no_memory(site: Site, tmp_path: Path) -> None:
    site.triton.folder = tmp_path / "elsewhere"
    await until(lambda: site.fell_back["unavailable"] > 2, site.ask)

    assert site.triton.registrations == 1
    assert site.files == []
    assert site.server.shared_memory_bytes == 0


async def test_it_is_tried_at_once_when_triton_comes_back(site: Site, tmp_path: Path) -> None:
    site.triton.folder = tmp_path / "elsewhere"
    await until(lambda: site.fell_back["unavailable"] > 0, site.ask)
    site.triton.away = True
    with pytest.raises(BackendUnavailable):
        await site.ask()
    site.triton.away, site.triton.folder = False, tmp_path

    await site.prove()


async def test_a_triton_that_reads_something_else_is_never_believed(site: Site) -> None:
    site.triton.reads_zeros = True
    with capture_logs() as logs:
        await until(lambda: site.fell_back["unavailable"] > 2, site.ask)

    assert site.sent["shared_memory"] == 1
    assert "answers otherwise" in logs[0]["reason"]


async def test_a_model_that_answers_at_random_proves_it_too(site: Site) -> None:
    site.triton.random = True
    await site.prove()


async def test_where_it_is_full_tensors_go_by_bytes(site: Site) -> None:
    await site.prove()
    held = [site.tensor() for _ in range(ROOM // (128 * 2**10))]
    over = site.tensor()

    await site.ask(over)

    assert site.fell_back["full"] == 1
    assert site.server.shared_memory_slots == {"free": 0, "leased": len(held), "quarantined": 0}


async def test_a_tensor_that_can_never_fit_is_said_once(site: Site) -> None:
    await site.prove()
    with capture_logs() as logs:
        for _ in range(3):
            await site.ask(site.tensor((1, 3, 256, 256)))

    assert [line["log_level"] for line in logs] == ["warning"]
    assert (logs[0]["bytes"], logs[0]["max_bytes"]) == (4 * 3 * 256 * 256, ROOM)
    assert "SHARED_MEMORY_MAX_BYTES" in logs[0]["fix"]
    assert site.fell_back["full"] == 3


async def test_a_slot_rests_after_a_time_out(site: Site) -> None:
    await site.prove()
    site.triton.answers.clear()
    with pytest.raises(BackendTimeout):
        await site.ask(timeout_s=0.2)
    site.triton.answers.set()

    assert site.server.shared_memory_slots["quarantined"] == 1


async def test_a_slot_rests_after_a_cancellation(site: Site) -> None:
    await site.prove()
    site.triton.answers.clear()
    before = len(site.triton.by_memory)
    task = asyncio.create_task(site.ask())
    await until(lambda: len(site.triton.by_memory) > before)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    del task

    await until(lambda: site.server.shared_memory_slots["quarantined"] == 1)


async def test_a_restart_of_triton_ends_the_rest(site: Site) -> None:
    await site.prove()
    site.triton.answers.clear()
    with pytest.raises(BackendTimeout):
        await site.ask(timeout_s=0.2)
    site.triton.answers.set()
    site.triton.restart()

    await until(lambda: site.server.shared_memory_slots["quarantined"] == 0, site.ask)


async def test_what_another_triton_forgets_does_not_end_the_rest(site: Site) -> None:
    """Two behind one address: the one that may be reading knows the region when it is registered again."""
    await site.prove()
    site.triton.answers.clear()
    with pytest.raises(BackendTimeout):
        await site.ask(timeout_s=0.2)
    site.triton.answers.set()
    known = dict(site.triton.regions)
    site.triton.restart()
    await site.ask()
    assert site.fell_back["lost"] == 1
    site.triton.regions |= known
    await until(lambda: site.triton.registrations == 2, site.ask)
    await site.prove()

    assert site.server.shared_memory_slots["quarantined"] == 1


async def test_a_registration_without_an_answer_holds_nothing_up(site: Site) -> None:
    site.triton.registers.clear()
    for _ in range(10):
        await site.ask(timeout_s=2.0)
    assert site.fell_back == {"unproven": 10}

    site.triton.registers.set()
    await site.prove()


async def test_a_registration_that_breaks_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_shared_memory, "AGAIN_S", 0.01)
    register, broken = TritonServer._call_about_memory, [ZeroDivisionError()]

    async def call(self: TritonServer, method: str, request: Any, limit_s: float | None) -> Any:
        if broken:
            raise broken.pop()
        return await register(self, method, request, limit_s)

    monkeypatch.setattr(site.server._shared, "_call", call.__get__(site.server))
    with capture_logs():
        await site.prove()
    assert not broken


async def test_more_than_one_triton_behind_the_address_is_given_up(site: Site) -> None:
    site.triton.forgetful = True
    with capture_logs() as logs:
        await until(lambda: site.fell_back["unavailable"] > 0, site.ask)

    assert "again and again" in logs[-1]["reason"]


async def test_a_deleted_segment_goes_on_and_is_made_anew_after_a_restart_of_triton(site: Site) -> None:
    await site.prove()
    site.files[0].unlink()
    before = len(site.triton.by_memory)
    await site.ask()
    assert len(site.triton.by_memory) == before + 1

    site.triton.restart()
    with capture_logs() as logs:
        await site.prove()

    assert len(site.files) == 1
    assert "warning" not in {line["log_level"] for line in logs}


async def test_a_folder_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    async with listening() as (wire, url):
        site = Site(url, ReadingTriton(wire, tmp_path), tmp_path / "none")
        with capture_logs() as logs:
            for _ in range(3):
                await site.ask()
        await site.server.close()

    assert site.fell_back == {"unavailable": 3}
    assert len(logs) == 1
    assert "No such file" in logs[0]["reason"]


async def test_at_the_end_triton_forgets_it_and_no_file_stays(site: Site) -> None:
    await site.prove()
    name = site.files[0].name
    await site.server.close()

    assert site.triton.unregistered == [name]
    assert site.files == []


async def test_a_thread_that_is_about_to_make_it_leaves_no_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def look(_: Path) -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)

    monkeypatch.setattr(triton_shared_memory, "remove_leftovers", look)
    making = asyncio.create_task(asyncio.to_thread(site.tensor))
    await asyncio.to_thread(begun.wait)
    threading.Timer(0.05, go_on.set).start()
    await site.server.close()
    await making

    assert site.files == []


async def test_at_the_end_triton_keeps_what_it_may_be_reading(site: Site) -> None:
    await site.prove()
    site.triton.answers.clear()
    with pytest.raises(BackendTimeout):
        await site.ask(timeout_s=0.2)
    await site.server.close()

    assert site.triton.unregistered == []
    assert site.files == []


async def test_the_regions_of_gateways_that_are_gone_are_forgotten(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_shared_memory, "QUARANTINE_S", 0.3)
    dead, foreign = f"{PREFIX}dead", "somebody_else"
    for name in (dead, foreign):
        site.triton.regions[name] = None  # type: ignore[assignment]
    await site.prove()
    site.files[0].unlink()
    await until(lambda: bool(site.triton.unregistered))
    await site.ask()

    assert site.triton.unregistered == [dead]
    assert foreign in site.triton.regions


async def test_off_nothing_is_made(site: Site) -> None:
    server = TritonServer(site.server.url, shared_memory_folder=site.folder)
    array = server.tensor((SMALLEST,), FLOATS)
    array[...] = 1
    await server.infer(InferRequest("m", {"x": array}, ("y",), DEADLINE_S))
    await server.close()

    assert not site.triton.registrations
    assert site.files == []


async def test_the_doctor_finds_out_whether_it_can_be_read_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    probe = TritonProbe(site.server.url)
    assert await probe.memory_problem(ROOM, site.folder) == ""
    assert site.triton.regions == {}
    assert "MiB left" in await probe.memory_problem(2**60, site.folder)
    assert "No such file" in await probe.memory_problem(ROOM, tmp_path / "none")
    site.triton.folder = tmp_path / "elsewhere"
    assert "refuses it (Unable to open shared memory region)" in await probe.memory_problem(ROOM, site.folder)
    await probe.close()

    assert site.files == []


NUMBERS = np.array([1.0, np.nan, np.inf, -4.0])


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (NUMBERS, NUMBERS.copy(), True),
        (NUMBERS, NUMBERS * 1.0001, True),
        (NUMBERS, NUMBERS * 1.1, False),
        (NUMBERS, np.zeros(4), False),
        (NUMBERS, NUMBERS.reshape(2, 2), False),
        (NUMBERS, NUMBERS.astype(np.float32), False),
        (np.zeros(3), np.full(3, 1e-3), False),
        (np.array([True, False]), np.array([True, True]), False),
        (np.zeros((0, 4)), np.zeros((0, 4)), True),
        (np.array([2**60, 5]), np.array([2**60, 5]), True),
    ],
)
def test_answers_agree_when_only_rounding_keeps_them_apart(
    one: NDArray[Any], other: NDArray[Any], *, agree: bool
) -> None:
    apart = distance(InferResponse({"y": one}, "1"), InferResponse({"y": other}, "1"))

    assert (apart <= CLOSE) is agree
    assert distance(InferResponse({"y": one}, "1"), InferResponse({"z": one}, "1")) > CLOSE
