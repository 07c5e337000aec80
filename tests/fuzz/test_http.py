"""HTTP by its own description: whatever is asked, the answer is one that /openapi.json announces, and no 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import __version__
from gateway.admin.openapi import description
from tests.flow.builders import jpeg
from tests.fuzz.http_site import TOKEN, HttpSite, http_site

EXAMPLES = 800
ENDLESS = ("/api/events",)
"""Its answer has no end; tests/admin/test_events.py reads it."""
PICTURE = jpeg()
FORM = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + PICTURE + b"\r\n--x--\r\n"
_texts = st.text(max_size=30) | st.sampled_from(
    ["detector", "onnx", "dual", "1", "0", "-1", "../..", "\x00", "a" * 2000]
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
)
_keys = st.sampled_from(
    ["version", "device_id", "sensor_id", "timestamp", "image_data", "values", "metadata", "model_name", "x",
     "backend_preference", "deadline_ms", "priority"]
)  # fmt: skip
_bodies = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", PICTURE, PICTURE[:100], FORM, FORM[:-9], FORM[:40], b"21.5", b"[" * 5000, b'{"a":' * 5000]),
    st.dictionaries(_keys, _values, max_size=5).map(lambda body: json.dumps(body).encode()),
    _values.map(lambda body: json.dumps(body).encode()),
)
_header_values = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40
).map(str.strip)
_headers = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "Accept", "Range", "If-None-Match", "traceparent", "tracestate", "Origin", "Cookie", "Expect",
         "Content-Encoding", "Sec-Fetch-Site", "Accept-Encoding", "X-Forwarded-For", "Content-Disposition", "Upgrade"]
    ),
    _header_values
    | st.sampled_from(
        ["application/json", "image/jpeg", "multipart/form-data", "multipart/form-data; boundary=x", "gzip",
         "multipart/mixed; boundary=" + "y" * 100, "100-continue", "bytes=0-1", "null", "text/plain; charset=nonsense"]
    ),
    max_size=4,
)  # fmt: skip


DOCUMENT = description(__version__)
_operations = [
    (method, path)
    for path in sorted(DOCUMENT["paths"])
    for method in sorted(DOCUMENT["paths"][path])
    if path not in ENDLESS
]


@dataclass(frozen=True)
class Request:
    """One request to an operation of the description."""

    method: str
    path: str
    target: str
    query: dict[str, str]
    headers: dict[bytes, bytes]
    body: bytes


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Any request to any operation; most of them with the token, some with parameters as they should be."""
    method, path = draw(st.sampled_from(_operations))
    target, query = path, dict[str, str]()
    for parameter in DOCUMENT["paths"][path][method].get("parameters", []):
        known = parameter["schema"].get("enum") or ["detector", "1", "onnx"]
        value = str(draw(st.sampled_from(known) | _texts)).encode(errors="replace").decode()
        if parameter["in"] == "path":
            target = target.replace(f"{{{parameter['name']}}}", quote(value, safe="") or "x")
        elif draw(st.booleans()):
            query[parameter["name"]] = value
    headers = {name.encode(): value.encode("latin-1") for name, value in draw(_headers).items()}
    if draw(st.integers(0, 99)):
        headers[b"Authorization"] = f"Bearer {TOKEN}".encode()
    return Request(method, path, target, query, headers, draw(_bodies) if method == "post" else b"")


def objection(request: Request, answer: httpx.Response) -> str | None:
    """Why an answer is not one that is described, if so."""
    described = DOCUMENT["paths"][request.path][request.method]["responses"].get(str(answer.status_code))
    if described is None or answer.status_code == 500:
        return f"status {answer.status_code}"
    content = described.get("content", {})
    if not content:
        return "a body" if answer.content else None
    kind = answer.headers["Content-Type"].partition(";")[0]
    if kind not in content:
        return f"a {kind}"
    if kind != "application/json":
        return None
    schema = {**described["content"][kind]["schema"], "components": DOCUMENT["components"]}
    error = next(jsonschema.Draft202012Validator(schema).iter_errors(answer.json()), None)
    return error and error.message


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpSite]:
    with http_site(tmp_path_factory.mktemp("site"), snapshot_deadline_ms=1000) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: HttpSite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=20, trust_env=False) as running:
        yield running


@given(request=requests())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_answer_is_a_described_one(gateway: HttpSite, client: httpx.Client, request: Request) -> None:
    answer = client.request(
        request.method, request.target, params=request.query, headers=request.headers, content=request.body
    )
    assert objection(request, answer) is None, (request, answer.status_code, answer.text[:500])
    assert not gateway.look(lambda place: place.running.done())
