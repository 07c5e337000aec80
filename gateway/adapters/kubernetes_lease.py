"""The lease of the roller as a Lease object of the Kubernetes API (coordination.k8s.io/v1), by the rules of client-go.

No clocks of different machines are compared: a lease has expired when it has not changed for its duration as seen from
here. The API server refuses an update of what has changed meanwhile (409), so of two that try at once one gets it.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import structlog

from gateway.errors import ConfigError

log = structlog.get_logger(__name__)

DEFAULT_NAME = "edge-gateway-roller"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DURATION_S = 15
"""Seconds without a renewal after which others may take it."""
SURE_FOR = 2 / 3
"""Part of the duration for which the holder relies on its last renewal; with client-go: 10 s of 15 s."""
RENEWALS = 7
"""How many fall into the duration; with client-go: one every 2 s of 15 s."""
MAX_DURATION_S = 3600
MAX_BYTES = 2**20
RULE = "apiGroups [coordination.k8s.io], resources [leases], verbs [get, create, update]"


class _Spec(msgspec.Struct):
    """The part of a Lease that is read; every key may be missing or null."""

    holderIdentity: str | None = None  # noqa: N815 - as the API spells them
    leaseDurationSeconds: int | None = None  # noqa: N815
    acquireTime: str | None = None  # noqa: N815
    renewTime: str | None = None  # noqa: N815
    leaseTransitions: int | None = None  # noqa: N815


class _Trouble(Exception):
    """The API server cannot be asked, or says no; for people."""


class KubernetesLease:
    """Implements gateway.rollout.lease.Lease; `identity` must be this process' alone.

    `account` is a folder with `token` and `ca.crt`; both are read again when they may have been renewed.
    """

    def __init__(
        self,
        identity: str,
        *,
        url: str,
        namespace: str,
        name: str = DEFAULT_NAME,
        account: Path = SERVICE_ACCOUNT,
        duration_s: int = DURATION_S,
    ) -> None:
        self._identity = identity
        self._collection = f"{url}/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._namespace = namespace
        self._account = account
        self._duration_s = duration_s
        self._client: httpx.AsyncClient | None = None
        self._seen: dict[str, Any] | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None
        self._holder = ""
        self._problem = ""
        self._logged = (False, "", "")

    @classmethod
    def in_cluster(cls, identity: str, *, name: str = DEFAULT_NAME, account: Path = SERVICE_ACCOUNT) -> KubernetesLease:
        """As the pod's service account; raises ConfigError outside a cluster."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        where, namespace = "ROLLOUT_LEASE=kubernetes", ""
        try:
            namespace = (account / "namespace").read_text().strip()
            (account / "token").read_text()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            fix = "Let the pod have its service account (automountServiceAccountToken), or set ROLLOUT_LEASE=file"
            raise ConfigError(f"{account} cannot be read: {reason}", where=where, fix=fix) from error
        if not host or not port.isdecimal() or not re.fullmatch(r"[a-z0-9-]{1,63}", namespace):
            fix = "Set ROLLOUT_LEASE=file outside a Kubernetes cluster"
            missing = "this is no pod of a Kubernetes cluster: KUBERNETES_SERVICE_HOST or the namespace is missing"
            raise ConfigError(missing, where=where, fix=fix)
        address = f"[{host}]" if ":" in host else host
        return cls(identity, url=f"https://{address}:{port}", namespace=namespace, name=name, account=account)

    @property
    def interval_s(self) -> float:
        """As Lease.interval_s."""
        return self._duration_s / RENEWALS

    @property
    def holder(self) -> str:
        """As Lease.holder."""
        return self._holder.rpartition("/")[0] or self._holder

    @property
    def problem(self) -> str:
        """As Lease.problem."""
        return self._problem

    async def hold(self) -> bool:
        """As Lease.hold; takes at most a third of the duration."""
        try:
            async with asyncio.timeout(self._duration_s / 3):
                await self._take_or_renew()
            self._problem = ""
        except TimeoutError:
            self._problem = "The Kubernetes API does not answer. Check the cluster and its network policies"
        except _Trouble as trouble:
            self._problem = str(trouble)
        holds = self.check()
        self._log_change(holds)
        return holds

    def check(self) -> bool:
        """As Lease.check; by time alone, which asks nobody."""
        return self._renewed_at is not None and _now() - self._renewed_at < self._duration_s * SURE_FOR

    async def release(self) -> None:
        """As Lease.release; also closes the connection."""
        held, self._renewed_at = self.check(), None
        try:
            async with asyncio.timeout(self._duration_s / 3):
                if held and self._seen is not None:
                    await self._update(self._seen, {"holderIdentity": "", "leaseDurationSeconds": 1})
        except (TimeoutError, _Trouble) as error:
            log.info("The lease of the rollouts was not given back, others take it over later", reason=str(error))
        self._seen, self._holder = None, ""
        await self._disconnect()
        self._log_change(holds=False)

    async def _take_or_renew(self) -> None:
        now = _now()
        found = await self._get()
        if found is None:
            self._note(await self._create())
        else:
            self._note(found)
            if not self._may_take(found):
                self._renewed_at = None
                return
            self._note(await self._update(found, self._ours(found)))
        # The request went out after `now`: nobody else counts from an earlier moment.
        ours = self._seen is not None and _spec(self._seen).holderIdentity == self._identity
        self._renewed_at = now if ours else None

    def _note(self, found: dict[str, Any] | None) -> None:
        """What the API server has now, and since when it has not changed; None: somebody was quicker."""
        if found is None:
            self._seen = None
            return
        if self._seen is None or found.get("spec") != self._seen.get("spec"):
            self._seen_at = _now()
        self._seen = found
        self._holder = _spec(found).holderIdentity or ""

    def _may_take(self, found: dict[str, Any]) -> bool:
        spec = _spec(found)
        if spec.holderIdentity in (None, "", self._identity):
            return True
        lasts = min(max(spec.leaseDurationSeconds or self._duration_s, 1), MAX_DURATION_S)
        return _now() - self._seen_at >= lasts

    def _ours(self, found: dict[str, Any] | None = None) -> dict[str, Any]:
        """The keys of the spec that say that it is ours from now on."""
        spec = _spec(found or {})
        now = _micro_time()
        renewed = found is not None and spec.holderIdentity == self._identity
        transitions = (spec.leaseTransitions or 0) + (not renewed) if found is not None else 0
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._duration_s,
            "acquireTime": spec.acquireTime if renewed and spec.acquireTime else now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
