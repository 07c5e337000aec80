"""Addresses as they may be shown: in logs, on screens and in what is sent to others."""

from __future__ import annotations

import re

_USER = re.compile(
    r"""([a-z][a-z0-9+.-]*://)?         # the scheme stays
    (?:[^/?\#]*                         # user and password, up to the last @ before the path
     |[^/?\#@\[\]]*:(?!\d*(?:[/?\#]|$)).*  # or to the last one at all, where no port follows: a password with / ? #
    )@""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def shown(address: str) -> str:
    """The address without the user and the password that may stand in it."""
    return _USER.sub(lambda found: f"{found[1] or ''}***@", address, count=1) if _USER.match(address) else address
