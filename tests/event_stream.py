"""Server-sent events as a test reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from tests.harness import TIMEOUT_S

Event = tuple[str, dict[str, Any]]


async def events(stream: httpx.Response) -> AsyncIterator[Event]:
    """Name and data of each event; comments have the name ""."""
    rest = b""
    async for chunk in stream.aiter_raw():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for text in whole:
            fields = dict(line.split(b": ", 1) for line in text.split(b"\n"))
            yield fields.get(b"event", b"").decode(), msgspec.json.decode(fields.get(b"data", b"{}"))


async def the_next(told: AsyncIterator[Event], name: str) -> dict[str, Any]:
    """The data of the next event of this name; fails after the usual deadline."""
    async with asyncio.timeout(TIMEOUT_S):
        async for found, data in told:
            if found == name:
                return data
    raise AssertionError(f"the stream has ended before any '{name}'")
