"""What the regression guard counts the instructions of: so many snapshots, one by one, through one of two paths.

`gateway` is the whole gateway on the in-memory broker and Triton, `script` the steps of the straightforward script.
`slower` is the gateway with one needless resize for each snapshot, to see that the guard sees it.
"""

import argparse
import asyncio
import io
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gateway.bench.frames import Feed, Frames
from gateway.bench.plan import Case
from gateway.logs import configure_logging
from gateway.testing import MemoryTriton
from tests.bench.straightforward import make_result, make_tensor, read_snapshot
from tests.flow.builders import SNAPSHOT_TOPIC, signature
from tests.harness import HELMET, sees, site, write_model

SIZE = 224
CASE = Case(size=SIZE)
WARM = 4


class Clock:
    """Says when the snapshots begin and end that count; to callgrind, which is four times as fast while it does not."""

    def __init__(self, *, callgrind: bool) -> None:
        self._callgrind = callgrind

    def begin(self) -> None:
        """From here on it counts."""
        self._set("on")

    def end(self) -> None:
        """What comes now does not count."""
        self._set("off")

    def _set(self, state: str) -> None:
        if self._callgrind:
            command = ["callgrind_control", f"--instr={state}", str(os.getpid())]
            subprocess.run(command, check=True, capture_output=True)


async def through_the_gateway(feed: Feed, count: int, clock: Clock, *, slower: bool = False) -> None:
    """Each is sent when the one before is answered, so that nothing depends on how fast the machine is."""
    triton = MemoryTriton()
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant, inputs=(-1, 3, SIZE, SIZE)), sees(HELMET))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), preprocessing={"resize": [SIZE, SIZE]})
        async with site(Path(folder), triton=triton) as place:
            viewer = place.broker.client("counting", ["edge-ai/+/+/+/ai/inference/vision"])
            watching = asyncio.create_task(viewer.run())
            answers = viewer.messages()
            for number in range(-WARM, count):
                if number == 0:
                    clock.begin()
                payload = feed.make(number + WARM).payload
                place.snapshot(payload)
                viewer.acknowledge(await anext(answers))
                if slower:
                    _resize_for_nothing(payload)
            clock.end()
            await viewer.close()
            await watching


def _resize_for_nothing(payload: bytes) -> None:
    _, jpeg = read_snapshot(payload)
    picture = Image.open(io.BytesIO(jpeg))
    picture.draft("RGB", (SIZE, SIZE))
    picture.resize((SIZE, SIZE))


def through_the_script(feed: Feed, count: int, clock: Clock) -> None:
    """All that the script does, but for the calls of its two clients."""
    outputs = {"onnx": np.zeros((1, 12), np.float32)}
    for number in range(-WARM, count):
        if number == 0:
            clock.begin()
        started = time.time()
        device, jpeg = read_snapshot(feed.make(number + WARM).payload)
        make_tensor(jpeg, SIZE, SIZE)
        make_result(device, outputs, started)
    clock.end()


def main() -> None:
    """Command line of the counted program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", choices=("gateway", "slower", "script"))
    parser.add_argument("count", type=int)
    parser.add_argument("frames", type=Path, help="folder of JPEGs")
    parser.add_argument("--callgrind", action="store_true")
    given = parser.parse_args()
    configure_logging("warning", "json")  # as in production, what is said of each snapshot is not written
    clock = Clock(callgrind=given.callgrind)
    jpegs = tuple(path.read_bytes() for path in sorted(given.frames.iterdir()))
    feed = Feed(CASE, Frames({CASE.resolution: jpegs}), SNAPSHOT_TOPIC, "detector")
    if given.path == "script":
        through_the_script(feed, given.count, clock)
    else:
        asyncio.run(through_the_gateway(feed, given.count, clock, slower=given.path == "slower"))


if __name__ == "__main__":
    main()
