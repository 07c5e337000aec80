"""Addresses as they may be shown: in logs, on screens and in what is sent to others."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_USER = re.compile(
    r"""([a-z][a-z0-9+.-]*://)?         # the scheme stays
    (?:[^/?\#]*                         # user and password, up to the last @ before the path
     |[^/?\#@\[\]]*:(?!\d*(?:[/?\#]|$)).*  # or to the last one at all, where no port follows: a password with / ? #
    )@""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_HOST = re.compile(r"(?:\[[0-9a-f:.%]+\]|[a-z0-9._-]+)(?::\d*)?", re.IGNORECASE)


def endpoint(address: str) -> str:
    """Scheme, host and port alone: cameras take passwords in the path and in the query too.

    What is no address, such as a path, stays as it is; `***` stands for a host that cannot be told from a password.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return shown(address)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    # An @ further on may end a password with a slash in it, whose first part would then look like a host.
    certain = "@" not in rest[len(authority) :] and _HOST.fullmatch(host)
    return f"{scheme}://{host if certain else '***'}"


def scheme_of(address: str) -> str | None:
    """The scheme in small letters, or None for what is no address."""
    try:
        return urlsplit(address).scheme.lower()
    except ValueError:
        return None


def shown(address: str) -> str:
    """The address without the user and the password that may stand in it."""
    return _USER.sub(lambda found: f"{found[1] or ''}***@", address, count=1) if _USER.match(address) else address
