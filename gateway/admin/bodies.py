"""Bodies of requests with pictures: read out of forms, and bounded, each of them and all together."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import PayloadInvalid, PayloadTooLarge, QueueFull

MAX_PARTS = 16
"""Parts of a form that are looked at for the picture."""
MAX_OTHER_PART = 65_536
"""Bytes of a part that is not the picture."""


class Room:
    """The bytes of all bodies that are held, from their first piece to their answer."""

    def __init__(self) -> None:
        self._held = 0

    @contextlib.contextmanager
    def share(self, limit: int) -> Iterator[Callable[[int], None]]:
        """Something to ask for more bytes; raises QueueFull beyond `limit` of all. What was taken is given back."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._held + count > limit:
                fix = "Try again, or send pictures over MQTT, where they may wait"
                raise QueueFull(f"all pictures that come at once have more than {limit} bytes", fix=fix)
            self._held += count
            mine += count

        try:
            yield take
        finally:
            self._held -= mine


async def read_body(request: web.Request, limit: int, take: Callable[[int], None]) -> bytes:
    """The picture or JSON of a request, out of a form if need be.

    `take` is asked for the room of each piece. Raises PayloadTooLarge, PayloadInvalid and QueueFull.
    """
    if request.content_length is not None and request.content_length > limit + 4096:
        raise PayloadTooLarge(f"the body has {request.content_length} bytes, the limit is {limit}")
    if not request.content_type.startswith("multipart/"):
        return await _read(request.content.read, limit, take)
    try:
        return await _picture_of(await request.multipart(), limit, take)
    except (ValueError, AssertionError, HttpProcessingError) as error:
        raise PayloadInvalid("the form cannot be read", fix="Send multipart/form-data with a part `image`") from error


async def _picture_of(form: MultipartReader, limit: int, take: Callable[[int], None]) -> bytes:
    """The first part that is a picture by its name; one within another, or behind many others, is not looked for."""
    for _ in range(MAX_PARTS):
        part = await form.next()
        if not isinstance(part, BodyPartReader):
            break
        if part.filename or part.name in ("image", "file"):
            return await _read(part.read_chunk, limit, take)
        await _read(part.read_chunk, MAX_OTHER_PART, take)
    raise PayloadInvalid("the form has no picture", fix="Send it as the part `image`: curl -F image=@picture.jpg")


async def _read(read: Callable[[int], Awaitable[bytes]], limit: int, take: Callable[[int], None]) -> bytes:
    body = bytearray()
    while chunk := await read(65_536):
        if len(body) + len(chunk) > limit:
            raise PayloadTooLarge(f"the body has more than {limit} bytes")
        take(len(chunk))
        body += chunk
    return bytes(body)
