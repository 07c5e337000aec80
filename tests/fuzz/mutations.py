"""Bytes that are nearly right: the corpus and whole pictures, damaged in the ways that parsers stumble over."""

from __future__ import annotations

from pathlib import Path
from random import Random

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 16_384
TOKENS = (
    b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xd8", b"\xff\xda", b"\xff\xc2",
    b"IDAT", b"IEND", b"{", b"}", b"[", b"]", b'"', b"\\ud800", b"NaN", b"1e999", b"-0", b"null", b"true", b": ",
    b"- ", b"&a ", b"*a ", b"!!", b"<<", b"\t", b"\r\n", b"/", b"+", b"#", b"$share/", b"\xc0\x80", b"\xed\xa0\x80",
)  # fmt: skip


def corpus(target: str) -> dict[str, bytes]:
    """The kept files of one target by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target).iterdir())}


def mutate(random: Random, data: bytes, others: list[bytes]) -> bytes:
    """`data` after one to six changes; `others` are what parts are taken from."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        _change(random, changed, others)
    return bytes(changed[:MAX_BYTES])


def _change(random: Random, data: bytearray, others: list[bytes]) -> None:
    place = random.randrange(len(data) + 1)
    end = min(len(data), place + random.choice((1, 2, 4, 8, 100)))
    action = random.randrange(7)
    if action == 0:
        data[place:end] = random.randbytes(end - place)
    elif action == 1:
        data[place:place] = random.choice(TOKENS)
    elif action == 2:
        token = random.choice(TOKENS)
        data[place : place + len(token)] = token
    elif action == 3:
        del data[place:end]
    elif action == 4:
        data[place:place] = data[place:end] * random.choice((1, 2, 50))
    elif action == 5:
        del data[place:]
    else:
        other = random.choice(others)
        data[place:] = other[min(place, len(other)) :]
