"""A whole gateway in memory, in a thread of its own, for tests that talk to it as strangers do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gateway.testing import MemoryTriton
from tests.flow.builders import signature
from tests.harness import HELMET, Site, sees, site, until, write_model

TOKEN = "s3cret-of-the-fuzzer"
COMMAND_TOPIC = "edge-ai/default/default/test/ai/commands/models"
START_LIMIT_S = 30.0

T = TypeVar("T")


@dataclass
class HttpSite:
    """The running site; look into it by `look` alone, for it lives in another thread."""

    place: Site
    port: int
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return f"http://127.0.0.1:{self.port}"

    def look(self, read: Callable[[Site], T]) -> T:
        """What `read` finds, in the site's own thread."""

        async def there() -> T:
            return read(self.place)

        return asyncio.run_coroutine_threadsafe(there(), self.loop).result(START_LIMIT_S)


def at_rest(place: Site) -> bool:
    """Whether the first version has come into service, and the gateway has said all that there is to say of it."""
    said = place.of("ai_model")
    rollout = said[-1]["rollout"] if said else None
    return bool(rollout and rollout["ended_at"] and said[-1]["status"] == "serving" and said[-1]["version"] == 1)


@contextlib.contextmanager
def http_site(folder: Path, **environment: Any) -> Iterator[HttpSite]:
    """A gateway with a token that serves version 1 of `detector` and is commanded over HTTP and MQTT."""
    models, triton = folder / "models", MemoryTriton()
    write_model(models)
    for variant in ("detector-onnx", "detector-torch"):
        triton.add_model(signature(variant), sees(HELMET))
        (models / variant / "1").mkdir(parents=True)
        (models / variant / "1" / "model.onnx").write_text(variant)
    (folder / "token").write_text(TOKEN)
    given = {
        "api_token_file": folder / "token",
        "mqtt_command_topics": COMMAND_TOPIC,
        "drop_quiet_s": 0.1,
        **environment,
    }
    up, stop = threading.Event(), asyncio.Event()
    found: list[HttpSite] = []

    async def run() -> None:
        async with site(models, triton=triton, **given) as place:
            await until(lambda: at_rest(place), "the end of the first rollout")
            found.append(HttpSite(place, place.gateway.http_port, asyncio.get_running_loop()))
            up.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="the gateway's")
    thread.start()
    try:
        assert up.wait(START_LIMIT_S), "the gateway does not start"
        yield found[0]
    finally:
        if found:
            found[0].loop.call_soon_threadsafe(stop.set)
        thread.join(START_LIMIT_S)
