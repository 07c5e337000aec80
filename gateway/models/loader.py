"""Brings the models of the repository into service on Triton and keeps them there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from gateway.errors import BackendUnavailable, ConfigError, GatewayError, SnapshotError
from gateway.messages import ModelSignature, ModelStatistics
from gateway.metrics import Metrics
from gateway.models.catalog import Models, ServedModel, ServedVariant, State, VariantFigures
from gateway.models.repository import LogicalModel
from gateway.models.signature import fit
from gateway.ports import InferenceServer

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 1.0
"""Between two looks at Triton; each is a cheap health call a variant."""
DESCRIBE_LIMIT_S = 2.0
"""For the signature of a model that has come into service; the looks wait for it."""
RETRY_REFUSED_S = 30.0
"""Until a refused variant is tried again: a file may have been mended, but Triton should not be kept busy."""

AWAY = "Triton cannot be reached"

Key = tuple[str, str]
"""The names of a logical model and of one of its variants."""


@dataclass(slots=True)
class _Watched:
    """What the loader remembers of one variant between two looks."""

    missing: bool = False
    """Triton said that it does not serve the variant; False also when it has not been asked yet."""
    retry_at: float = 0.0
    load_s: float = 0.0
    refusal_said: str = ""
    statistics: ModelStatistics | None = None


class Loader:
    """Sees what Triton serves, asks it to load what is missing, and reports what each variant costs.

    The three are tasks of their own, because a load may take minutes: meanwhile the others are watched. Only the
    watch says that a variant serves; the load only asks Triton for it.
    """

    def __init__(
        self,
        server: InferenceServer,
        models: Models,
        logical: list[LogicalModel],
        metrics: Metrics,
        default_backend: str = "onnx",
    ) -> None:
        self._server = server
        self._models = models
        self._logical = {model.spec.name: model for model in logical}
        self._metrics = metrics
        self._default_backend = default_backend
        self._watched: dict[Key, _Watched] = {}
        self._signatures: dict[Key, ModelSignature] = {}
        self._load_under_way: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._look_now = asyncio.Event()
        self._waiting = False
        self.triton_ready = False
        for model in logical:
            variants = {name: ServedVariant(name, triton) for name, triton in model.spec.variants.items()}
            self._models.put(ServedModel(model.spec, model.labels, variants))
            for name in variants:
                self._watched[model.spec.name, name] = _Watched()
                metrics.model_ready.labels(model.spec.name, name).set(0)

    @property
    def paths(self) -> list[Path]:
        """Every model.yaml that is served."""
        return [model.path for model in self._logical.values()]

    def replace_specs(self, logical: list[LogicalModel]) -> list[str]:
        """Let each model be served by its model.yaml as it reads now; returns what takes a restart instead.

        Raises ConfigError, and changes nothing, when one does not fit the model that Triton has loaded.
        """
        given = {model.spec.name: model for model in logical}
        restart = [f"model '{name}' is new" for name in given if name not in self._logical]
        restart += [f"model '{name}' is gone" for name in self._logical if name not in given]
        changed = []
        for name, model in given.items():
            if name not in self._logical or model == self._logical[name]:
                continue
            if model.spec.variants != self._logical[name].spec.variants:
                restart.append(f"the variants of model '{name}' are others")
            else:
                changed.append(self._refitted(model))
        for served in changed:
            self._logical[served.spec.name] = given[served.spec.name]
            self._models.put(served)
        return restart

    def _refitted(self, model: LogicalModel) -> ServedModel:
        name = model.spec.name
        served = self._models.current.models[name]
        variants = {
            variant.name: fit(self._signatures[name, variant.name], model, variant)
            if variant.state is State.READY
            else variant
            for variant in served.variants.values()
        }
        return replace(served, spec=model.spec, labels=model.labels, variants=variants)

    async def run(self) -> None:
        """Reconcile for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="models: watch")
            group.create_task(self._measure_all(), name="models: measure")
            group.create_task(self._load_missing(group), name="models: load")

    # --- watch --------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await self._look()
            self._looked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._look_now.wait()
            self._look_now.clear()

    async def _look(self) -> None:
        """Ask Triton how it is and what it serves, everything at once, so that one time limit bounds it all."""
        asked = [(key, variant) for key, variant in self._variants() if variant.state is not State.REFUSED]
        live, answers = await asyncio.gather(
            self._server.is_ready(), asyncio.gather(*(self._serves(variant.triton_model) for _, variant in asked))
        )
        # Frozen between its answer to the one call and to the others, Triton is as good as away.
        self._say_answering(live and (not answers or any(answer is not None for answer in answers)))
        if not self.triton_ready:
            self._all_unavailable()
            return
        come = []
        for (key, _), serves in zip(asked, answers, strict=True):
            if serves is False:
                self._note_missing(key)
            elif serves and self._variant(key).state is State.LOADING:
                come.append(key)
        await asyncio.gather(*(self._take_up(key) for key in come))

    async def _serves(self, triton_model: str) -> bool | None:
        """What Triton says of one model; None when it says nothing, which must not pass for "gone"."""
        try:
            return await self._server.is_model_ready(triton_model)
        except BackendUnavailable:
            return None

    def _say_answering(self, answering: bool) -> None:
        self.triton_ready = answering
        self._metrics.triton_ready.set(answering)
        if not answering and not self._waiting:
            log.warning("Waiting for Triton", fix="Check that Triton runs and that TRITON_GRPC_URL names it")
        self._waiting = not answering

    def _all_unavailable(self) -> None:
        """Nothing is known of any variant now; a load that nobody answers would only hold up the next one."""
        if self._load_under_way is not None:
            self._load_under_way.cancel()
        for key, variant in self._variants():
            self._watched[key] = _Watched(refusal_said=self._watched[key].refusal_said)
            if (variant.state, variant.reason) != (State.LOADING, AWAY):
                self._put(key, replace(variant, state=State.LOADING, reason=AWAY))

    def _note_missing(self, key: Key) -> None:
        watched, variant = self._watched[key], self._variant(key)
        watched.missing = True
        if variant.state is State.READY:
            log.warning("A model is gone from Triton; loading it again", model=key[0], variant=key[1])
            self._put(key, replace(variant, state=State.LOADING, reason="gone from Triton, being loaded again"))
        elif variant.reason == AWAY:
            self._put(key, replace(variant, reason="not loaded yet"))

    async def _take_up(self, key: Key) -> None:
        """Let a variant serve that Triton has, if it fits its model.yaml."""
        watched, variant = self._watched[key], self._variant(key)
        try:
            async with asyncio.timeout(DESCRIBE_LIMIT_S):
                signature = await self._server.describe(variant.triton_model)
            ready = fit(signature, self._logical[key[0]], variant)
            self._signatures[key] = signature
        except (BackendUnavailable, TimeoutError):
            return  # the next look tells why, or tries again
        except (ConfigError, SnapshotError) as error:
            self._refuse(key, error)
            return
        log.info(
            "A model serves",
            model=key[0],
            variant=key[1],
            triton_model=variant.triton_model,
            version=ready.version,
            seconds=round(watched.load_s, 2),
        )
        self._watched[key] = _Watched()
        self._put(key, ready)

    # --- load ---------------------------------------------------------------------------------------

    async def _load_missing(self, group: asyncio.TaskGroup) -> None:
        """One load at a time, for each takes memory and slows the others down; what is next a fresh look tells."""
        while True:
            await self._looked.wait()
            self._looked.clear()
            key = self._most_needed()
            if key is None:
                continue
            # A task of its own, so that the watch can end it; the group ignores that it was cancelled.
            self._load_under_way = group.create_task(self._load(key), name=f"models: load {'/'.join(key)}")
            await asyncio.wait([self._load_under_way])
            self._load_under_way = None
            self._looked.clear()
            self._look_now.set()

    def _most_needed(self) -> Key | None:
        """What to load next, so that every model answers as soon as possible.

        What was refused comes last; before it the models of which nothing serves, and of each the variant that
        would answer.
        """
        now = time.monotonic()
        due = [
            (
                variant.state is State.REFUSED,
                self._models.current.models[key[0]].ready,
                not self._first(key),
                place,
                key,
            )
            for place, (key, variant) in enumerate(self._variants())
            if variant.state is State.REFUSED or (variant.state is State.LOADING and self._watched[key].missing)
            if now >= self._watched[key].retry_at
        ]
        return min(due)[-1] if due else None

    def _first(self, key: Key) -> bool:
        """True for the variant that answers when a message names none."""
        spec = self._logical[key[0]].spec
        wanted = [name for name in (spec.backend, self._default_backend, *spec.variants) if name in spec.variants]
        return key[1] == wanted[0]

    async def _load(self, key: Key) -> None:
        watched, variant = self._watched[key], self._variant(key)
        if variant.state is State.LOADING:
            self._put(key, replace(variant, reason="being loaded"))
        started = time.monotonic()
        watched.missing = False  # until the next look
        try:
            await self._server.load(variant.triton_model)
        except BackendUnavailable:
            watched.retry_at = time.monotonic() + CHECK_INTERVAL_S  # a look tells whether Triton is away
            return
        except SnapshotError as error:
            self._refuse(key, error)
            return
        watched.load_s = time.monotonic() - started
        # Should Triton not serve what it said to have loaded, it is not asked without end.
        watched.retry_at = time.monotonic() + RETRY_REFUSED_S
        if self._variant(key).state is State.REFUSED:
            self._put(key, replace(variant, state=State.LOADING, reason="loaded, not checked yet"))

    def _refuse(self, key: Key, error: GatewayError) -> None:
        watched, variant = self._watched[key], self._variant(key)
        watched.retry_at = time.monotonic() + RETRY_REFUSED_S
        if variant.state is State.READY:
            return  # it has come into service meanwhile, or an older version of it still serves
        reason = _first_line(error.message)
        if reason != watched.refusal_said:  # said once, not at every try
            log.error("A model is refused", model=key[0], variant=key[1], reason=reason, fix=error.fix)
            watched.refusal_said = reason
        self._put(key, replace(variant, state=State.REFUSED, reason=reason))

    # --- measure ------------------------------------------------------------------------------------

    async def _measure_all(self) -> None:
        while True:
            await asyncio.gather(
                *(self._measure(key, variant) for key, variant in self._variants() if variant.state is State.READY)
            )
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _measure(self, key: Key, variant: ServedVariant) -> None:
        """Mean queue and compute time of the requests since the last time, and memory, as Triton counts them."""
        try:
            now = await self._server.statistics(variant.triton_model)
        except SnapshotError:
            return  # figures are a courtesy; the watch tells what is wrong
        watched, model = self._watched[key], self._models.current.models[key[0]]
        before, watched.statistics = watched.statistics, now
        figures = model.figures.get(variant.name, VariantFigures())
        memory_mb = None if now.memory_bytes is None else now.memory_bytes / 1e6
        figures = replace(figures, memory_mb=memory_mb)
        count = now.success_count - before.success_count if before else now.success_count
        if count > 0:
            queue_ns = now.queue_ns - (before.queue_ns if before else 0)
            compute_ns = now.compute_ns - (before.compute_ns if before else 0)
            figures = replace(figures, queue_ms=queue_ns / count / 1e6, compute_ms=compute_ns / count / 1e6)
        if figures != model.figures.get(variant.name):
            self._models.put(replace(model, figures={**model.figures, variant.name: figures}))

    # --- the catalogue ------------------------------------------------------------------------------

    def _variants(self) -> Iterator[tuple[Key, ServedVariant]]:
        for name, model in self._models.current.models.items():
            for variant in model.variants.values():
                yield (name, variant.name), variant

    def _variant(self, key: Key) -> ServedVariant:
        return self._models.current.models[key[0]].variants[key[1]]

    def _put(self, key: Key, variant: ServedVariant) -> None:
        self._models.put(self._models.current.models[key[0]].with_variant(variant))
        self._metrics.model_ready.labels(*key).set(variant.state is State.READY)


def _first_line(reason: str) -> str:
    """A reason without the frames of Python that a backend appends."""
    return reason.split("\n\nAt:", maxsplit=1)[0].strip().partition("\n")[0].rstrip()
