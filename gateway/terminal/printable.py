"""Text from outside made harmless: what a camera calls itself must not steer the terminal."""

from __future__ import annotations

import unicodedata

_ON_TOP = ("Mn", "Me")
"""Categories of characters that are written over the one before, a thousand of them if somebody likes."""


def printable(text: str) -> str:
    """The text with a ? for each character that is none to see: escapes, line ends, marks that turn the text around."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def one_cell_each(text: str, most: int) -> str:
    """What fits into a table: at most `most` characters, printable, and none that is written over another."""
    # The letter with its accent where there is one, so that a name that is spelt with two characters keeps it.
    plain = unicodedata.normalize("NFC", text[: 4 * most])
    return printable("".join(one for one in plain if unicodedata.category(one) not in _ON_TOP)[:most])
