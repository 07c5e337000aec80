"""Whether a candidate passes a step: arithmetic on what was seen of it, and the reason in one line.

The rates of false alarms and of detection are in docs/decisions/0015-gates.md.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.models.rollout_spec import RolloutSpec

SIGNIFICANCE = 0.001
"""How likely chance alone may be, at most, for answers to count as slower; it is looked at many times in a step."""
FLOOR_MS = 1.0
"""Differences below it do not matter, however many times as long they make an answer."""
LEAST = 5
"""Answers of the stable version, or pairs, below which they are held against nothing, where no fewer are needed."""
QUANTILES = {"p99": 0.01, "median": 0.5}
"""The share of answers that take longer than that, by what people call it."""
ROUNDING = 1e-9


class Gate(enum.StrEnum):
    """What a candidate can fail at."""

    ERRORS = "errors"
    LATENCY = "latency"
    AGREEMENT = "agreement"
    """With the stable version."""
    VARIANT_AGREEMENT = "variant_agreement"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`passed` is None while there is too little to go by; `gate` is empty unless it failed."""

    passed: bool | None
    gate: Gate | None
    reason: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """How long the answers of one variant took, in ms, where both versions were asked under the same conditions."""

    candidate: Sequence[float]
    stable: Sequence[float]


@dataclass(frozen=True, slots=True)
class VariantSeen:
    """What was seen of one variant of the candidate."""

    answers: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    """By code."""
    excused: float = 0.0
    """How many of the errors are no fault of the candidate's."""
    times: tuple[Times, ...] = ()

    @property
    def failed(self) -> float:
        """The errors that are held against it."""
        return max(0.0, sum(self.errors.values()) - self.excused)

    @property
    def counted(self) -> float:
        """The questions whose outcome says something of it."""
        return self.answers + self.failed


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of numbers in 0..1."""

    count: int = 0
    total: float = 0.0

    @property
    def value(self) -> float:
        """The mean; 1 of nothing."""
        return self.total / self.count if self.count else 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was seen of a candidate in one step."""

    snapshots: int = 0
    """That it was asked about."""
    variants: Mapping[str, VariantSeen] = field(default_factory=dict)
    agreement: Mean = Mean()
    """With the stable version, a number for each snapshot that both answered."""
    variant_agreement: Mean = Mean()
    """Of the candidate's variants, a number for each snapshot that two of them answered."""

    @property
    def samples(self) -> int:
        """Snapshots that say something of the candidate."""
        return min(self.snapshots, math.floor(sum(seen.counted for seen in self.variants.values()) + ROUNDING))


def judge(figures: Figures, spec: RolloutSpec, needed: int) -> Verdict:
    """The verdict on `needed` samples, at least 1.

    It passes only with that many. It fails with fewer only where all that may still come up to there cannot help.
    """
    failed = (
        _judge_errors(figures, spec.max_error_rate, needed)
        or _judge_times(figures, spec.max_slowdown, needed)
        or _judge_agreement(figures, spec.min_agreement, needed)
        or _judge_variants(figures, spec.min_variant_agreement, needed)
    )
    if failed is not None:
        return failed
    return Verdict(True if figures.samples >= needed else None, None, progress(figures, needed))


def progress(figures: Figures, needed: int) -> str:
    """How far it is, in one line for people."""
    samples = figures.samples
    of = f" of {needed}" if samples < needed else ""
    parts = [f"{samples}{of} snapshots", _errors_said(figures)]
    if figures.variants:
        name, seen = max(figures.variants.items(), key=lambda item: item[1].answers)
        times = max(seen.times, key=lambda each: min(len(each.candidate), len(each.stable)), default=Times((), ()))
        if times.candidate and times.stable:
            of = f" of {name}" if len(figures.variants) > 1 else ""
            mine, theirs = (quantile(each, QUANTILES["p99"]) for each in (times.candidate, times.stable))
            parts.append(f"p99{of} {_ms(mine)} against {_ms(theirs)}")
    if figures.agreement.count:
        parts.append(f"agreement {figures.agreement.value:.2f}")
    if figures.variant_agreement.count:
        parts.append(f"agreement of the variants {figures.variant_agreement.value:.2f}")
    return ", ".join(parts)


def _judge_errors(figures: Figures, allowed: float, needed: int) -> Verdict | None:
    for name, seen in figures.variants.items():
        # Further answers up to `needed` may still make the share smaller.
        of = seen.counted if figures.samples >= needed else max(seen.counted, needed)
        if seen.failed > allowed * of + ROUNDING:
            codes = ", ".join(f"{code} {count}" for code, count in sorted(seen.errors.items(), key=lambda e: -e[1]))
            return Verdict(
                False,
                Gate.ERRORS,
                f"{name} failed on {_count(seen.failed)} of {_count(seen.counted)} snapshots ({codes}), "
                f"at most {_percent(allowed)} may",
                "See Triton's log for why; mend the model, or raise rollout.max_error_rate in model.yaml",
            )
    return None


def _judge_times(figures: Figures, slowdown: float, needed: int) -> Verdict | None:
    """Not before `needed` samples, for what the stable version's times are is not known earlier either."""
    if figures.samples < needed:
        return None
    for name, called, share, times in _comparable(figures, needed):
        share = max(share, 1 / (len(times.stable) + 1))  # few times tell nothing of what is rarer than one of them
        base = quantile(times.stable, share)
        limit = max(base * slowdown, base + FLOOR_MS)
        slower, asked = sum(each > limit for each in times.candidate), len(times.candidate)
        if is_more_than(slower, asked, share):
            return Verdict(
                False,
                Gate.LATENCY,
                f"{called} of {name}: {slower} of {asked} answers took longer than {_ms(limit)}; the stable version's "
                f"{called} is {_ms(base)}, and {slowdown:g} times that is allowed",
                "Make the model faster, or raise rollout.max_slowdown in model.yaml if it may be that slow",
            )
    return None


def _comparable(figures: Figures, needed: int) -> Iterator[tuple[str, str, float, Times]]:
    for name, seen in figures.variants.items():
        for times in seen.times:
            if times.candidate and len(times.stable) >= min(LEAST, needed):
                for called, share in QUANTILES.items():
                    yield name, called, share, times


def _judge_agreement(figures: Figures, least: float, needed: int) -> Verdict | None:
    mean = figures.agreement
    if not _too_low(mean, least, figures.samples, needed):
        return None
    return Verdict(
        False,
        Gate.AGREEMENT,
        f"it agrees with the stable version by {mean.value:.2f} on {mean.count} snapshots, at least {least:.2f} is due",
        "Compare what both see on the same pictures; if the new version is meant to differ, "
        "lower rollout.min_agreement in model.yaml",
    )


def _judge_variants(figures: Figures, least: float, needed: int) -> Verdict | None:
    mean = figures.variant_agreement
    if not _too_low(mean, least, figures.samples, needed):
        return None
    names = " and ".join(figures.variants)
    return Verdict(
        False,
        Gate.VARIANT_AGREEMENT,
        f"{names} agree by {mean.value:.2f} on {mean.count} snapshots, at least {least:.2f} is due",
        "Export all variants from the same weights, or lower rollout.min_variant_agreement in model.yaml",
    )


def _too_low(mean: Mean, least: float, samples: int, needed: int) -> bool:
    if samples < needed:
        to_come = max(0, needed - mean.count)
        return mean.total + to_come < least * (mean.count + to_come) - ROUNDING
    return mean.count >= min(LEAST, needed) and mean.total < least * mean.count - ROUNDING


def quantile(values: Sequence[float], above: float) -> float:
    """The value, out of at least one, that this share of them lies above."""
    return sorted(values)[max(0, math.ceil((1 - above) * len(values) - ROUNDING) - 1)]


def is_more_than(found: int, of: int, share: float) -> bool:
    """Whether so many are significantly more than that share of all: the one-sided binomial test."""
    if found <= of * share:
        return False
    log_of = math.lgamma(of + 1)
    chance = math.fsum(
        math.exp(
            log_of
            - math.lgamma(count + 1)
            - math.lgamma(of - count + 1)
            + count * math.log(share)
            + (of - count) * math.log1p(-share)
        )
        for count in range(found, of + 1)
    )
    return chance <= SIGNIFICANCE


def _errors_said(figures: Figures) -> str:
    failed = sum(seen.failed for seen in figures.variants.values())
    excused = sum(seen.excused for seen in figures.variants.values())
    shared = f" and {_count(excused)} as the stable version has them" if excused >= 0.5 else ""
    return f"{_count(failed)} error{'s' * (round(failed) != 1)}{shared}"


def _count(number: float) -> str:
    return f"{round(number)}" if number >= 1 or not number else f"{number:.1f}"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _ms(value: float) -> str:
    return f"{value:.3g} ms"
