"""Whatever arrives as a command is understood or refused, and never anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.command_bodies import read_object, refuse_unknown_keys
from gateway.admin.command_desk import MAX_VERSION, action_of, model_of, version_of
from gateway.errors import CommandRefused
from gateway.rollout.commands import Action

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(Action).map(str),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def read(reader: Callable[[Any], Any], given: Any) -> tuple[Any, CommandRefused | None]:
    """What a reader makes of something, or how it refuses it: in a few words that JSON takes."""
    try:
        return reader(given), None
    except CommandRefused as error:
        refusal = error
    assert (refusal.code, bool(refusal.fix), len(str(refusal)) < 300) == ("COMMAND_INVALID", True, True)
    assert msgspec.json.encode(refusal.message)
    return None, refusal


def is_version(value: Any) -> bool:
    return value is None or (type(value) is int and 1 <= value <= MAX_VERSION)


def is_action(value: Any) -> bool:
    return isinstance(value, str) and value in [*Action]


def is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


@given(payload=st.binary() | VALUES.map(msgspec.json.encode) | st.binary().map(lambda rest: b'{"a":' + rest))
def test_a_payload_is_an_object_or_refused(payload: bytes) -> None:
    body, refusal = read(read_object, payload)
    assert refusal is not None or isinstance(body, dict)


@pytest.mark.parametrize(("reader", "allowed"), [(version_of, is_version), (action_of, is_action), (model_of, is_name)])
@given(given=VALUES)
def test_a_value_is_what_it_should_be_or_refused(
    reader: Callable[[Any], Any], allowed: Callable[[Any], bool], given: Any
) -> None:
    value, refusal = read(reader, given)
    assert (refusal is None) is allowed(given)
    assert refusal is not None or value == given


@given(key=st.text())
def test_an_unknown_key_is_named_in_a_few_harmless_words(key: str) -> None:
    if key == "version":
        refuse_unknown_keys({key: 1}, ("version",))
        return
    with pytest.raises(CommandRefused) as refused:
        refuse_unknown_keys({key: 1}, ("version",))
    assert len(str(refused.value)) < 300
    assert msgspec.json.encode(refused.value.message)
