"""One finding of the doctor, and checks that run side by side with a time limit each."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.errors import GatewayError


class Level(enum.StrEnum):
    """How it stands; only a problem keeps the gateway from doing its work."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, where, and what to do about it."""

    level: Level
    area: str
    what: str
    where: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Area:
    """The findings of one area, in its own words: `ok("it answers")`."""

    name: str

    def ok(self, what: str, where: str = "") -> Finding:
        """Nothing to do."""
        return Finding(Level.OK, self.name, what, where)

    def warning(self, what: str, *, fix: str, where: str = "") -> Finding:
        """It works, but hardly as it was meant."""
        return Finding(Level.WARNING, self.name, what, where, fix)

    def problem(self, what: str, *, fix: str, where: str = "") -> Finding:
        """It does not work."""
        return Finding(Level.PROBLEM, self.name, what, where, fix)

    def unknown(self, what: str, *, fix: str = "", where: str = "") -> Finding:
        """It could not be found out."""
        return Finding(Level.UNKNOWN, self.name, what, where, fix)

    def failed(self, error: GatewayError) -> Finding:
        """A problem, as one of our errors says it."""
        return self.problem(error.message, where=error.where, fix=error.fix)


@dataclass(frozen=True, slots=True)
class Check:
    """One examination."""

    area: Area
    work: Awaitable[list[Finding]]
    limit_s: float


async def examine(
    checks: Sequence[Check], slow: Callable[[list[str]], None] | None = None, slow_s: float = 1.5
) -> list[Finding]:
    """All findings, in the order of the checks, which run side by side; none takes longer than its limit.

    Every `slow_s` seconds `slow` is told the areas that are still being looked at.
    """
    tasks = [asyncio.create_task(_limited(check)) for check in checks]
    waiting: set[asyncio.Task[list[Finding]]] = set(tasks)
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=slow_s)
        if waiting and slow is not None:
            slow(
                list(
                    dict.fromkeys(check.area.name for check, task in zip(checks, tasks, strict=True) if not task.done())
                )
            )
    return [finding for task in tasks for finding in task.result()]


async def _limited(check: Check) -> list[Finding]:
    try:
        async with asyncio.timeout(check.limit_s):
            return await check.work
    except TimeoutError:
        what = f"no answer within {check.limit_s:g} s"
        return [check.area.problem(what, fix="Check the network and the disks of this machine")]
    except GatewayError as error:
        return [check.area.failed(error)]
    except Exception as error:  # noqa: BLE001 - one examination that breaks does not end the others
        return [check.area.unknown(f"this check has failed itself: {error!r}", fix="Report it")]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The object that `--json` prints."""
    counts = {level.value: sum(each.level is level for each in findings) for level in Level}
    return {"ok": not counts["problem"], "counts": counts, "findings": [asdict(each) for each in findings]}


MAX_SUMMED_UP = 10
"""Things to fix that are listed at the end."""
MARKS = {Level.OK: "✓", Level.WARNING: "!", Level.PROBLEM: "✗", Level.UNKNOWN: "?"}
COLOURS = {Level.OK: "32", Level.WARNING: "33", Level.PROBLEM: "31", Level.UNKNOWN: "36"}


def as_text(findings: Sequence[Finding], *, colour: bool) -> str:
    """A list for people: one line a finding, its fix below it; without colour also without special characters."""
    lines: list[str] = []
    area = ""
    for each in findings:
        if each.area != area:
            area = each.area
            lines += ["", area] if lines else [area]
        place = f"{each.where}: " if each.where else ""
        lines.append(f"  {_mark(each.level, colour)} {_plain(f'{place}{each.what}')}")
        if each.fix:
            lines.append(f"  {' ' * (1 if colour else 7)}   {_plain(each.fix)}")
    return "\n".join([*lines, "", *_summary(findings)])


def _mark(level: Level, colour: bool) -> str:
    return f"\x1b[{COLOURS[level]}m{MARKS[level]}\x1b[0m" if colour else f"{level.value:<7}"


def _plain(text: str) -> str:
    """What a server calls itself must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _summary(findings: Sequence[Finding]) -> list[str]:
    """How many things there are to fix, and which: what stops the gateway first, then in the order of the areas."""
    wrong = [each for level in (Level.PROBLEM, Level.WARNING) for each in findings if each.level is level]
    if not wrong:
        return ["Nothing to complain about."]
    problems = sum(each.level is Level.PROBLEM for each in wrong)
    warnings = len(wrong) - problems
    counted = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((problems, "problem"), (warnings, "warning")) if n]
    lines = [f"{len(wrong)} thing{'s' * (len(wrong) != 1)} to fix ({' and '.join(counted)}), the most important first:"]
    for number, each in enumerate(wrong[:MAX_SUMMED_UP], 1):
        place = f"{each.where}: " if each.where else ""
        lines += [f"  {number}. {each.area}: {_plain(f'{place}{each.what}')}", f"     {_plain(each.fix)}"]
    if len(wrong) > MAX_SUMMED_UP:
        lines.append(f"  and {len(wrong) - MAX_SUMMED_UP} more, above")
    return lines
