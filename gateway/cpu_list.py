"""Lists of cores as Linux writes them: `0`, `0,4-5`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

MOST = 4096


def cpu_list(value: Any) -> Any:
    """The numbers that a text such as `0,4-5` names, in its order; raises ValueError for what is no such list."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # YAML reads 0 as a number
    if not isinstance(value, str):
        return value
    numbers: list[int] = []
    for part in value.split(","):
        first, dash, last = (each.strip() for each in part.partition("-"))
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)):
            raise ValueError(f"must name cores by number, such as 0 or 0,4-5, not '{value[:60]}'")
        low, high = int(first), int(last or first)
        if not low <= high < MOST:
            raise ValueError(f"must name cores from 0 to {MOST - 1}, the lower number first, not '{value[:60]}'")
        numbers += range(low, high + 1)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"names a core twice: '{value[:60]}'")
    return tuple(numbers)


CpuList = Annotated[tuple[int, ...], NoDecode, BeforeValidator(cpu_list)]
"""Numbers of cores; empty: any."""
