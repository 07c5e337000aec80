"""What an expression of PromQL asks for, held against the metrics that there are."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import promql_parser
import yaml

from gateway.metrics import CATALOGUE, PREFIX
from tests.observability.prometheus import RULES

SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}
GATEWAY = {
    PREFIX + item.name + suffix: set(item.labels) | ({"le"} if suffix == "_bucket" else set())
    for item in CATALOGUE
    for suffix in SUFFIXES.get(item.kind, ("",))
}
"""The series of the gateway with their labels."""
OF_MODEL = {"model", "version"}
TRITON = {
    **{
        f"nv_inference_{name}": OF_MODEL for name in ("request_success", "count", "exec_count", "pending_request_count")
    },
    **{
        f"nv_inference_{name}_duration_us": OF_MODEL
        for name in ("request", "queue", "compute_input", "compute_infer", "compute_output")
    },
    "nv_inference_request_failure": OF_MODEL | {"reason"},
    **{
        f"nv_gpu_{name}": {"gpu_uuid"}
        for name in ("utilization", "memory_used_bytes", "memory_total_bytes", "power_usage", "power_limit")
    },
    **{f"nv_cpu_{name}": set[str]() for name in ("utilization", "memory_used_bytes", "memory_total_bytes")},
    **{f"nv_pinned_memory_pool_{name}_bytes": set[str]() for name in ("used", "total")},
    "edge_backend_resident_memory_bytes": OF_MODEL | {"instance"},
}
"""Those of Triton 2.51 and of the backends of this project."""
OTHERS = {
    "up": set[str](),
    "ALERTS": {"alertname", "alertstate", "severity"},
    "process_cpu_seconds_total": set[str](),
    "process_resident_memory_bytes": set[str](),
}
OF_SCRAPE = {"job", "instance"}


@functools.cache
def rules() -> list[dict[str, Any]]:
    """All rules, of all groups."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> dict[str, str]:
    """The expressions of the recording rules by the name of what they record."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each series that an expression asks for, with the labels that it names there; ValueError for one that is none."""
    open_nodes: list[Any] = [promql_parser.parse(expression)]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name or "", {matcher.name for matcher in node.matchers.matchers}
        below = (getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector"))
        open_nodes += [each for each in (*below, *getattr(node, "args", ())) if isinstance(each, promql_parser.Expr)]


def unknown(expression: str) -> list[str]:
    """What an expression asks for and nobody exports: series, and labels of series."""
    known = {**GATEWAY, **TRITON, **OTHERS, **{name: {"model"} for name in recorded()}}
    return [
        f"{name}: {', '.join(sorted(labels)) or 'no such series'}"
        for name, labels in selectors(expression)
        if name not in known or not labels <= known[name] | OF_SCRAPE
    ]


def metrics_in(expression: str) -> set[str]:
    """The metrics of the gateway that an expression reads, by their names in the catalogue; recorded ones through."""
    names = set[str]()
    for name, _ in selectors(expression):
        names |= metrics_in(recorded()[name]) if name in recorded() else {name}
    return {item.name for item in CATALOGUE for name in names if _is_of(PREFIX + item.name, item.kind, name)}


def _is_of(metric: str, kind: str, series: str) -> bool:
    return series in {metric + suffix for suffix in SUFFIXES.get(kind, ("",))}
