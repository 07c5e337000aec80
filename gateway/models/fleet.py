"""What shall be loaded of all models, how it stands, and what the catalogue shows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gateway.messages import ModelSignature
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel, ServedVariant, State, VariantFigures
from gateway.models.release import Placement, Release
from gateway.models.repository import LogicalModel
from gateway.models.shelf import Shelf, TrialTerms, announcement, taken_out, with_state
from gateway.models.signature import fit
from gateway.models.trial import Jury

Key = tuple[str, int, str]
"""A logical model, a release of it, and one of its variants."""


@dataclass(slots=True)
class Watched:
    """What is remembered of one variant of a release between two looks at Triton."""

    missing: bool = False
    """Triton said that it does not serve the variant; False also when it has not been asked yet."""
    retry_at: float = 0.0
    load_s: float = 0.0
    refusal_said: str = ""
    losses: int = 0
    """How often Triton lost it while it ran."""
    signature: ModelSignature | None = None


class Fleet:
    """All models that shall be loaded. Who rolls out says what is wanted; the loader says what has come of it."""

    def __init__(self, models: Models, metrics: Metrics, default_backend: str = "onnx") -> None:
        self._models = models
        self._metrics = metrics
        self._default_backend = default_backend
        self._shelves: dict[str, Shelf] = {}
        self._watched: dict[Key, Watched] = {}
        self._awaited: set[tuple[str, int]] = set()
        self._moved = asyncio.Event()
        self.let_go: dict[str, set[int]] = {}
        """Versions of Triton models that were wanted here and are not any more."""
        self.leaving: set[str] = set()
        """Triton models of which nothing is wanted any more, until Triton serves none of them."""

    # --- what is wanted -----------------------------------------------------------------------------

    def announce(self, model: LogicalModel, reason: str, *, refused: bool = False) -> None:
        """Show a model of which no version serves yet; its snapshots wait unless it is refused."""
        shelf = self._shelf(model.spec.name)
        shelf.announced = announcement(model, State.REFUSED if refused else State.LOADING, reason)
        self._publish(model.spec.name)

    def serve(self, stable: Release, kept: Release | None = None) -> None:
        """Let this release answer, and that one only stay loaded; all others of the model are unloaded.

        Raises ConfigError, and changes nothing, when its model.yaml does not fit what Triton has loaded.
        """
        shelf = self._shelf(stable.name)
        refitted = self._refitted(shelf, stable)
        with self._leaving_behind(shelf):
            shelf.hold(stable)
            if refitted is not None:
                shelf.held[stable.version] = refitted
            shelf.keep_only({stable.version, *([kept.version] if kept else [])})
            shelf.kept = kept.version if kept and kept.version != stable.version else None
            shelf.stable, shelf.terms, shelf.announced = stable.version, None, None
        self._publish(stable.name)

    def also(self, candidate: Release) -> None:
        """Let this release be loaded beside the one that answers."""
        for key in [key for key in self._watched if key[:2] == (candidate.name, candidate.version)]:
            del self._watched[key]
        shelf = self._shelf(candidate.name)
        shelf.hold(candidate)
        shelf.kept = None if shelf.kept == candidate.version else shelf.kept
        self._models.woken.set()

    def drop(self, name: str, version: int) -> None:
        """Let a release beside the one that answers not be loaded any more."""
        shelf = self._shelves.get(name)
        if shelf is None or version not in shelf.releases or version == shelf.stable:
            return
        with self._leaving_behind(shelf):
            shelf.keep_only(set(shelf.releases) - {version})
            shelf.terms = None if shelf.terms and shelf.terms.version == version else shelf.terms
        self._publish(name)

    def try_out(self, name: str, version: int, jury: Jury, share: float = 0.0, percent: int = 0) -> None:
        """Let a loaded candidate be tried: in shadow with share 0, else as the answer to these cameras."""
        self._shelf(name).terms = TrialTerms(version, jury, share, percent)
        self._publish(name)

    def end_trial(self, name: str) -> None:
        """Let the stable version alone be asked."""
        if shelf := self._shelves.get(name):
            shelf.terms = None
            self._publish(name)

    def take_out(self, name: str, state: State) -> None:
        """Unload a model: ASLEEP until somebody asks for it, or UNLOADED by command."""
        shelf = self._shelf(name)
        with self._leaving_behind(shelf):
            shelf.out = state
        self._set_all(name, lambda model: taken_out(model, state))

    def bring_back(self, name: str) -> None:
        """Load again what was taken out."""
        shelf = self._shelves.get(name)
        if shelf is not None and shelf.out is not None:
            waking, shelf.out = shelf.out is State.ASLEEP, None
            shelf.held = {version: replace(model, waking=waking) for version, model in shelf.held.items()}
            self._set_all(name, lambda model: with_state(model, State.LOADING, "being loaded again"))
            self._models.woken.set()

    def remove(self, name: str) -> None:
        """Take a model out of the catalogue, and everything of it out of Triton."""
        shelf = self._shelves.get(name)
        if shelf is None:
            return
        with self._leaving_behind(shelf):
            del self._shelves[name]
        for variant in self._models.current.models[name].variants:
            self._metrics.model_ready.remove(name, variant)
        self._models.remove(name)

    @contextmanager
    def _leaving_behind(self, shelf: Shelf) -> Iterator[None]:
        """Around a change of what is wanted: what is not wanted after it leaves Triton."""
        before = {(placement.triton_model, placement.version) for _, _, placement in shelf.placements()}
        yield
        wanted = self.wanted()
        for name, version in before:
            if name not in wanted:
                self.leaving.add(name)
            elif version not in wanted[name]:
                self.let_go.setdefault(name, set()).add(version)
        known = {(name, version) for name, shelf in self._shelves.items() for version in shelf.releases}
        self._watched = {key: watched for key, watched in self._watched.items() if key[:2] in known}
        self._models.woken.set()

    def _set_all(self, name: str, change: Callable[[ServedModel], ServedModel]) -> None:
        shelf = self._shelves[name]
        shelf.held = {version: change(model) for version, model in shelf.held.items()}
        self._publish(name)

    def _refitted(self, shelf: Shelf, release: Release) -> ServedModel | None:
        """What is held of a release, by its model.yaml as it reads now; None where nothing has to change."""
        known, held = shelf.releases.get(release.version), shelf.held.get(release.version)
        if known is None or held is None or known.model == release.model or known.placements != release.placements:
            return None
        variants = {}
        for variant in held.variants.values():
            signature = self.watched((release.name, release.version, variant.name)).signature
            ready = variant.state is State.READY and signature is not None
            variants[variant.name] = fit(signature, release.model, variant) if ready and signature else variant
        return replace(held, spec=release.model.spec, labels=release.model.labels, variants=variants)

    # --- how it stands ------------------------------------------------------------------------------

    @property
    def shelves(self) -> Mapping[str, Shelf]:
        """What is wanted, by logical model."""
        return self._shelves

    def places(self) -> Iterator[tuple[Key, Placement]]:
        """Everything that shall be loaded."""
        for name, shelf in list(self._shelves.items()):
            for version, variant, placement in list(shelf.placements()):
                yield (name, version, variant), placement

    def wanted(self) -> dict[str, dict[int, Release]]:
        """The versions of each Triton model that shall be loaded, and for which release; version 0: any."""
        found: dict[str, dict[int, Release]] = {}
        for (name, version, _), placement in self.places():
            release = self._shelves[name].releases[version]
            found.setdefault(placement.triton_model, {})[placement.version] = release
        return found

    def release(self, key: Key) -> Release | None:
        """The release of a key; None when it is not wanted any more."""
        shelf = self._shelves.get(key[0])
        return None if shelf is None or shelf.out is not None else shelf.releases.get(key[1])

    def variant(self, key: Key) -> ServedVariant:
        """How a variant of a wanted release stands."""
        return self._shelves[key[0]].held[key[1]].variants[key[2]]

    def watched(self, key: Key) -> Watched:
        """What is remembered of it."""
        return self._watched.setdefault(key, Watched())

    def rank(self, key: Key) -> tuple[bool, bool, bool]:
        """What is loaded before what: what answers, models of which nothing serves, the variant that would answer."""
        shelf = self._shelves[key[0]]
        spec = shelf.releases[key[1]].model.spec
        order = [name for name in (spec.backend, self._default_backend, *spec.variants) if name in spec.variants]
        brought = [name for name in order if name in shelf.releases[key[1]].placements]
        return not self.answers(key), shelf.held[key[1]].ready, key[2] != brought[0]

    def answers(self, key: Key) -> bool:
        """Whether it is of the release that answers."""
        return key[1] == self._shelves[key[0]].stable

    def is_kept(self, key: Key) -> bool:
        """Whether it is of a release that only stays loaded, and is not loaded again for that."""
        return key[1] == self._shelves[key[0]].kept

    def served(self, name: str, version: int) -> ServedModel | None:
        """How a release stands; None when it is not wanted."""
        shelf = self._shelves.get(name)
        return shelf.held.get(version) if shelf else None

    def losses(self, name: str, version: int) -> int:
        """How often Triton lost something of a release while it ran."""
        return sum(watched.losses for key, watched in self._watched.items() if key[:2] == (name, version))

    async def settled(self, name: str, version: int) -> ServedModel:
        """A release when each of its variants serves or has been refused; waits while Triton is away.

        Whoever asks says what is refused.
        """
        self._awaited.add((name, version))
        try:
            while True:
                model = self.served(name, version)
                if model is not None and not model.loading:
                    return model
                await self.moved()
        finally:
            self._awaited.discard((name, version))

    def is_awaited(self, key: Key) -> bool:
        """Whether somebody waits in `settled` for the release that it is of."""
        return key[:2] in self._awaited

    async def moved(self) -> None:
        """Return when something has changed, or the loader has looked again."""
        await self._moved.wait()

    def say_moved(self) -> None:
        """Let those look again who wait in `moved`."""
        self._moved.set()
        self._moved = asyncio.Event()

    # --- the catalogue ------------------------------------------------------------------------------

    def put(self, key: Key, variant: ServedVariant) -> None:
        """Note how a variant of a wanted release stands."""
        shelf = self._shelves[key[0]]
        model = shelf.held[key[1]].with_variant(variant)
        shelf.held[key[1]] = replace(model, waking=model.waking and model.loading)
        self._publish(key[0])

    def put_figures(self, name: str, variant: str, figures: VariantFigures) -> None:
        """Note what Triton reports of a variant."""
        shelf = self._shelves.get(name)
        if shelf is not None and shelf.stable is not None:
            model = shelf.held[shelf.stable]
            if model.figures.get(variant) != figures:
                shelf.held[shelf.stable] = replace(model, figures={**model.figures, variant: figures})
                self._publish(name)

    def _publish(self, name: str) -> None:
        shelf = self._shelves[name]
        entry, before = shelf.entry(), self._models.current.models.get(name)
        if entry is not None:
            if before is None:
                self._metrics.know_model(name)
            self._models.put(entry)
            for variant in entry.variants.values():
                self._metrics.model_ready.labels(name, variant.name).set(variant.state is State.READY)
            for gone in before.variants.keys() - entry.variants.keys() if before else ():
                self._metrics.model_ready.remove(name, gone)
            self._metrics.model_version.labels(name).set(entry.version)
        self.say_moved()

    def _shelf(self, name: str) -> Shelf:
        return self._shelves.setdefault(name, Shelf())
