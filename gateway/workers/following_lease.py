"""The lease of rollouts in a worker that is not the lead: it is never its own."""

from __future__ import annotations

INTERVAL_S = 1.0


class FollowingLease:
    """As `gateway.rollout.lease.Lease`. Of all workers only the lead contends, for it alone is told the commands."""

    @property
    def interval_s(self) -> float:
        """As Lease.interval_s."""
        return INTERVAL_S

    @property
    def holder(self) -> str:
        """As Lease.holder: not known here, for the lead may follow another gateway itself."""
        return ""

    @property
    def problem(self) -> str:
        """As Lease.problem."""
        return ""

    async def hold(self) -> bool:
        """As Lease.hold."""
        return False

    def check(self) -> bool:
        """As Lease.check."""
        return False

    async def release(self) -> None:
        """As Lease.release."""
