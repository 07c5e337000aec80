"""Every event of the log, read from the calls in gateway/; `generate.py` makes log-events.md of it."""
# ruff: noqa: INP001 - beside a script, not in a package

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
"""The level of what each method of a logger writes."""
LOGGERS = ("log", "_log")
AREAS = {
    "Start, stop and defects": ("app.py", "leaving.py", "tasks.py", "service_manager.py", "commands/"),
    "Configuration and log": ("config", "log"),
    "The broker": ("adapters/mqtt", "adapters/spool"),
    "Triton": ("adapters/triton", "models/loader.py", "models/memory.py"),
    "Models and their files": ("models/",),
    "Snapshots and answers": ("flow/",),
    "Rollouts": ("rollout/", "adapters/kubernetes_lease.py"),
    "HTTP, commands and what is announced": ("admin/",),
    "Workers": ("workers/",),
    "Traces": ("adapters/otlp.py",),
    "Cameras of `edge-gateway camera`": ("cameras/",),
}
"""Each with the beginnings of the paths of its files; the first that fits."""
KEY = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
WITHOUT_UNIT = frozenset((
    "seconds", "size", "duration", "timeout", "interval", "age", "wait", "delay", "elapsed", "took", "time", "memory",
    "budget", "limit", "period", "rate",
))  # fmt: skip
"""Keys that say what is measured, not in what."""
RESERVED = frozenset(("timestamp", "level", "event", "exception", "repeated", "for_s"))
"""Keys that every line may have."""


INTRODUCTION = """\
The gateway writes one line for each event to stderr: a sentence that never changes, and what differs from line to line
under stable keys. `LOG_FORMAT=json` (the default) is one JSON object a line, `text` is for people; colours only on a
terminal, and never with `NO_COLOR`. Payloads, pictures, passwords and tokens are in no line.

| Key | Meaning |
| --- | --- |
| `timestamp` | ISO 8601 in UTC |
| `level` | `debug`, `info`, `warning` or `error` |
| `event` | The sentence; what to look for, to count and to alert on |
| `reason`, `fix` | Why it happened, and what helps; `where` is the file, the setting or the model |
| `repeated`, `for_s` | So many further events of this kind, in so many seconds, that had no lines of their own |
| `worker` | The worker that writes it, with `WORKERS` above 1; the front's own lines have none |
| `exception` | The traceback, which has no values of variables |

Names of keys end in their unit: `_s` seconds, `_ms` milliseconds, `_mb` megabytes, `bytes`; what has none is a count.

## Bursts

A burst of one event is folded. The first {first} lines of a kind within {window_s:.0f} s are written; those that follow
are counted, and at the end of the window one line says how many they were: the last of them, with `repeated` and
`for_s`. While the burst goes on, each further {following_s:.0f} s have one line at the beginning and one with the
count. So the number of events is that of the lines without `repeated`, plus the sum of `repeated`. A *kind* is the
sentence and its level together with `code`, `model`, `variant`, `version` and the like, or the kind of the `reason`,
and the type and place of an exception; devices, topics and result ids make no kinds. Lines of libraries are folded as
well (an object in the last of them is named by its type), debug lines never. When the level rises, the counts of what
it would hide are said first. `edge_gateway_log_events_total` counts each event, folded or not.

## Level and last lines

`LOG_LEVEL` holds at the start and after each change of `gateway.yaml`. For a closer look the level changes at once, in
all workers too, and with `for_s` it returns by itself:

```console
$ curl -H "Authorization: Bearer $TOKEN" http://localhost:8080/api/log-level -d '{{"level": "debug", "for_s": 600}}'
```

`{{"level": null}}` returns to the configured one; a change of `LOG_LEVEL` and a restart do too. `GET /api/log` has the
last {kept} events, by `level`, `contains` and `limit`; through the front those of all workers.
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One place that writes an event."""

    module: str
    line: int
    level: str
    event: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """An event with all places that write it."""

    sentence: str
    levels: tuple[str, ...]
    keys: tuple[str, ...]
    """Of any of the places, in the order in which they are written."""
    modules: tuple[str, ...]

    @property
    def grave(self) -> bool:
        """Whether somebody should do something, so that the page has to say what."""
        return bool({"warning", "error"}.intersection(self.levels))


def calls(package: Path) -> tuple[list[Call], list[str]]:
    """Every call that writes to the log, and what is wrong with those that cannot be read or break the rules."""
    found: list[Call] = []
    wrong: list[str] = []
    for path in sorted(package.rglob("*.py")):
        module, tree = path.relative_to(package).as_posix(), ast.parse(path.read_text("utf-8"))
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if _writes(node) and id(node) not in called:
                wrong.append(f"{module}:{node.lineno}: a method of the log is passed on; call it with the sentence")
            if isinstance(node, ast.Call) and _writes(node.func):
                one, complaints = _read(node, module)
                found += [one] if one is not None else []
                wrong += [f"{module}:{node.lineno}: {text}" for text in complaints]
    return found, wrong


def _writes(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or node.attr not in LEVELS:
        return False
    owner = node.value
    return (isinstance(owner, ast.Name) and owner.id in LOGGERS) or (
        isinstance(owner, ast.Attribute) and owner.attr in LOGGERS
    )


def _read(node: ast.Call, module: str) -> tuple[Call | None, list[str]]:
    assert isinstance(node.func, ast.Attribute)
    sentence = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
    if not isinstance(sentence, str):
        return None, ["the sentence is no literal, or not alone"]
    keys = tuple(each.arg for each in node.keywords if each.arg is not None)
    wrong = ["the keys are not written out"] if len(keys) < len(node.keywords) else []
    if not sentence[:1].isupper() or sentence.endswith("."):
        wrong.append(f"{sentence!r} does not begin like a sentence, or ends with a full stop")
    wrong += [f"key {key!r} is not in snake case" for key in keys if not KEY.fullmatch(key)]
    wrong += [f"key {key!r} does not name its unit" for key in keys if key in WITHOUT_UNIT]
    wrong += [f"key {key!r} means something else in every line" for key in keys if key in RESERVED]
    shown = tuple(key for key in keys if key != "exc_info")
    has_traceback = len(shown) < len(keys) or node.func.attr == "exception"
    shown += ("exception",) if has_traceback else ()
    return Call(module, node.lineno, LEVELS[node.func.attr], sentence, shown), wrong


def events(found: Iterable[Call]) -> list[Event]:
    """The calls by what they say."""
    by_sentence: dict[str, list[Call]] = {}
    for call in found:
        by_sentence.setdefault(call.event, []).append(call)
    return [
        Event(
            sentence,
            tuple(dict.fromkeys(each.level for each in places)),
            tuple(dict.fromkeys(key for each in places for key in each.keys)),
            tuple(dict.fromkeys(each.module for each in places)),
        )
        for sentence, places in sorted(by_sentence.items())
    ]


def area_of(event: Event) -> str:
    """Where the page has it; what is written in several areas is with the defects."""
    areas = {
        next((area for area, beginnings in AREAS.items() if module.startswith(beginnings)), "")
        for module in event.modules
    }
    return areas.pop() if len(areas) == 1 else next(iter(AREAS))


def complaints(every: Iterable[Event], remedies: dict[str, str]) -> Iterator[str]:
    """Warnings and errors of which the page would not say what to do, and remedies of events that there are not."""
    known = {event.sentence for event in every}
    for event in every:
        if event.grave and event.sentence not in remedies:
            yield f"docs/log_remedies.py does not say what to do about {event.sentence!r}"
        if not area_of(event):
            yield f"docs/log_events.py has no area for {event.modules[0]}"
    for sentence in remedies:
        if sentence not in known:
            yield f"docs/log_remedies.py has {sentence!r}, which nobody writes"
