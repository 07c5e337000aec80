"""How long snapshots wait for one of several equal servers: formulas, for Poisson arrivals and one time of service.

Cameras that send at their own regular pace arrive more evenly than that, so they wait less.
"""

from __future__ import annotations

import math


def erlang_c(servers: int, load: float) -> float:
    """The share of arrivals that wait in M/M/c; `load` in Erlang, below `servers`."""
    if not 0 < load < servers:
        raise ValueError(f"{load} Erlang are not between 0 and {servers} servers")
    blocked = 1.0
    for server in range(1, servers + 1):  # Erlang B, from one server to the next
        blocked = load * blocked / (server + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def mean_wait_s(rate: float, service_s: float, servers: int) -> float:
    """The mean wait of M/D/c in seconds: half of that of M/M/c, with the correction of Cosmetatos (1975)."""
    load = rate * service_s
    used = load / servers
    exponential = erlang_c(servers, load) * service_s / (servers - load)
    correction = (1 - used) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * used * servers)
    return exponential / 2 * (1 + correction)


def servers_for(rate: float, service_s: float, *, most_used: float) -> int:
    """The least number of servers that are busy for at most this share of the time."""
    return max(1, math.ceil(rate * service_s / most_used - 1e-9))
