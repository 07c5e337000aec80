"""Who does not give the token changes nothing, whatever the form of his request; and no mere look changes anything."""

from __future__ import annotations

import base64
import itertools
import re
import socket
import time
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.flow.builders import jpeg
from tests.fuzz.http_site import COMMAND_TOPIC, TOKEN, HttpSite, http_site
from tests.harness import TIMEOUT_S, Site

PATHS = (
    *(f"/api/models/detector/{action}" for action in ("promote", "rollback", "load", "unload", "PROMOTE", "delete")),
    "//api/models/detector/unload", "/api/models/detector/unload/", "/api/./models/detector/unload",
    "/x/../api/models/detector/unload", "/api/models/%64etector/unload", "/api/models/detector/unload;a",
    "/api/models/detector/unload%00", "/v1/infer", "/api/models/detector", "/api/models", "/metrics", "/ready",
)  # fmt: skip
PUBLISHED = ("ai_inference_result", "ai_inference_error", "ai_comparison", "ai_alert", "ai_model")
_basic = base64.b64encode(f"token:{TOKEN}".encode()).decode()
# Among them the right token in all the wrong places. Two `Authorization` headers are none, even if one is right.
CREDENTIALS: tuple[list[str], ...] = (
    [], [f"Authorization: Basic {_basic}"], [f"Authorization: {TOKEN}"], [f"Authorization: Token {TOKEN}"],
    ["Authorization: Bearer"], ["Authorization: Bearer "], ["Authorization:"], [f"Authorization: Bearer{TOKEN}"],
    [f"Authorization: Bearer {TOKEN.upper()}"], [f"Authorization: Bearer {TOKEN[:-1]}"],
    [f"Authorization: Bearer {TOKEN}x"], [f"Authorization: Bearer {TOKEN},"], [f"Authorization: Bearer '{TOKEN}'"],
    [f"Authorization: Bearer {TOKEN} {TOKEN}"], [f"Authorization: Bearer {TOKEN}\u00a0"],
    [f"Authorization: Bearer guess, Bearer {TOKEN}"], [f"Authorization: Bearer \x0b{TOKEN}"],
    ["Authorization: Bearer guess", f"Authorization: Bearer {TOKEN}"],
    [f"Authorization: Bearer {TOKEN}", "Authorization: Bearer guess"],
    [f"Authorization : Bearer {TOKEN}"], [f"Authorization: Bearer\r\n {TOKEN}"],
    [f"X: a\nAuthorization: Bearer {TOKEN}"],
    [f"Proxy-Authorization: Bearer {TOKEN}"], [f"X-Authorization: Bearer {TOKEN}"], [f"X-Api-Key: {TOKEN}"],
    [f"Cookie: token={TOKEN}; Authorization=Bearer {TOKEN}"], [f"WWW-Authenticate: Bearer {TOKEN}"],
)  # fmt: skip
QUERIES = ("", "?version=1", f"?token={TOKEN}", f"?access_token={TOKEN}&version=1", f"?Authorization=Bearer%20{TOKEN}")
MORE: tuple[list[str], ...] = (
    [], ["X-HTTP-Method-Override: POST"], ["X-HTTP-Method: POST", "X-Method-Override: POST"],
    ["X-Forwarded-For: 127.0.0.1", "X-Real-Ip: 127.0.0.1", "Forwarded: for=127.0.0.1"], ["Upgrade: websocket"],
    ["X-Original-URL: /api/models/detector/unload", "X-Rewrite-Url: /api/models/detector/unload"],
    ["Expect: 100-continue"], ["Host: localhost"], ["Origin: null"], ["Transfer-Encoding: chunked"],
)  # fmt: skip
_inner = b"POST /api/models/detector/unload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
BODIES = (
    b"", b"{}", b'{"version": 1}', f'{{"token": "{TOKEN}"}}'.encode(), jpeg(), b"21.5", _inner,
    b"0\r\n\r\n" + _inner, b"5\r\nhello\r\n0\r\n\r\n" + _inner,
)  # fmt: skip
METHODS = ("POST", "POST", "POST", "GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "post", "TRACE", "MERGE")
addresses = (f"127.{a}.{b}.{c}" for a, b, c in itertools.product(range(1, 250), range(250), range(1, 250)))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpSite]:
    with http_site(tmp_path_factory.mktemp("site")) as running:
        yield running


def state_of(site: HttpSite) -> tuple[object, ...]:
    """All that a request could change: what serves, what is remembered, what was published, counted and written."""

    def look(place: Site) -> tuple[object, ...]:
        gateway = place.gateway
        models = gateway.models.current.models
        return (
            {
                name: [(each.name, each.state, each.version) for each in m.variants.values()]
                for name, m in models.items()
            },
            str(gateway.rollouts.states),
            gateway.live.current,
            place.received,
            place.outcomes(),
            [topic for topic, body, _ in place.seen if body.get("message_type") in PUBLISHED],
            place.running.done(),
            sorted(
                (str(path), path.stat().st_size, path.stat().st_mtime_ns)
                for path in gateway.live.current.model_repository.rglob("*")
                if path.suffix not in (".lock", ".lease") and path.is_file()
            ),
        )

    return site.look(look)


def refusals(place: Site) -> float:
    """Commands that were not carried out."""
    codes = ("UNAUTHORIZED", "TOO_MANY_FAILURES")
    return sum(place.metrics.value("model_commands_total", action="none", outcome=code) for code in codes)


def statuses(site: HttpSite, request: bytes) -> list[int]:
    """Send it from an address of its own, so that failures before it do not answer for it; what comes back."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=15, source_address=(next(addresses), 0)) as client:
        client.sendall(request)
        answer = b""
        try:
            while chunk := client.recv(65_536):
                answer += chunk
        except ConnectionError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


def written(method: str, target: str, headers: list[str], body: bytes) -> bytes:
    """A request, byte by byte."""
    lines = [f"{method} {target} HTTP/1.1", "Host: gateway", *headers, "Connection: close"]
    if "Transfer-Encoding: chunked" in headers:
        body = body or b"0\r\n\r\n"
    else:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@given(
    method=st.sampled_from(METHODS),
    path=st.sampled_from(PATHS),
    query=st.sampled_from(QUERIES),
    credentials=st.sampled_from(CREDENTIALS),
    more=st.sampled_from(MORE),
    body=st.sampled_from(BODIES),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_does_not_give_the_token_changes_nothing(
    gateway: HttpSite, method: str, path: str, query: str, credentials: list[str], more: list[str], body: bytes
) -> None:
    before = state_of(gateway)
    seen = statuses(gateway, written(method, path + query, [*credentials, *more], body))
    assert state_of(gateway) == before
    assert not [status for status in seen if status in (202, 500)]
    if method == "POST":
        assert 200 not in seen


@pytest.mark.parametrize("credentials", CREDENTIALS, ids=lambda lines: "+".join(lines)[:60] or "none")
def test_no_form_of_the_token_but_the_one_is_heard(gateway: HttpSite, credentials: list[str]) -> None:
    before = state_of(gateway)
    for path in ("/api/models/detector/unload", "/v1/infer"):
        assert statuses(gateway, written("POST", path, credentials, jpeg()))[:1] in ([400], [401])
    assert state_of(gateway) == before


def test_no_mere_look_changes_anything_even_with_the_token(gateway: HttpSite) -> None:
    before = state_of(gateway)
    routes = httpx.get(f"{gateway.url}/openapi.json", trust_env=False).json()["paths"]
    for route in routes.keys() - {"/api/events"}:  # whose answer has no end
        target = route.format(model="detector", version="1", action="unload", file="main.js")
        for method in ("GET", "HEAD", "OPTIONS"):
            for more in MORE[:3]:
                headers = [f"Authorization: Bearer {TOKEN}", *more]
                (status,) = statuses(gateway, written(method, f"{target}?version=1", headers, b""))
                assert status in (200, 400, 404, 405, 503)
    assert state_of(gateway) == before


@given(
    token=st.sampled_from([None, "", "guess", TOKEN.upper(), TOKEN + " x", [TOKEN], {"a": TOKEN}, 1, True]),
    action=st.sampled_from(["promote", "rollback", "load", "unload", "x", None]),
    topic=st.sampled_from([COMMAND_TOPIC, COMMAND_TOPIC + "/x", COMMAND_TOPIC.upper(), "edge-ai/x/commands/models"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_over_mqtt_neither(gateway: HttpSite, token: object, action: str | None, topic: str) -> None:
    before, refused = state_of(gateway), gateway.look(refusals)
    payload = msgspec.json.encode({"action": action, "model": "detector", "token": token})
    gateway.look(lambda place: place.broker.publish(topic, payload))
    if topic == COMMAND_TOPIC:
        deadline = time.monotonic() + TIMEOUT_S
        while gateway.look(refusals) == refused:
            assert time.monotonic() < deadline, "waited in vain for the refusal"
            time.sleep(0.002)
    assert state_of(gateway) == before


def test_the_same_with_the_token_would_have_changed_something(gateway: HttpSite) -> None:
    before = state_of(gateway)
    headers = [f"Authorization: Bearer {TOKEN}"]
    assert statuses(gateway, written("POST", "/api/models/detector/unload", headers, b"")) == [202]
    assert state_of(gateway) != before
