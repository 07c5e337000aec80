"""The file in which answers wait: what it keeps, whom it refuses, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.spool import Spool, SpoolFailed, SpoolFull, spool_file
from gateway.adapters.spool_inspection import waiting_in
from gateway.errors import ConfigError
from gateway.messages import Publication
from tests.adapters.full_disk import small_files

MAX_BYTES = 2**20
NewSpool = Callable[..., Spool]


@pytest.fixture
async def new_spool(tmp_path: Path) -> AsyncIterator[NewSpool]:
    """Opens one in the test's folder; all are closed at the end."""
    spools: list[Spool] = []

    def new(gateway_id: str = "gw", max_bytes: int = MAX_BYTES, *, opened: bool = True) -> Spool:
        spool = Spool(tmp_path / "spool", gateway_id, max_bytes)
        spools.append(spool)
        if opened:
            spool.open()
        return spool

    yield new
    for spool in spools:
        await spool.close()


def answer(number: int, size: int = 10) -> tuple[str, Publication]:
    body = b'{"n":%d,"_":"%s"}' % (number, b"x" * size)
    properties = (("type", "ai_inference_result"), ("id", f"event-{number}"))
    return f"event-{number}", Publication("out", body, 1, False, "application/json", b"\x00id", properties)


async def taken_out(spool: Spool) -> list[Publication]:
    """All that is in it, oldest first; it is empty then."""
    found = []
    while (kept := await spool.oldest()) is not None:
        found.append(kept.publication)
        await spool.delete([kept.number])
    return found


async def all_of(spool: Spool, *put: tuple[str, Publication]) -> list[Publication]:
    """Open it, put these, take out all that is in it."""
    spool.open()
    try:
        await spool.put(put)
        return await taken_out(spool)
    finally:
        await spool.close()


async def test_what_was_put_comes_back_oldest_first_after_a_restart(new_spool: NewSpool) -> None:
    first = new_spool()
    await first.put([answer(1), answer(2)])
    await first.put([answer(3)])
    assert first.count == 3
    await first.close()
    again = new_spool()
    assert again.count == 3
    assert await taken_out(again) == [publication for _, publication in map(answer, (1, 2, 3))]
    assert again.count == 0


async def test_an_event_is_kept_once_a_topic(new_spool: NewSpool) -> None:
    spool = new_spool()
    event, publication = answer(1)
    (number,) = await spool.put([(event, publication)])
    copy = Publication("elsewhere", publication.payload)
    again, beside = await spool.put([(event, publication), (event, copy)])
    assert (again == number, beside > number) == (True, True)
    assert spool.count == 2
    await spool.forget(event, "elsewhere")
    await spool.forget("unknown", "out")
    assert spool.count == 1
    assert await taken_out(spool) == [publication]


async def test_its_files_never_exceed_the_bound_and_an_empty_one_gives_the_disk_back(new_spool: NewSpool) -> None:
    spool = new_spool()
    folder = spool.file.parent

    def on_disk() -> int:
        return sum(file.stat().st_size for file in folder.iterdir())

    empty = on_disk()
    for round_ in range(3):
        number = 0
        with contextlib.suppress(SpoolFull):
            while number < 1000:
                await spool.put([answer(1000 * round_ + number + each, 5000) for each in range(3)])
                number += 3
                assert on_disk() <= MAX_BYTES
        assert number < 1000, "it is bounded"
        assert number * 5000 > MAX_BYTES / 3, "the room is used"
        while (kept := await spool.oldest()) is not None and number > 5:
            await spool.delete([kept.number])
            number -= 1
            assert on_disk() <= MAX_BYTES
    await taken_out(spool)
    assert on_disk() <= empty + 20_000
    assert spool.bytes == on_disk()


async def test_only_its_owner_can_read_it(new_spool: NewSpool) -> None:
    before = os.umask(0)
    try:
        spool = new_spool()
        await spool.put([answer(1)])
    finally:
        os.umask(before)
    assert stat.S_IMODE(spool.file.parent.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in spool.file.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes


async def test_gateways_share_a_folder_but_not_an_id(new_spool: NewSpool) -> None:
    first, other = new_spool("gw"), new_spool("gw 2/ä" * 40)
    with pytest.raises(ConfigError, match="'gw'") as error:
        new_spool("gw")
    assert "GATEWAY_ID" in error.value.fix
    await first.put([answer(1)])
    assert await other.oldest() is None
    await first.close()
    assert new_spool("gw").count == 1


async def test_what_waits_is_counted_from_outside_without_disturbing_the_gateway(
    new_spool: NewSpool, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    assert waiting_in(folder, "gw") == 0
    assert not folder.exists()
    spool = new_spool()
    await spool.put([answer(1), answer(2)])
    assert waiting_in(folder, "gw") is None, "it runs"
    await spool.close()
    assert waiting_in(folder, "gw") == 2
    spool.file.write_bytes(b"not a database at all" * 500)
    with pytest.raises(SpoolFailed):
        waiting_in(folder, "gw")


async def test_a_file_of_a_later_version_is_left_alone(new_spool: NewSpool, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    file = spool_file(tmp_path / "spool", "gw")
    with sqlite3.connect(file) as database:
        database.execute("pragma user_version = 2")
    database.close()
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="later version"):
        new_spool()
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["no database", "pages", "cut off"])
async def test_a_damaged_file_is_set_aside(new_spool: NewSpool, damage: str) -> None:
    first = new_spool()
    await first.put([answer(number, 3000) for number in range(50)])
    await first.close()
    content = bytearray(first.file.read_bytes())
    if damage == "no database":
        content[:] = b"not a database at all" * 500
    elif damage == "pages":
        content[8192:] = os.urandom(len(content) - 8192)
    else:
        del content[len(content) // 2 :]
    first.file.write_bytes(content)
    again = new_spool()
    assert again.count == 0
    await again.put([answer(1)])
    assert len(await taken_out(again)) == 1
    assert [file for file in again.file.parent.iterdir() if ".damaged-" in file.name]


async def test_a_file_that_is_damaged_while_it_is_open_is_set_aside_too(new_spool: NewSpool) -> None:
    spool = new_spool()
    for number in range(100):
        await spool.put([answer(number, 5000)])
    size = spool.file.stat().st_size
    with spool.file.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(SpoolFailed) as failure:
        await taken_out(spool)
    assert failure.value.lost
    assert [file for file in spool.file.parent.iterdir() if ".damaged-" in file.name]
    await spool.put([answer(1)])
    assert spool.count == 1


@pytest.mark.parametrize("how", ["damaged", "removed"])
async def test_what_a_passing_failure_left_behind_is_reported_and_no_number_comes_again(
    new_spool: NewSpool, how: str
) -> None:
    """Or whoever waits for number 1 would be told of the next number 1."""
    spool = new_spool()
    before = await spool.put([answer(1), answer(2)])
    with small_files(4000), pytest.raises(SpoolFailed) as passing:
        await spool.put([answer(3, 20_000)])
    assert (passing.value.lost, spool.is_open) == (False, False)
    for file in spool.file.parent.glob("*.sqlite3*"):
        file.unlink()
    if how == "damaged":
        spool.file.write_bytes(b"what a bad disk leaves" * 500)
    with pytest.raises(SpoolFailed) as failure:
        await spool.oldest()
    assert failure.value.lost, "and only once"
    after = await spool.put([answer(1), answer(4)])
    assert min(after) > max(before)
    await spool.delete(before)
    await spool.delete_oldest(max(before))
    kept = await spool.oldest(max(before))
    assert kept is not None
    assert (kept.number, spool.count) == (after[0], 2)


async def test_a_disk_that_does_not_work_is_said_and_tried_again(tmp_path: Path, new_spool: NewSpool) -> None:
    in_the_way = tmp_path / "spool"
    in_the_way.write_text("a file where the folder should be")
    spool = new_spool(opened=False)
    with pytest.raises(SpoolFailed):
        spool.open()
    with pytest.raises(SpoolFailed):
        await spool.put([answer(1)])
    in_the_way.unlink()
    await spool.put([answer(1)])
    assert spool.is_open
    assert spool.count == 1


async def test_a_full_disk_fails_and_loses_nothing_that_was_there(new_spool: NewSpool) -> None:
    spool = new_spool(max_bytes=2**30)
    await spool.put([answer(number, 3000) for number in range(10)])
    with small_files(300_000), pytest.raises(SpoolFailed) as failure:
        await spool.put([answer(100 + number, 5000) for number in range(500)])
    assert not failure.value.lost
    await spool.put([answer(99)])
    assert spool.count == 11
    assert len(await taken_out(spool)) == 11


def test_what_was_put_survives_kill_9(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from gateway.adapters.spool import Spool
from gateway.messages import Publication
async def main():
    spool = Spool(Path({str(tmp_path / "spool")!r}), "gw", {MAX_BYTES})
    spool.open()
    for number in range(1000):
        await spool.put([(str(number), Publication("out", b"%d" % number))])
        print(number, flush=True)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(40)]
        finally:
            child.kill()
    found = asyncio.run(all_of(Spool(tmp_path / "spool", "gw", MAX_BYTES)))
    assert [publication.payload for publication in found][: len(said)] == [line.strip().encode() for line in said]


@given(topic=st.text(max_size=50), payload=st.binary(max_size=300), pairs=st.lists(st.tuples(st.text(), st.text())))
def test_anything_that_can_be_published_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, topic: str, payload: bytes, pairs: list[tuple[str, str]]
) -> None:
    try:
        "".join([topic, *(part for pair in pairs for part in pair)]).encode()
    except UnicodeEncodeError:
        return
    spool = Spool(tmp_path_factory.mktemp("spool"), "gw", MAX_BYTES)
    publication = Publication(topic, payload, 1, False, None, None, tuple(pairs))
    assert asyncio.run(all_of(spool, ("event", publication))) == [publication]
