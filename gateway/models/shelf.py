"""What of one logical model shall be loaded: its stable release, the one that is tried, the one kept for a rollback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gateway.models.catalog import ServedModel, ServedVariant, State, Trial
from gateway.models.release import Placement, Release
from gateway.models.repository import LogicalModel
from gateway.models.trial import Jury


@dataclass(frozen=True, slots=True, eq=False)
class TrialTerms:
    """How the candidate is tried, once it is loaded."""

    version: int
    jury: Jury
    share: float
    percent: int


@dataclass(slots=True, eq=False)
class Shelf:
    """One logical model; `held` has the state of each release that shall be loaded, by its version."""

    releases: dict[int, Release] = field(default_factory=dict)
    held: dict[int, ServedModel] = field(default_factory=dict)
    stable: int | None = None
    kept: int | None = None
    """A release that stays loaded for a rollback, for as long as Triton has it."""
    announced: ServedModel | None = None
    """What the catalogue shows while no release has come into service."""
    terms: TrialTerms | None = None
    out: State | None = None
    """ASLEEP or UNLOADED: nothing shall be loaded."""

    def hold(self, release: Release) -> None:
        """Let a release be loaded; one that is held already, at the same places, keeps its state."""
        known = self.releases.get(release.version)
        if known is None or known.placements != release.placements:
            self.held[release.version] = newcomer(release)
            if self.out is not None:
                self.held[release.version] = taken_out(self.held[release.version], self.out)
        self.releases[release.version] = release

    def keep_only(self, versions: set[int]) -> None:
        """Let no other release be loaded."""
        for version in set(self.releases) - versions:
            del self.releases[version], self.held[version]
        self.kept = self.kept if self.kept in versions else None

    def placements(self) -> Iterator[tuple[int, str, Placement]]:
        """Release, variant and place of everything that shall be loaded, the stable release first."""
        if self.out is not None:
            return
        for version in sorted(self.releases, key=lambda each: (each != self.stable, each)):
            for variant, placement in self.releases[version].placements.items():
                yield version, variant, placement

    def entry(self) -> ServedModel | None:
        """The entry of the catalogue: the stable release, with the trial while its candidate answers."""
        if self.stable is None:
            return self.announced
        model = self.held[self.stable]
        terms = self.terms
        candidate = self.held.get(terms.version) if terms else None
        if terms is None or candidate is None or not candidate.ready:
            return replace(model, trial=None) if model.trial else model
        return replace(model, trial=Trial(candidate, terms.jury, terms.share, terms.percent))


def newcomer(release: Release) -> ServedModel:
    """A release of which nothing is loaded yet."""
    spec = release.model.spec
    variants = {}
    for name, triton_model in spec.variants.items():
        if placement := release.placements.get(name):
            pinned = placement.version > 0
            version = str(placement.version) if pinned else ""
            variants[name] = ServedVariant(name, placement.triton_model, version=version, pinned=pinned)
        else:
            reason = release.missing.get(name, f"version {release.version} does not bring it")
            variants[name] = ServedVariant(name, triton_model, State.ABSENT, reason)
    return ServedModel(spec, release.model.labels, variants, version=release.version)


def taken_out(model: ServedModel, state: State) -> ServedModel:
    """A release of a model that is ASLEEP or UNLOADED."""
    reason = "unloaded to save memory" if state is State.ASLEEP else "unloaded by command"
    return with_state(model, state, reason)


def with_state(model: ServedModel, state: State, reason: str) -> ServedModel:
    """The same release with all variants that it brings in this state."""
    for variant in model.variants.values():
        if variant.state is not State.ABSENT:
            model = model.with_variant(replace(variant, state=state, reason=reason, fix=""))
    return model


def announcement(model: LogicalModel, state: State, reason: str) -> ServedModel:
    """What the catalogue shows of a model of which no version serves yet."""
    variants = {
        name: ServedVariant(name, triton_model, state, reason) for name, triton_model in model.spec.variants.items()
    }
    return ServedModel(model.spec, model.labels, variants)
