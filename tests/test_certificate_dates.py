"""When certificates end, read without a library for them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from gateway.certificate_dates import Expiry, ends_at
from tests.certificates import Authority

DAY_S = 86_400


@pytest.mark.parametrize("days", [-3, 5, 20_000])
def test_the_end_is_what_a_library_reads(tmp_path: Path, days: float) -> None:
    """Beyond 2049 it is written in another form."""
    path = Authority(tmp_path).issue("some", days=(-10, days)).certificate
    (certificate,) = x509.load_pem_x509_certificates(path.read_bytes())
    assert ends_at(path) == certificate.not_valid_after_utc.timestamp()
    assert abs(ends_at(path) - time.time() - days * DAY_S) < DAY_S


def test_the_first_end_of_a_bundle_counts(tmp_path: Path) -> None:
    late, soon = Authority(tmp_path, "late", days=(-1, 90)), Authority(tmp_path, "soon", days=(-1, 9))
    bundle = tmp_path / "bundle"
    bundle.write_bytes(late.path.read_bytes() + soon.path.read_bytes())
    assert Expiry(bundle)() == ends_at(soon.path)


def test_what_is_no_certificate_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "some"
    whole = Authority(tmp_path).path.read_bytes()
    assert math.isnan(ends_at(path))

    @given(st.one_of(st.binary(max_size=200), st.integers(0, len(whole)).map(lambda cut: whole[:cut])))
    def check(content: bytes) -> None:
        path.write_bytes(b"-----BEGIN CERTIFICATE-----" + content + b"-----END CERTIFICATE-----")
        ends_at(path)

    check()
