"""Where the exports are made: a folder outside the repository, with the pictures and the tools' answers beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.exports.pictures import Picture, crops, pictures


@dataclass(frozen=True, slots=True)
class Workplace:
    """`root/<family>/` holds each family's exports and `answer.json`."""

    root: Path
    pictures: list[Picture]
    """The pictures that every detector is fitted to and asked about."""
    crops: list[Picture]
    """Single objects: the same for every classifier, which is asked about the first ones."""

    @classmethod
    def at(cls, root: Path) -> Workplace:
        """A workplace in this folder, which need not be there yet."""
        whole = pictures(root / "pictures")
        return cls(root, whole, crops(whole))

    def folder(self, family: str) -> Path:
        path = self.root / family
        path.mkdir(parents=True, exist_ok=True)
        return path

    def keep_answers(self, family: str, asked: list[Picture], answers: list[dict[str, Any]]) -> None:
        """The tool's answers to whole pictures, in the pictures' own pixels: what the gateway has to publish."""
        named = [{"picture": picture.path.name, **answer} for picture, answer in zip(asked, answers, strict=True)]
        (self.folder(family) / "answer.json").write_text(json.dumps(named, indent=1))
