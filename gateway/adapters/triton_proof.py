"""Whether Triton has read our memory: the same question asked both ways must have the same answer.

A model whose answer does not depend on its input says nothing by that. What protects then is the name of the segment,
that nobody can guess: a Triton that opens it has found our file. This is the second look, for a Triton that opens the
right file and reads it wrongly.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.messages import InferResponse

CLOSE = 1e-3
"""Mean difference, relative to the mean size of the numbers, that batching and a GPU's kernels may explain."""
AS_FAR = 3.0
"""How many times further than two answers to the same bytes are from each other; for models that answer at random."""


class Verdict(enum.Enum):
    """What a comparison says."""

    SAME = "same"
    OTHER = "other"
    OPEN = "open"
    """Of a model that answers at random, by which nothing is proven this time."""


def close(one: InferResponse, other: InferResponse) -> bool:
    """Whether two answers agree but for rounding."""
    return distance(one, other) <= CLOSE


def judge(by_memory: InferResponse, by_bytes: InferResponse, again: InferResponse) -> Verdict:
    """Whether an answer by memory that is not close is wrong; `again` is another answer to the same bytes."""
    apart = distance(by_bytes, again)
    if apart <= CLOSE:
        return Verdict.OTHER
    return Verdict.SAME if distance(by_bytes, by_memory) <= AS_FAR * apart else Verdict.OPEN


def distance(one: InferResponse, other: InferResponse) -> float:
    """Of the outputs that differ most; infinite where shapes or types do."""
    if one.outputs.keys() != other.outputs.keys():
        return float("inf")
    return max((_between(array, other.outputs[name]) for name, array in one.outputs.items()), default=0.0)


def _between(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if not one.size or np.array_equal(one, other):
        return 0.0
    numbers, others = one.astype(np.float64), other.astype(np.float64)
    same = (numbers == others) | (np.isnan(numbers) & np.isnan(others))
    with np.errstate(invalid="ignore"):
        apart = float(np.where(same, 0.0, np.abs(numbers - others)).mean())
    size = float(np.abs(numbers[np.isfinite(numbers)]).mean()) if np.isfinite(numbers).any() else 0.0
    return apart / max(size, 1e-12) if np.isfinite(apart) else float("inf")
