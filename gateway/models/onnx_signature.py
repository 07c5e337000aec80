"""A config.pbtxt beside its ONNX file: what Triton fills in from the graph, and what it would refuse.

The rules are those of NVIDIA's ONNX Runtime backend. They are applied to what the file declares, before onnxruntime
has inferred anything, so only what is certain is refused here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace

from gateway.errors import ConfigError
from gateway.messages import ModelSignature, TensorSpec
from gateway.models.onnx_file import OnnxFacts

DEFAULT_MAX_BATCH = 4
"""Triton's default-max-batch-size, for a model that can batch and whose configuration does not say how much."""


def can_batch(facts: OnnxFacts) -> bool:
    """Whether the first axis of every tensor is open, which Triton takes for the batch."""
    return all(spec.shape and spec.shape[0] == -1 for spec in (*facts.inputs, *facts.outputs))


def complete(signature: ModelSignature, facts: OnnxFacts, where: str) -> ModelSignature:
    """The signature with what it leaves out filled in: inputs, outputs, and max_batch_size if either is missing.

    Shapes have the batch axis in front when max_batch_size is above 0. Raises ConfigError, about `where`, for a
    max_batch_size that the graph cannot have. A signature with inputs and outputs comes back as it is.
    """
    if signature.inputs and signature.outputs:
        return signature
    batching = can_batch(facts)
    if signature.max_batch_size and not batching:
        raise _not_batching(signature.max_batch_size, where)
    maximum = (signature.max_batch_size or DEFAULT_MAX_BATCH) if batching else 0
    # What stands in the configuration was written for the batch size that stands there, 0 if none: then Triton,
    # too, puts the batch axis in front when it fills in a batch size.
    lead = batching and not signature.max_batch_size

    def as_configured(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=(-1, *spec.shape)) for spec in specs) if lead else specs

    return replace(
        signature,
        inputs=as_configured(signature.inputs) or _as_served(facts.inputs, batching),
        outputs=as_configured(signature.outputs) or _as_served(facts.outputs, batching),
        max_batch_size=maximum,
    )


def _as_served(specs: tuple[TensorSpec, ...], batching: bool) -> tuple[TensorSpec, ...]:
    """Triton has no tensors without dimensions beside the batch: such a one gets an axis of 1."""
    return tuple(replace(spec, shape=spec.shape if len(spec.shape) > batching else (*spec.shape, 1)) for spec in specs)


def check(
    signature: ModelSignature,
    facts: OnnxFacts,
    where: str,
    *,
    reshaped: Container[str] = (),
    hidden_inputs: bool = False,
) -> None:
    """Raise ConfigError, about `where`, for a configuration with which Triton would refuse to load the graph.

    `reshaped` tensors have another shape in the graph; with `hidden_inputs` Triton feeds some of the graph's itself.
    """
    for side, configured, graph in (
        ("input", signature.inputs, facts.inputs),
        ("output", signature.outputs, facts.outputs),
    ):
        known = {spec.name: spec for spec in graph}
        for spec in configured:
            if spec.name not in known:
                raise ConfigError(
                    f"declares {side} {spec.name!r}, the model has {_listed(known)}",
                    where=where,
                    fix=f"Use the model's names, or leave {side} out to have it filled in",
                )
            _check_datatype(side, spec, known[spec.name], where)
            _check_shape(side, spec, known[spec.name].shape, signature.max_batch_size, where, spec.name in reshaped)
    missing = {spec.name for spec in facts.inputs} - {spec.name for spec in signature.inputs}
    if missing and not hidden_inputs:
        raise ConfigError(
            f"lacks input {_listed(sorted(missing))} of the model",
            where=where,
            fix="Declare it, or leave all inputs out",
        )


def _check_datatype(side: str, configured: TensorSpec, graph: TensorSpec, where: str) -> None:
    if configured.datatype != graph.datatype:
        raise ConfigError(
            f"{side} {graph.name!r} is {configured.datatype}, in the model it is {graph.datatype}",
            where=where,
            fix=f"Set data_type: TYPE_{'STRING' if graph.datatype == 'BYTES' else graph.datatype}",
        )


def _check_shape(
    side: str, configured: TensorSpec, graph: tuple[int, ...], max_batch_size: int, where: str, reshaped: bool
) -> None:
    if not graph:
        return  # a scalar, or the file does not say
    if max_batch_size and graph[0] != -1:
        raise _not_batching(max_batch_size, where)
    lead = 1 if max_batch_size else 0
    own, expected = configured.shape[lead:], graph[lead:]
    fits = len(own) == len(expected) and all(theirs in (-1, mine) for mine, theirs in zip(own, expected, strict=True))
    if not fits and not reshaped:
        raise ConfigError(
            f"{side} {configured.name!r} has dims {list(own)}, in the model {list(expected)}"
            + (" without the batch axis" if lead else ""),
            where=where,
            fix=f"Set dims: {list(expected)}" if expected else "Set dims: [1] reshape: { shape: [] }",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)[:300] or "none"


def _not_batching(max_batch_size: int, where: str) -> ConfigError:
    return ConfigError(
        f"max_batch_size is {max_batch_size}, but the first axis of the model's tensors is not open",
        where=where,
        fix="Set max_batch_size: 0 and write out the full dims, or export the model with a dynamic batch axis",
    )
