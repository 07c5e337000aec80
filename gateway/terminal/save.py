"""What `edge-gateway watch --save` keeps: each message as a JSON file, and the picture that a result is about."""

from __future__ import annotations

import re
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

from gateway.errors import ConfigError
from gateway.messages import Message
from gateway.terminal.lines import parse_message

MAX_PICTURES = 64
MAX_PICTURE_BYTES = 64 * 2**20
"""Pictures whose results have not come yet, and how many bytes of them, are kept in mind."""
SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp", b"II": ".tif", b"MM": ".tif"}
_NOT_IN_NAMES = re.compile(r"[^a-z0-9-]+")
_OURS = re.compile(r"(\d{8}T\d{6}-\d{6}-[a-z0-9-]+)\.(json|jpg|png|webp|bmp|tif|bin|part)")
"""The files that an album makes, and so may delete: time, number of the message within the second, kind."""

PictureOf = Callable[[Message], tuple[str, bytes] | None]
"""The result_id of a snapshot and its picture; None for a message that is none."""


class Album:
    """The last `keep` messages in a folder; a picture stands beside the message of its result.

    What another run has left there counts. A write that fails ends the saving with one line, not the watching.
    """

    def __init__(self, folder: Path, keep: int, picture_of: PictureOf) -> None:
        self._folder = folder
        self._keep = keep
        self._picture_of = picture_of
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._number = 0
        self.failed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = {found[1] for path in folder.iterdir() if (found := _OURS.fullmatch(path.name))}
        except OSError as error:
            fix = "Name a folder that can be written"
            raise ConfigError(f"nothing can be saved there: {error.strerror}", where=str(folder), fix=fix) from error
        self._names = deque(sorted(names))

    def see(self, message: Message, kind: str | None) -> None:
        """Keep a message of the gateway, or in mind the picture of a snapshot (`kind` None)."""
        if self.failed:
            return
        if kind is None:
            self._remember(message)
            return
        try:
            self._save(message, kind)
        except OSError as error:
            self.failed = True
            text = f"Nothing more is saved in {self._folder}: {error.strerror or error}"
            print(f"edge-gateway: {text}", file=sys.stderr, flush=True)

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
        self._number = (self._number + 1) % 1_000_000
        plain = _NOT_IN_NAMES.sub("-", kind.lower())[:60]
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{self._number:06}-{plain}"
        self._names.append(name)
        while len(self._names) > self._keep:
            self._forget(self._names.popleft())
        self._write(f"{name}.json", message.payload)
        picture = self._picture(message) if kind == "ai_inference_result" else None
        if picture is not None:
            suffix = next((suffix for head, suffix in SUFFIXES.items() if picture.startswith(head)), ".bin")
            self._write(name + suffix, picture)

    def _picture(self, message: Message) -> bytes | None:
        picture = self._pictures.pop(str((parse_message(message.payload) or {}).get("result_id")), None)
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
