"""When the certificates of a file end, so that somebody can be told in time."""

from __future__ import annotations

import base64
import binascii
import datetime
import math
import re
import time
from pathlib import Path

CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
MAX_FILE_BYTES = 4 << 20
LOOK_EVERY_S = 60.0
_VERSION, _UTC_TIME = 0xA0, 0x17


def ends_at(path: Path) -> float:
    """When the first certificate of a PEM file ends, in epoch seconds; NaN when none can be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES)
        return min((_end(base64.b64decode(found)) for found in CERTIFICATE.findall(text)), default=math.nan)
    except (OSError, ValueError, IndexError, binascii.Error):
        return math.nan


class Expiry:
    """`ends_at` of a file that may be renewed, for a gauge that is read often: looked up once a minute."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_at = -math.inf
        self._ends_at = math.nan

    def __call__(self) -> float:
        """Epoch seconds, or NaN."""
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            self._ends_at, self._looked_at = ends_at(self._path), time.monotonic()
        return self._ends_at


def _end(der: bytes) -> float:
    """`notAfter` of an X.509 certificate (RFC 5280, 4.1), for which the standard library has no function."""
    _, at, _ = _element(der, 0)  # Certificate
    _, at, _ = _element(der, at)  # TBSCertificate
    tag, _, after = _element(der, at)
    at = after if tag == _VERSION else at
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)  # Validity
    _, _, at = _element(der, at)  # notBefore
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year, of which those from 50 are in the last century
        text = ("19" if text >= "5" else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, begin and end of the content of the DER element at `at`; raises IndexError or ValueError."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    if start + length > len(der):
        raise ValueError("the certificate is cut off")
    return der[at], start, start + length
