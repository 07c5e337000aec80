"""5: who answers. The message, then model.yaml, then the environment decide."""

from __future__ import annotations

from collections.abc import Callable

from gateway.config import Settings
from gateway.errors import ModelUnavailable
from gateway.messages import Asked, Selection
from gateway.models.catalog import ServedModel, State


def choose(
    snapshot: Asked, model: ServedModel, settings: Settings, withheld: Callable[[str], str] | None = None
) -> Selection:
    """Choose the variants for one snapshot, as `choose_for` does for what it prefers."""
    return choose_for(snapshot.backend_preference, model, settings, withheld)


def choose_for(
    preference: str | None, model: ServedModel, settings: Settings, withheld: Callable[[str], str] | None = None
) -> Selection:
    """Choose the variant that answers, those that are compared, and those to fall back on.

    A variant that is known not to serve is passed over, and so is one for which `withheld` has a reason, while another
    one serves; the reason of the selection says so. What is withheld is the last to fall back on. Raises
    ModelUnavailable when none serves.
    """
    wanted, reason = _wanted(preference, model, settings)
    dual = wanted == "dual" and len(model.variants) > 1
    primary = _primary(wanted, model, settings)
    order = [primary, *(name for name in model.variants if name != primary)]
    serving = [name for name in order if model.variants[name].state is State.READY]
    if not serving:
        raise not_serving(model)
    why_not = {} if withheld is None else {name: why for name in serving if (why := withheld(name))}
    serving.sort(key=lambda name: name in why_not)
    policy = "dual" if dual else "single"
    if serving[0] != primary:
        failing = why_not.get(primary)
        away = f"{primary} does not serve: {model.variants[primary].reason}"
        reason = f"{primary} is not asked: {failing}" if failing else away
        policy = policy if dual else "fallback"
    # In dual mode a variant that is not to be asked is named too, so that the comparison says why it is missing.
    asked = [name for name in order if name != serving[0]]
    return Selection(
        policy=policy,
        reason=reason,
        primary=serving[0],
        fallback=() if dual else tuple(serving[1:]),
        compared=tuple(asked[:1]) if dual else (),
        passed_over=serving[0] != primary,
    )


def not_serving(model: ServedModel) -> ModelUnavailable:
    """Why no variant of the model answers, and what helps."""
    name = model.spec.name
    brought = [variant.state for variant in model.variants.values() if variant.state is not State.ABSENT]
    if brought and all(state is State.UNLOADED for state in brought):
        return ModelUnavailable(
            f"model '{name}' was unloaded by command", fix=f"Load it again: edge-gateway models load {name}"
        )
    return ModelUnavailable(f"no variant of '{name}' serves ({model.why_not_ready()})")


def _wanted(preference: str | None, model: ServedModel, settings: Settings) -> tuple[str, str]:
    if meant := model.meant_by(preference):
        return meant, "message"
    if len(model.variants) > 1:
        if model.spec.backend == "dual":
            return "dual", "model"
        if settings.enable_dual_backend:
            return "dual", "ENABLE_DUAL_BACKEND"
    if model.spec.backend is not None:
        return model.spec.backend, "model"
    return settings.default_backend, "default"


def _primary(wanted: str, model: ServedModel, settings: Settings) -> str:
    """The variant whose answer is the result; in dual mode the model's own, else the default one."""
    for name in (wanted, model.spec.backend, model.meant_by(settings.default_backend)):
        if name in model.variants:
            return str(name)
    return next(iter(model.variants))
