"""Files that people write are read strictly, and hostile ones cost no memory or time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import ConfigError
from gateway.yaml_file import MAX_YAML_BYTES, read_yaml

SAME_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.fix
    return str(caught.value).removeprefix(f"{path}: ")


@SAME_FILE
@given(content=st.dictionaries(TEXTS, VALUES, max_size=5), flow=st.booleans())
def test_what_yaml_writes_is_read_as_it_was(tmp_path: Path, content: dict[str, Any], flow: bool) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(content, default_flow_style=flow, allow_unicode=True), encoding="utf-8")
    found = read_yaml(path)
    assert found == content
    assert all(found.line((key,)) for key in content)


@SAME_FILE
@given(content=st.binary(max_size=200) | st.text("ab:-[]{}&*!<# \n\t\"'01", max_size=60).map(str.encode))
def test_anything_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    try:
        read_yaml(path)
    except ConfigError:
        refused(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice, first in line 1. Keep one of them; YAML would"),
        ("a:\n  b: 1\n  b: 1", "line 3: the key 'b' is there twice, first in line 2."),
        ("a: [{b: 1, b: 2}]", "line 1: the key 'b' is there twice"),
        ("a: 0777", "line 1: YAML reads 0777 as the number 511. Write 511, or '0777' in quotes for a text"),
        ("\na: [1, 010]", "line 2: YAML reads 010 as the number 8."),
        ("a: 12:30:45", "line 1: YAML reads 12:30:45 as the number 45045."),
        ("a: &x [1, *x]", "is nested too deeply, or in itself"),
        ("a: [" + "1," * 60_000 + "1]", "more than 50000 values"),
        ("? [a]\n: 1", "is not valid YAML in line 1: found unhashable key."),
        ("a: !!python/name:os.system", "is not valid YAML in line 1: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "is not valid YAML in line 2: but found another document."),
        ("a: *x", "is not valid YAML in line 1: found undefined alias 'x'."),
        ("[" * 20_000, "is nested too deeply, or in itself"),
    ],
)
def test_what_yaml_would_read_in_silence_or_never_end_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert refused(tmp_path / "x.yaml").startswith(said)


@pytest.mark.parametrize("text", ["a: 0", "a: -1", "a: 0x10", "a: 0o17", "a: '0777'", "a: 08", "a: 0.5", "a: 1e3"])
def test_usual_numbers_are_no_surprise(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert "a" in read_yaml(tmp_path / "x.yaml")


def test_a_few_aliases_that_stand_for_millions_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    assert refused(tmp_path / "x.yaml").startswith("more than 50000 values")


def test_aliases_and_merged_mappings_are_read_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3\ne: *x\n")
    found = read_yaml(tmp_path / "x.yaml")
    assert found == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}, "e": {"b": 1, "c": 2}}
    assert [found.line(loc) for loc in (("a", "b"), ("d",), ("d", "x"), ("e",), ("f",))] == [1, 2, 2, 5, None]


def test_a_pipe_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    assert refused(tmp_path / "x.yaml") == "cannot be read: it is no regular file. Check the path and its permissions"


def test_a_file_of_another_encoding_or_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("a: 1\nb: Größe".encode("latin-1"))
    assert refused(path) == "is not UTF-8 text: byte 0xf6 in line 2. Save it as UTF-8"
    path.write_bytes(b"a: 1\n" + b"#" * MAX_YAML_BYTES)
    assert refused(path).startswith("the file is larger than 1 MiB")
    path.write_bytes("\ufeffa: 1".encode())
    assert read_yaml(path) == {"a": 1}


@pytest.mark.parametrize("number", ["1" + ":59" * 60_000, "1" + ":59" * 400 + ".5", "0x" + "f" * 1000])
def test_a_number_without_end_is_refused_before_it_is_read(tmp_path: Path, number: str) -> None:
    """To the base of 60 the first one takes seconds, and the second one overflows a float."""
    (tmp_path / "x.yaml").write_text(f"a: {number}")
    assert refused(tmp_path / "x.yaml") == f"line 1: a number of {len(number)} characters. Write a text in quotes"


def test_what_yaml_says_of_a_file_is_cut_to_size(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"a: !<{'x' * 5000}> 1")
    assert len(refused(tmp_path / "x.yaml")) < 500
