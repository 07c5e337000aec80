"""Which members of a pool may have which model, by the rules of TRITON_PLACEMENT."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.adapters.triton_pool_member import Member
from gateway.triton_endpoints import PlacementRule, places_of


class Placement:
    """The rules over the members; the first rule that matches holds, and without one all members do."""

    def __init__(self, members: Sequence[Member], rules: Sequence[PlacementRule] = ()) -> None:
        self._members = tuple(members)
        self._rules = tuple((rule, tuple(each for each in members if each.name in rule.endpoints)) for rule in rules)
        self.by_request = any(rule.version != "*" or rule.tenant != "*" for rule in rules)
        """Whether it takes more than the model's name to know who may answer a request."""

    def of_request(self, model: str, version: str, tenant: str) -> tuple[Member, ...]:
        """Who may answer it."""
        return next((chosen for rule, chosen in self._rules if rule.matches(model, version, tenant)), self._members)

    def of_model(self, model: str, version: int | None = None) -> tuple[Member, ...]:
        """Who may have that version, for whichever tenant; None: any version of the model."""
        names = places_of((rule for rule, _ in self._rules), [each.name for each in self._members], model, version)
        return tuple(each for each in self._members if each.name in names)

    def versions_at(self, member: Member, model: str, versions: Sequence[int]) -> tuple[int, ...]:
        """Those of the versions that a member may have, the lowest first."""
        return tuple(version for version in sorted(versions) if member in self.of_model(model, version))
