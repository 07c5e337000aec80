"""What serves now: an immutable catalogue, replaced as a whole; a snapshot keeps the entry it started with."""

from __future__ import annotations

import asyncio
import enum
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.errors import ModelUnknown
from gateway.layouts.binding import BoundOutput
from gateway.models.input_plan import InputPlan, WindowPlan
from gateway.models.spec import CANDLE, NATIVE_VARIANT, ModelSpec
from gateway.models.trial import Jury
from gateway.topics import specificity, topic_matches


class State(enum.StrEnum):
    """Where a variant stands with Triton."""

    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"
    """Triton or the check against model.yaml said no; the reason says why."""
    ABSENT = "absent"
    """The version that serves does not bring this variant."""
    ASLEEP = "asleep"
    """Unloaded to save memory; loaded again when a snapshot asks for the model."""
    UNLOADED = "unloaded"
    """Taken out of service by command."""


GONE = (State.REFUSED, State.ABSENT, State.UNLOADED)
"""States that do not end by themselves."""


@dataclass(frozen=True, slots=True)
class ServedVariant:
    """One Triton model as a variant; names of tensors as the loaded model has them."""

    name: str
    triton_model: str
    state: State = State.LOADING
    reason: str = "not loaded yet"
    fix: str = ""
    version: str = ""
    pinned: bool = False
    """Whether Triton is asked for this very version, rather than for the highest that it serves."""
    plan: InputPlan | WindowPlan | None = None
    """What it wants as input; None until it has been loaded."""
    outputs: Mapping[str, BoundOutput] = field(default_factory=dict)
    """The tensor of each role of the model's layout."""
    classes: int = 0
    """How many classes its output has; 0 where that is not said or does not apply."""
    max_batch: int = 1
    """Pictures in one request; 0 when its tensors have no batch axis."""
    on_gpu: bool | None = None
    """Whether Triton runs it on a GPU; None where it does not say."""


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """What Triton reports of a variant: means over the last seconds with traffic, in ms, and its memory."""

    queue_ms: float | None = None
    compute_ms: float | None = None
    memory_mb: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One logical model with its variants."""

    spec: ModelSpec
    labels: tuple[str, ...]
    variants: Mapping[str, ServedVariant]
    figures: Mapping[str, VariantFigures] = field(default_factory=dict)
    version: int = 0
    """Of the logical model; 0 where Triton decides which version serves."""
    trial: Trial | None = None
    """The next version, while some snapshots go to it."""
    waking: bool = False
    """Being loaded again since somebody asked for it."""

    @property
    def ready(self) -> bool:
        """True when at least one variant answers."""
        return any(variant.state is State.READY for variant in self.variants.values())

    @property
    def loading(self) -> bool:
        """True while a variant is still to come."""
        return any(variant.state is State.LOADING for variant in self.variants.values())

    @property
    def refused(self) -> bool:
        """True when no variant can be expected to answer soon."""
        return all(variant.state in GONE for variant in self.variants.values())

    @property
    def asleep(self) -> bool:
        """True when it waits for a snapshot to be loaded again."""
        return not self.ready and any(variant.state is State.ASLEEP for variant in self.variants.values())

    def meant_by(self, name: str | None) -> str | None:
        """A variant's name as it is meant: the decision record's `candle` is the native one where nothing else is."""
        if name == CANDLE and CANDLE not in self.variants and NATIVE_VARIANT in self.variants:
            return NATIVE_VARIANT
        return name

    def with_variant(self, variant: ServedVariant) -> ServedModel:
        """The same model with one variant in a new state."""
        return replace(self, variants={**self.variants, variant.name: variant})

    def why_not_ready(self) -> str:
        """The reasons of the variants that do not answer, in one line; empty when all do."""
        return "; ".join(
            f"{variant.name} is {variant.state.value}: {variant.reason}"
            for variant in self.variants.values()
            if variant.state is not State.READY
        )


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A version that is tried beside the one that serves: in shadow while `share` is 0, else as canary."""

    candidate: ServedModel
    jury: Jury
    share: float = 0.0
    percent: int = 0
    """What `share` was chosen for, as people see it."""

    def takes(self, device_id: str) -> bool:
        """Whether the candidate answers this camera: always the same ones, and with a larger share these and more."""
        return self.share > 0 and bucket(self.candidate.spec.name, device_id) < self.share


def bucket(model: str, device_id: str) -> float:
    """Where a camera stands in 0..1, evenly spread, and the same in every gateway and after every restart."""
    return zlib.crc32(f"{model}/{device_id}".encode(errors="surrogateescape")) / 2**32


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A variant that serves, but is not asked for now, since it fails."""

    state: str
    """Of its circuit breaker, which is not closed."""
    reason: str
    """In half a sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Catalog:
    """All logical models by name."""

    models: Mapping[str, ServedModel] = field(default_factory=dict)

    def named(self, name: str) -> ServedModel:
        """The model of that name; raises ModelUnknown naming the known ones."""
        try:
            return self.models[name]
        except KeyError:
            known = ", ".join(sorted(self.models)) or "none"
            raise ModelUnknown(f"no model '{name[:100]}' (known: {known})") from None

    def for_topic(self, topic: str, *, pictures: bool) -> ServedModel:
        """The model, of those on pictures or on numbers, whose input_topics fit best, else the only one.

        Raises ModelUnknown.
        """
        models = {name: model for name, model in self.models.items() if model.spec.takes_pictures is pictures}
        best: tuple[int, str] | None = None
        for name, model in models.items():
            for pattern in model.spec.mqtt.input_topics:
                if topic_matches(pattern, topic):
                    candidate = (specificity(pattern), name)
                    best = candidate if best is None or candidate > best else best
        if best is not None:
            return models[best[1]]
        if len(models) == 1:
            return next(iter(models.values()))
        known = f" (there are: {', '.join(sorted(models)[:20])})" if models else ""
        raise ModelUnknown(
            f"no model on {'pictures' if pictures else 'plain numbers'} takes topic '{topic[:200]}'{known}",
            fix="Name the model: model_name in the message, ?model= over HTTP; "
            "or name the topic in mqtt.input_topics of its model.yaml",
        )


class Models:
    """The current catalogue, and a way to wait for the next; the loader alone replaces it."""

    def __init__(self) -> None:
        self.current = Catalog()
        self._changed = asyncio.Event()
        self.woken = asyncio.Event()
        """Set when there is something for the loader to do at once."""
        self.wanted: set[str] = set()
        """Models that somebody asks for while they are asleep; the loader takes them out."""
        self.given_up: dict[tuple[str, str], GivenUp] = {}
        """The variants whose circuit breaker is not closed, by model and variant; the flow keeps it."""

    def put(self, model: ServedModel) -> None:
        """Publish a new entry for one model; whoever waits looks again."""
        self.current = Catalog({**self.current.models, model.spec.name: model})
        self.say_changed()

    def remove(self, name: str) -> None:
        """Take a model out; whoever waits looks again."""
        self.current = Catalog({key: model for key, model in self.current.models.items() if key != name})
        self.say_changed()

    def give_up(self, variant: tuple[str, str], why: GivenUp | None) -> None:
        """Show that a variant, (model, variant), is not asked for now; None: it is again. Whoever waits looks again."""
        before = self.given_up.pop(variant, None)
        if why is not None:
            self.given_up[variant] = why
        if why != before:
            self.say_changed()

    def wake(self, name: str) -> None:
        """Ask for a model that is asleep to be loaded again."""
        self.wanted.add(name)
        self.woken.set()

    def can_answer(self, name: str) -> bool:
        """Whether a snapshot for this model need not wait: it serves, or it was refused and nothing is to come."""
        model = self.current.models.get(name)
        return model is None or model.ready or model.refused

    def say_changed(self) -> None:
        """Let those look again who wait in `changed`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return at the next change of the catalogue."""
        await self._changed.wait()
