"""What is shown of an address: never the user or the password in it, and the rest as it is."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.addresses import endpoint, shown


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("rtsp://u:p@host:554/a?b=1", "rtsp://***@host:554/a?b=1"),
        ("http://user@host/x", "http://***@host/x"),
        ("http://u:p@[::1]:8002/metrics", "http://***@[::1]:8002/metrics"),
        ("http://u:p@[broken/metrics", "http://***@[broken/metrics"),
        ("u:p@host:8001", "***@host:8001"),
        ("rtsp://admin:pa#ss@cam/1", "rtsp://***@cam/1"),  # not encoded, as people write it
        ("rtsp://admin:p/a?s@cam/1", "rtsp://***@cam/1"),
        ("rtsp://u:p@host/stream@2", "rtsp://***@host/stream@2"),
        ("http://host:8002/a@b", "http://host:8002/a@b"),
        ("http://host/a@b?c=d@e", "http://host/a@b?c=d@e"),
        ("http://[::1]:8002/a@b", "http://[::1]:8002/a@b"),
        ("localhost:8001", "localhost:8001"),
        ("", ""),
    ],
)
def test_the_password_is_hidden_and_the_rest_stays(address: str, expected: str) -> None:
    assert shown(address) == expected


@given(
    st.text(string.ascii_letters + string.digits + "!$%&'()*+,;=:@._~ -", max_size=30),
    st.sampled_from(["", "/", "/metrics", ":8002/metrics?a=b", "/stream@2"]),
)
def test_no_part_of_any_password_stays(secret: str, rest: str) -> None:
    assert shown(f"http://u:{secret}@host{rest}") == f"http://***@host{rest}"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("rtsp://u:p@host:554/a?b=1", "rtsp://host:554"),
        ("http://h/snap.cgi?user=admin&password=s3cret", "http://h"),
        ("rtsp://h/user=admin_password=s3cret_channel=1.sdp", "rtsp://h"),
        ("rtsp://u:s3@cr/et#1@host/x", "rtsp://***"),
        ("rtsp://admin:12/34@host/x", "rtsp://***"),
        ("rtsp://u:pa#ss@host/x", "rtsp://***"),
        ("http://u:p@[::1]:8002/metrics", "http://[::1]:8002"),
        ("http://u:p@[broken/metrics", "http://***"),
        ("pictures/gate 2", "pictures/gate 2"),
    ],
)
def test_the_endpoint_of_a_camera_holds_no_password(address: str, expected: str) -> None:
    assert endpoint(address) == expected


@given(st.text(string.printable, max_size=30))
def test_no_password_with_an_at_sign_behind_it_is_in_an_endpoint(secret: str) -> None:
    assert endpoint(f"rtsp://u:{secret}@host/x") in ("rtsp://host", "rtsp://***")
