"""Who gives the token gets in; who fails too often waits, and nobody else waits for him."""

from __future__ import annotations

import hmac
from pathlib import Path

import httpx
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.admin.guard import (
    ADDRESSES,
    FAILURES,
    FAILURES_IN_ALL,
    PERIOD_S,
    Failures,
    TokenGuard,
    TokenRefused,
    client_of,
)
from gateway.admin.token import token_matches
from tests.admin.commanded import OTHER_TOPIC, office, with_token
from tests.harness import until

PROMOTE = "/api/models/detector/promote"
RIGHT = {"Authorization": "Bearer s3cret"}
WRONG = {"Authorization": "Bearer guess"}
COMMAND = {"action": "promote", "model": "detector"}


def from_address(url: str, address: str) -> httpx.AsyncClient:
    """A client that comes from another loopback address."""
    return httpx.AsyncClient(base_url=url, timeout=20, transport=httpx.AsyncHTTPTransport(local_address=address))


async def test_from_the_tenth_failure_of_a_minute_on_an_address_waits_whatever_it_sends(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        with capture_logs() as logs:
            codes = [(await place.http.post(PROMOTE, headers=WRONG)).status_code for _ in range(30)]
            answer = await place.http.post(PROMOTE, headers=RIGHT)
        assert codes == [401] * 10 + [429] * 20
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "TOO_MANY_FAILURES")
        assert 1 <= int(answer.headers["Retry-After"]) <= PERIOD_S
        assert place.commands.executed == []
        assert sum("Too many tries" in entry["event"] for entry in logs) == 1
        assert len(logs) == FAILURES + 1
        assert place.metrics.value("http_refusals_total", reason="unauthorized") == FAILURES
        assert place.metrics.value("http_refusals_total", reason="limited") == 21
        async with from_address(place.url, "127.0.0.7") as elsewhere:
            assert (await elsewhere.post(PROMOTE, headers=RIGHT)).status_code == 202
        assert (await place.http.get("/api/status")).status_code == 200


async def test_pictures_and_commands_count_together(tmp_path: Path) -> None:
    async with office(api_token_file=with_token(tmp_path)) as place:
        for _ in range(FAILURES):
            assert (await place.http.post("/v1/infer", headers=WRONG, content=b"x")).status_code == 401
        for path in (PROMOTE, "/v1/infer"):
            answer = await place.http.post(path, headers=RIGHT, content=b"")
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "TOO_MANY_FAILURES")


async def test_over_mqtt_failures_count_for_the_topic(tmp_path: Path) -> None:
    topics = ("edge-ai/{business_unit}/{facility}/{gateway_id}/ai/commands/models", OTHER_TOPIC)
    async with office(api_token_file=with_token(tmp_path), mqtt_command_topics=topics) as place:
        answers = [await place.answer(COMMAND | {"token": "guess"}) for _ in range(FAILURES + 1)]
        answers.append(await place.answer(COMMAND | {"token": "s3cret"}))
        codes = [answer["error"]["code"] for answer in answers]
        assert codes == ["UNAUTHORIZED"] * FAILURES + ["TOO_MANY_FAILURES"] * 2
        place.broker.publish(OTHER_TOPIC, b'{"action": "promote", "model": "detector", "token": "s3cret"}')
        assert (await place.http.post(PROMOTE, headers=RIGHT)).status_code == 202
        await until(lambda: len(place.commands.executed) == 2, "the command on the other topic")


def test_after_the_period_one_may_try_again() -> None:
    failures = Failures()
    for second in range(FAILURES):
        failures.add("a", second)
    assert failures.wait_s("a", FAILURES) == PERIOD_S - FAILURES
    assert failures.wait_s("a", PERIOD_S) == 0
    failures.add("a", PERIOD_S)
    assert failures.wait_s("a", PERIOD_S) == 1


def test_in_an_attack_from_many_addresses_each_has_one_try_and_a_new_one_still_has_it() -> None:
    failures = Failures()
    for number in range(FAILURES_IN_ALL):
        assert failures.wait_s(f"attacker {number}", 0) == 0
        failures.add(f"attacker {number}", 0)
    assert failures.wait_s("attacker 1", 1) == PERIOD_S - 1
    assert failures.wait_s("operator", 1) == 0
    assert failures.wait_s("attacker 1", PERIOD_S) == 0


@given(
    st.lists(st.tuples(st.integers(0, ADDRESSES - 97), st.floats(0, 20), st.integers(1, 400)), min_size=1, max_size=60)
)
@settings(max_examples=60, deadline=None)
def test_no_attack_gets_more_tries_than_the_limits_or_grows_the_table(attack: list[tuple[int, float, int]]) -> None:
    """Whoever asks as fast as it goes, from as many addresses as are remembered, has his tries counted."""
    failures, now, heard = Failures(), 0.0, list[tuple[float, str]]()
    for first, pause, count in attack:
        now += pause
        for number in range(count):
            who = f"address {first + number % 97}"
            if not failures.wait_s(who, now):
                failures.add(who, now)
                heard.append((now, who))
    assert len(failures) <= ADDRESSES
    assert failures.wait_s("operator", now) == 0
    for address in {who for _, who in heard}:
        times = [at for at, who in heard if who == address]
        assert all(later - earlier >= PERIOD_S for earlier, later in zip(times, times[FAILURES:], strict=False))
    allowed = FAILURES_IN_ALL + ADDRESSES
    moments = [at for at, _ in heard]
    assert all(later - earlier >= PERIOD_S for earlier, later in zip(moments, moments[allowed:], strict=False))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    return with_token(tmp_path)


def test_beyond_the_table_the_oldest_is_forgotten_and_who_has_not_failed_is_heard(token: Path) -> None:
    """From far more addresses than are remembered; the operator comes with the right token."""
    guard, failures = TokenGuard(token), Failures()
    for number in range(ADDRESSES + 100):
        failures.add(f"attacker {number}", 0)
        with pytest.raises(TokenRefused, match="needs the token"):
            guard.admit(f"attacker {number}", ["guess"], off_fix="")
    assert len(failures) == ADDRESSES
    assert failures.wait_s("attacker 0", 1) == 0
    assert failures.wait_s(f"attacker {ADDRESSES + 99}", 1) == PERIOD_S - 1
    guard.admit("operator", ["s3cret"], off_fix="")
    with pytest.raises(TokenRefused, match="too many tries"):
        guard.admit(f"attacker {ADDRESSES + 99}", ["s3cret"], off_fix="")


@pytest.mark.parametrize(
    "given_ones", [[], [""], ["S3CRET"], ["s3cret", "guess"], ["s3cre"], ["s3cret\n"], ["s3cret\0"]]
)
def test_only_the_token_itself_is_the_token(token: Path, given_ones: list[str]) -> None:
    with pytest.raises(TokenRefused):
        TokenGuard(token).admit("a", given_ones, off_fix="")


def test_the_same_token_twice_is_the_token(token: Path) -> None:
    TokenGuard(token).admit("a", ["s3cret", "s3cret"], off_fix="")


@given(given_one=st.text() | st.text(st.characters(categories=["Cs"])))
def test_whatever_is_given_is_compared_and_no_error(tmp_path_factory: pytest.TempPathFactory, given_one: str) -> None:
    path = with_token(tmp_path_factory.mktemp("token"))
    assert token_matches(given_one, path) is (given_one.strip(" ") == "s3cret")


def test_what_is_compared_has_one_length_whatever_is_given(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """compare_digest answers sooner for two of different lengths."""
    seen: list[tuple[int, int]] = []
    true_compare = hmac.compare_digest

    def watch(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return true_compare(one, other)

    monkeypatch.setattr("gateway.admin.token.hmac.compare_digest", watch)
    for text in ("", "x", "s3cret", "s3cret" * 1000):
        token_matches(text, token)
    assert len(set(seen)) == 1
    assert len(set(seen[0])) == 1


@pytest.mark.parametrize(
    ("remote", "counted_for"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a socket", "a socket"),
        (None, "somewhere"),
    ],
)
def test_whom_failures_are_counted_for(remote: str | None, counted_for: str) -> None:
    request = make_mocked_request("POST", PROMOTE).clone(remote=remote or "")
    assert client_of(request) == counted_for
