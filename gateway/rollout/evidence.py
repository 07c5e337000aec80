"""What the flow sees of a candidate in one step, kept in bounded memory and made into the figures of the gates."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from gateway.errors import BackendUnavailable, DeadlineExceeded, ModelCrashed, ModelUnavailable
from gateway.flow.compare import agree
from gateway.messages import Prediction, VariantResult
from gateway.models.spec import ModelSpec
from gateway.models.trial import Observation
from gateway.rollout.gates import Figures, Mean, Times, VariantSeen, Verdict, judge, progress
from gateway.rollout.steps import Step

MOST_TIMES = 2_000
"""Times of each variant and version that are kept, the latest: twenty of them lie above the p99."""
NOT_ASKED_MS = 1.0
"""A variant that ran out of time sooner was not asked at all: the time was gone when its turn came."""

Results = Mapping[str, VariantResult]


def _times() -> deque[float]:
    return deque(maxlen=MOST_TIMES)


@dataclass(slots=True, eq=False)
class _Asked:
    """How one version of a variant fared while it alone was asked, or both were."""

    answers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    times: deque[float] = field(default_factory=_times)

    def count(self, result: VariantResult) -> None:
        if result.error is None:
            self.answers += 1
        else:
            self.errors[result.error.code] += 1

    def time(self, result: VariantResult) -> None:
        if result.error is None:
            self.times.append(result.infer_ms)

    @property
    def asked(self) -> int:
        return self.answers + self.errors.total()


@dataclass(slots=True, eq=False)
class _Variant:
    """One variant of both versions: asked about the same snapshots, and each version about its own."""

    paired: _Asked = field(default_factory=_Asked)
    paired_stable: _Asked = field(default_factory=_Asked)
    alone: _Asked = field(default_factory=_Asked)
    alone_stable: _Asked = field(default_factory=_Asked)

    @property
    def excused(self) -> float:
        """Errors that the stable version, on its own snapshots at the same time, has by the same share and code."""
        stable = self.alone_stable
        return sum(
            min(count, stable.errors[code] / stable.asked * self.alone.asked)
            for code, count in self.alone.errors.items()
            if stable.asked
        )

    @property
    def seen(self) -> VariantSeen:
        return VariantSeen(
            answers=self.paired.answers + self.alone.answers,
            errors=self.paired.errors + self.alone.errors,
            excused=self.excused,
            times=(
                Times(tuple(self.paired.times), tuple(self.paired_stable.times)),
                Times(tuple(self.alone.times), tuple(self.alone_stable.times)),
            ),
        )


class Evidence:
    """The jury of one step, shadow or one percentage of the canary.

    Like is held against like: times on snapshots that both versions saw are kept apart from those on snapshots that
    one had for itself, for the second to be asked is asked later and alone. What says nothing of the candidate is
    left out: a variant that is away with Triton or was not brought, one for which no time was left, and a snapshot on
    which the stable version failed too. Of the errors on snapshots of its own, as many are excused as the stable
    version has on its own by the same code and share: on a machine that is overloaded both time out.
    """

    def __init__(self, model: ModelSpec, step: Step) -> None:
        self._rollout = model.rollout
        self._match_iou = model.inference.match_iou
        self._all_pairs = step is Step.CANARY
        self.needed = max(1, model.rollout.shadow if step is Step.SHADOW else model.rollout.min_samples)
        """Samples before any verdict that it passes."""
        self._snapshots = 0
        self._variants: dict[str, _Variant] = {}
        self._agreement = Mean()
        self._variant_agreement = Mean()

    @property
    def wants_pairs(self) -> bool:
        """Shadow: until there are as many as it takes; canary: always, for that is what tells of agreement."""
        return self._all_pairs or self._snapshots < self.needed

    def saw(self, observation: Observation) -> None:
        """Take one observation in."""
        candidate = {name: result for name, result in observation.candidate.items() if _tells(result)}
        stable = {name: result for name, result in observation.stable.items() if _tells(result)}
        if not candidate:
            if not observation.candidate:
                for name, result in stable.items():
                    self._variant(name).alone_stable.count(result)
                    self._variant(name).alone_stable.time(result)
            return
        if stable:
            candidate = {name: result for name, result in candidate.items() if not _both_failed(result, name, stable)}
        self._snapshots += bool(candidate)
        for name, result in candidate.items():
            variant = self._variant(name)
            (variant.paired if stable else variant.alone).count(result)
            if not stable:
                variant.alone.time(result)
        self._compare(candidate, stable)
        # Two variants that were asked at once slow each other down, and the stable version is asked in the shadow of
        # the candidate's answer for one variant only.
        if len(candidate) <= len(stable) or not observation.published_by_candidate:
            self._time_pairs(candidate, stable)

    def _time_pairs(self, candidate: Results, stable: Results) -> None:
        mine, theirs = _answered(candidate), _answered(stable)
        for name in mine.keys() & theirs.keys():
            self._variant(name).paired.time(mine[name])
            self._variant(name).paired_stable.time(theirs[name])

    def _compare(self, candidate: Results, stable: Results) -> None:
        mine, theirs = _answered(candidate), _answered(stable)
        pairs = [(result, theirs[name]) for name, result in mine.items() if name in theirs]
        if not pairs and mine and theirs:
            pairs = [(next(iter(mine.values())), next(iter(theirs.values())))]
        self._agreement = self._with(self._agreement, pairs)
        self._variant_agreement = self._with(self._variant_agreement, list(combinations(mine.values(), 2)))

    def _with(self, mean: Mean, pairs: list[tuple[VariantResult, VariantResult]]) -> Mean:
        if not pairs:
            return mean
        values = [agreement_of(first, second, self._match_iou) for first, second in pairs]
        return Mean(mean.count + 1, mean.total + sum(values) / len(values))

    def _variant(self, name: str) -> _Variant:
        return self._variants.setdefault(name, _Variant())

    @property
    def figures(self) -> Figures:
        """What was seen so far."""
        return Figures(
            snapshots=self._snapshots,
            variants={name: variant.seen for name, variant in self._variants.items() if _of_candidate(variant)},
            agreement=self._agreement,
            variant_agreement=self._variant_agreement,
        )

    @property
    def verdict(self) -> Verdict:
        """The verdict on what was seen so far."""
        return judge(self.figures, self._rollout, self.needed)

    @property
    def progress(self) -> str:
        """How far it is, in one line for people."""
        return progress(self.figures, self.needed)


def agreement_of(first: VariantResult, second: VariantResult, match_iou: float) -> float:
    """How far two results without error say the same of one snapshot, 0..1; 1 when neither sees anything.

    Classes go by the names that messages have, so that a version may number its labels anew.
    Objects: the share of all that both see, of one class and in one place; a class flip counts once.
    Classes: the confidence that both share, of all; near-ties that change places cost little.
    Anomalies: 1 less the difference of the scores; 0 where only one calls it unusual.
    Numbers: 1 less their difference in relation to the larger ones; 0 where they are not as many.
    """
    if first.values is not None or second.values is not None:
        return _nearness(first.values or (), second.values or ())
    if first.score is not None and second.score is not None:
        alike = bool(first.predictions) == bool(second.predictions)
        return 1.0 - min(1.0, abs(first.score - second.score)) if alike else 0.0
    if not first.predictions and not second.predictions:
        return 1.0
    if any(item.bbox is None for item in (*first.predictions, *second.predictions)):
        return _shared_confidence(first.predictions, second.predictions)
    names = {item.class_name for result in (first, second) for item in result.predictions}
    numbers = {name: number for number, name in enumerate(names)}
    found = agree(_numbered(first, numbers), _numbered(second, numbers), match_iou)
    return found.matched / (found.matched + found.only_first + found.only_second + found.class_flips)


def _numbered(result: VariantResult, numbers: Mapping[str, int]) -> VariantResult:
    predictions = tuple(replace(item, class_id=numbers[item.class_name]) for item in result.predictions)
    return replace(result, predictions=predictions)


def _shared_confidence(first: tuple[Prediction, ...], second: tuple[Prediction, ...]) -> float:
    # The most confident comes first, and stays where two labels have one name.
    mine, theirs = ({item.class_name: item.confidence for item in reversed(seen)} for seen in (first, second))
    both = [(mine.get(name, 0.0), theirs.get(name, 0.0)) for name in {**mine, **theirs}]
    whole = sum(max(pair) for pair in both)
    return sum(min(pair) for pair in both) / whole if whole > 0 else 1.0


def _nearness(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    if len(first) != len(second):
        return 0.0
    apart = sum(abs(one - other) for one, other in zip(first, second, strict=True))
    size = max(sum(map(abs, first)), sum(map(abs, second)))
    return max(0.0, 1.0 - apart / size) if size > 0 else 1.0


def _tells(result: VariantResult) -> bool:
    """Whether a result says something of its version."""
    error = result.error
    if isinstance(error, DeadlineExceeded):
        return result.infer_ms >= NOT_ASKED_MS
    return isinstance(error, ModelCrashed) or not isinstance(error, BackendUnavailable | ModelUnavailable)


def _both_failed(result: VariantResult, name: str, stable: Results) -> bool:
    """Whether the snapshot, or the moment, is at fault rather than the candidate."""
    if result.error is None:
        return False
    others = [stable[name]] if name in stable else list(stable.values())
    return all(other.error is not None for other in others)


def _answered(results: Results) -> dict[str, VariantResult]:
    return {name: result for name, result in results.items() if result.error is None}


def _of_candidate(variant: _Variant) -> bool:
    return bool(variant.paired.asked or variant.alone.asked)
