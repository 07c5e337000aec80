"""The token of API_TOKEN_FILE: who gives it may do what changes something."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from gateway.regular_file import open_regular

MAX_TOKEN_BYTES = 65_536


def token_matches(given: str, token_file: Path) -> bool:
    """Whether it is the token in the file, in a time that depends neither on where they differ nor on how long it is.

    The file is read each time, so a new token holds at once; an empty or unreadable one lets nobody in.
    """
    try:
        with open_regular(token_file) as file:
            wanted = file.read(MAX_TOKEN_BYTES).decode().strip()
    except (OSError, ValueError):
        return False
    # Hashed first: compare_digest answers sooner when the lengths differ. Surrogates stand for bytes that are no text.
    sides = (hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in (given.strip(" "), wanted))
    return hmac.compare_digest(*sides) and bool(wanted)


def bearer(header: str) -> str:
    """The token in the value of an `Authorization` header; empty for another scheme."""
    scheme, _, given = header.partition(" ")
    return given if scheme.lower() == "bearer" else ""
