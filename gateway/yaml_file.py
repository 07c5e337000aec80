"""Reading a small YAML file strictly: no key twice, no number that YAML makes of something else, and all with lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.errors import ConfigError
from gateway.regular_file import open_regular

MAX_YAML_BYTES = 1 << 20
MAX_VALUES = 50_000
"""Values in one file, read in a second; each use of an alias counts, for a few lines of them can stand for millions."""

MAX_NUMBER = 100
"""Characters of a number; to the base of 60 a longer one takes seconds to read, and a float of that overflows."""
MAX_SAID = 300
"""Characters of what the YAML library says, which may repeat the file."""

Loc = tuple[str | int, ...]
_OCTAL_OR_BASE_60 = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
_INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value stands: the line of its key, from 1, and for a scalar without quotes its text as written."""

    line: int
    plain: str | None = None


class YamlMapping(dict[str, Any]):
    """The content of a file; `marks` has the place of each value by its path of keys and indices."""

    def __init__(self, content: dict[str, Any] | None = None, marks: dict[Loc, Mark] | None = None) -> None:
        super().__init__(content or {})
        self.marks = marks or {}

    def line(self, loc: Loc) -> int | None:
        """The line of a value, or of the innermost mapping around it that is in the file."""
        while loc:
            if loc in self.marks:
                return self.marks[loc].line
            loc = loc[:-1]
        return None


def read_yaml(path: Path) -> YamlMapping:
    """Read a small YAML file that must be a mapping; raises ConfigError."""
    where = str(path)
    try:
        return _load(_text(path), where)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = (error.problem or error.context or "cannot be understood")[:MAX_SAID]
        tab = r"'\t'" in problem
        fix = "Indent with spaces; YAML takes no tabs" if tab else "Correct it; texts with { } [ ] : or # need quotes"
        raise ConfigError(f"is not valid YAML{line}: {problem}", where=where, fix=fix) from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply, or in itself", where=where, fix="Correct the file") from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:MAX_SAID]
        raise ConfigError(f"is not valid YAML: {reason}", where=where, fix="Correct the file") from error


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=str(path), fix="Check the path and its permissions"
        ) from error
    if len(content) > MAX_YAML_BYTES:
        raise ConfigError("the file is larger than 1 MiB", where=str(path), fix="A configuration is a few lines")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}",
            where=str(path),
            fix="Save it as UTF-8",
        ) from error


class _Loader(yaml.SafeLoader):
    """Gives up in the middle of a file that is too long."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._left = MAX_VALUES

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._left -= 1
        if self._left < 0:
            raise _TooMany
        return super().compose_node(parent, index)


class _TooMany(Exception):
    """A file has more than MAX_VALUES."""


def _load(text: str, where: str) -> YamlMapping:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return YamlMapping()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("must be a mapping of keys to values", where=where, fix="Write lines such as 'name: x'")
        marks: dict[Loc, Mark] = {}
        for count, (loc, mark, value) in enumerate(_walk(node, ())):
            if count >= MAX_VALUES:
                raise _TooMany
            if problem := _surprise(value):
                raise ConfigError(f"line {mark.line}: {problem[0]}", where=where, fix=problem[1])
            marks.setdefault(loc, mark)
        return YamlMapping(loader.construct_document(node), marks)
    except _TooMany:
        fix = "A configuration is a few lines"
        raise ConfigError(f"more than {MAX_VALUES} values", where=where, fix=fix) from None
    except _KeyTwice as error:
        raise ConfigError(str(error), where=where, fix="Keep one of them; YAML would drop the first") from None
    finally:
        loader.dispose()


class _KeyTwice(Exception):
    """A key stands in one mapping twice."""


def _walk(node: yaml.Node, loc: Loc) -> Iterator[tuple[Loc, Mark, yaml.Node]]:
    """Every value with its path, aliases followed wherever they stand."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*loc, index), _mark(item, item), item
            yield from _walk(item, (*loc, index))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                yield from _walk(value, loc)
                continue
            name, line = str(key.value), key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in seen:
                raise _KeyTwice(f"line {line}: the key {name[:100]!r} is there twice, first in line {seen[name]}")
            seen[name] = line
            yield (*loc, name), _mark(key, value), value
            yield from _walk(value, (*loc, name))


def _mark(at: yaml.Node, value: yaml.Node) -> Mark:
    plain = value.value if isinstance(value, yaml.ScalarNode) and value.style is None else None
    return Mark(at.start_mark.line + 1, plain)


def _surprise(node: yaml.Node) -> tuple[str, str] | None:
    """What is wrong with a number too long, or that YAML 1.1 reads to the base of 8 or 60, and the fix; else None."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in (_INT, _FLOAT):
        return None
    if len(node.value) > MAX_NUMBER:
        return f"a number of {len(node.value)} characters", "Write a text in quotes"
    if node.style is not None or not _OCTAL_OR_BASE_60.fullmatch(node.value):
        return None
    number = yaml.safe_load(node.value)
    return f"YAML reads {node.value} as the number {number}", f"Write {number}, or '{node.value}' in quotes for a text"
