"""What `edge-gateway watch --save` keeps: each message as a JSON file, and the picture of a result with its boxes."""

from __future__ import annotations

import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError
from gateway.messages import Message
from gateway.terminal.lines import parse_message
from gateway.terminal.threads import apart

MAX_PICTURES = 64
MAX_PICTURE_BYTES = 64 * 2**20
"""Pictures whose results have not come yet, and how many bytes of them, are kept in mind."""
SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"}
_NOT_IN_NAMES = re.compile(r"[^a-z0-9-]+")
_OURS = re.compile(r"(\d{8}T\d{6}-\d{6}-[a-z0-9-]+)\.(json|jpg|png|webp|bmp|tif|bin|part)")
"""The files that an album makes, and so may delete: time, number of the message within the second, kind."""

PictureOf = Callable[[Message], tuple[str, bytes] | None]
"""The result_id of a snapshot and its picture; None for a message that is none."""
Draw = Callable[[bytes, dict[str, Any]], bytes | None]
"""A picture with its result drawn into it, as JPEG; None where that cannot be done. Called outside the event loop."""


class Album:
    """The last `keep` messages in a folder; a picture stands beside the message of its result.

    What another run has left there counts. A write that fails ends the saving with one line, not the watching.
    """

    def __init__(self, folder: Path, keep: int, picture_of: PictureOf, draw: Draw | None = None) -> None:
        """Without `draw` pictures are kept as they came. Raises ConfigError for a folder that cannot be used."""
        self._folder = folder
        self._keep = keep
        self._picture_of = picture_of
        self._draw = draw
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._number = 0
        self.failure = ""
        """Why nothing more is saved; empty while all goes well."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = {found[1] for path in folder.iterdir() if (found := _OURS.fullmatch(path.name))}
        except OSError as error:
            fix = "Name a folder that can be written"
            raise ConfigError(f"nothing can be saved there: {error.strerror}", where=str(folder), fix=fix) from error
        self._names = deque(sorted(names))

    async def see(self, message: Message, kind: str | None) -> str:
        """Keep a message of the gateway, or in mind the picture of a snapshot (`kind` None).

        Returns what there is to say of it: that nothing more is saved, once.
        """
        if self.failure:
            return ""
        if kind is None:
            self._remember(message)
            return ""
        try:
            await apart(lambda: self._save(message, kind))
        except OSError as error:
            self.failure = f"Nothing more is saved in {self._folder}: {error.strerror or error}"
        return self.failure

    def _remember(self, message: Message) -> None:
        found = self._picture_of(message)
        if found is None:
            return
        result_id, picture = found
        self._bytes += len(picture) - len(self._pictures.pop(result_id, b""))
        self._pictures[result_id] = picture
        while len(self._pictures) > MAX_PICTURES or self._bytes > MAX_PICTURE_BYTES:
            self._bytes -= len(self._pictures.popitem(last=False)[1])

    def _save(self, message: Message, kind: str) -> None:
        body = parse_message(message.payload) or {}
        self._number = (self._number + 1) % 1_000_000
        words = [_NOT_IN_NAMES.sub("-", str(word)[:60].lower()) for word in (kind, body.get("device_id") or "")]
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{self._number:06}-{'-'.join(filter(None, words)) or 'message'}"
        self._names.append(name)
        while len(self._names) > self._keep:
            self._forget(self._names.popleft())
        self._write(f"{name}.json", message.payload)
        picture = self._picture(body) if kind == "ai_inference_result" else None
        if picture is not None:
            drawn = None if self._draw is None else self._draw(picture, body)
            kept = picture if drawn is None else drawn
            suffix = next((suffix for head, suffix in SUFFIXES.items() if kept.startswith(head)), ".bin")
            self._write(name + suffix, kept)

    def _picture(self, body: dict[str, Any]) -> bytes | None:
        picture = self._pictures.pop(str(body.get("result_id")), None)
        self._bytes -= len(picture or b"")
        return picture

    def _write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        temporary = path.with_suffix(".part")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _forget(self, name: str) -> None:
        for suffix in (".json", *dict.fromkeys(SUFFIXES.values()), ".bin", ".part"):
            (self._folder / (name + suffix)).unlink(missing_ok=True)
