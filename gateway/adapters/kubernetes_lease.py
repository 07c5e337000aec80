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
from urllib.parse import quote

import httpx
import msgspec
import structlog

from gateway.errors import ConfigError
from gateway.regular_file import open_regular

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
MAX_TOKEN_BYTES = 65_536
RULE = "apiGroups [coordination.k8s.io], resources [leases], verbs [get, create, update]"


class _Spec(msgspec.Struct):
    """The part of a Lease that is read; every key may be missing or null."""

    holderIdentity: str | None = None  # noqa: N815 - as the API spells them
    leaseDurationSeconds: int | None = None  # noqa: N815
    acquireTime: str | None = None  # noqa: N815
    renewTime: str | None = None  # noqa: N815
    leaseTransitions: int | None = None  # noqa: N815


class _Metadata(msgspec.Struct):
    resourceVersion: str  # noqa: N815


class _Lease(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec | None = None


class _Status(msgspec.Struct):
    """What the API server answers in place of what was asked for."""

    message: str = ""


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
        self._url = f"{self._collection}/{quote(name, safe='')}"
        self._name = name
        self._namespace = namespace
        self._account = account
        self._duration_s = duration_s
        self._busy = asyncio.Lock()
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
            async with asyncio.timeout(self._duration_s / 3), self._busy:
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
        was_ours = self.check()
        try:
            async with asyncio.timeout(self._duration_s / 3), self._busy:
                self._renewed_at = None
                if self._seen is not None and _spec(self._seen).holderIdentity == self._identity:
                    await self._update(self._seen, {"holderIdentity": "", "leaseDurationSeconds": 1})
        except (TimeoutError, _Trouble) as error:
            log.info("The lease of the rollouts was not given back, others take it over later", reason=str(error))
        self._seen, self._holder, self._renewed_at = None, "", None
        await self._disconnect()
        self._log_change(holds=False, ended=was_ours)

    async def _take_or_renew(self) -> None:
        # Others count from when they see what we write, which is later than this.
        now = _now()
        found = await self._ask("GET", self._url, refused_by={404})
        if found is not None:
            self._note(found)
            if not self._may_take(found):
                self._renewed_at = None
                return
            written = await self._update(found, self._ours(found))
        else:
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}}
            written = await self._ask("POST", self._collection, {**body, "spec": self._ours()}, refused_by={409})
        # Without `written` something else has changed it. Who takes it over waits longer than we rely on it.
        if written is not None:
            self._note(written)
            self._renewed_at = now

    def _note(self, found: dict[str, Any]) -> None:
        """What the API server has now, and since when it has not changed."""
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
        now = _micro_time()
        ours = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._duration_s,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        if found is not None:
            spec = _spec(found)
            renewed = spec.holderIdentity == self._identity
            ours["leaseTransitions"] = (spec.leaseTransitions or 0) + (0 if renewed else 1)
            if renewed and spec.acquireTime:
                ours["acquireTime"] = spec.acquireTime
        return ours

    async def _update(self, found: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any] | None:
        """None when it has changed since, which its resourceVersion tells the API server."""
        body = {**found, "spec": {**(found.get("spec") or {}), **changes}}
        return await self._ask("PUT", self._url, body, refused_by={404, 409})

    async def _ask(
        self, method: str, url: str, body: dict[str, Any] | None = None, *, refused_by: set[int]
    ) -> dict[str, Any] | None:
        """The Lease in the answer; None for the statuses of `refused_by`. Raises _Trouble and TimeoutError."""
        content = msgspec.json.encode(body) if body is not None else None
        try:
            headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
            client = self._client = self._client or self._connect()
            async with client.stream(method, url, content=content, headers=headers) as response:
                data = await _limited(response)
        except httpx.TimeoutException as error:
            await self._disconnect()
            raise TimeoutError from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            await self._disconnect()  # with the next one ca.crt is read again
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise _Trouble(f"The Kubernetes API cannot be asked: {reason}. Check {self._account}") from error
        if response.status_code in refused_by:
            return None
        if not response.is_success:
            raise _Trouble(self._refusal(response.status_code, data))
        return _lease(data)

    def _refusal(self, status: int, data: bytes) -> str:
        """What the API server says, and what a person can do about it."""
        fixes = {
            401: "Check the token of the pod's service account",
            403: f"Give the Role of the pod's service account the rule {RULE}",
            404: f"Check that there is the namespace '{self._namespace}'",
        }
        try:
            said = msgspec.json.decode(data, type=_Status).message
        except (ValueError, RecursionError):
            said = ""
        fix = fixes.get(status, "See the log of the API server")
        return f"The Kubernetes API answers {status}: {said[:300] or 'without a reason'}. {fix}"

    def _token(self) -> str:
        """Read each time, since the kubelet renews it; raises OSError and ValueError."""
        with open_regular(self._account / "token") as file:
            token = file.read(MAX_TOKEN_BYTES).decode().strip()
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError("the token is none")  # and would be in the text of httpx's error
        return token

    def _connect(self) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        # Python 3.13 would refuse the authorities of many clusters, which lack an extension.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        # Shorter than the limit of `hold`: cancelled from outside, httpx forgets a connection that is being made.
        return httpx.AsyncClient(verify=context, timeout=self._duration_s / 4, trust_env=False)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _log_change(self, holds: bool, ended: bool = False) -> None:
        (held, holder, problem), self._logged = self._logged, (holds, self.holder, self.problem)
        lease = f"{self._namespace}/{self._name}"
        if holds and not held:
            log.info("This gateway runs the rollouts now", lease=lease)
        elif held and ended:
            log.info("This gateway has ended its part in the rollouts", lease=lease)
        elif held and not holds:
            log.warning("This gateway runs no rollouts any more", lease=lease)
        if not holds and self.holder not in ("", holder):
            log.info("Another gateway runs the rollouts", gateway=self.holder, lease=lease)
        if self.problem not in ("", problem):
            log.error("Whether this gateway may run rollouts cannot be settled", reason=self.problem)


async def _limited(response: httpx.Response) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > MAX_BYTES:
            raise ValueError(f"its answer is larger than {MAX_BYTES} bytes")
    return bytes(data)


def _lease(data: bytes) -> dict[str, Any]:
    """A Lease of which all that is read is as it should be; raises _Trouble."""
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        # Without a version an update would overwrite whatever there is.
        if not msgspec.convert(found, _Lease).metadata.resourceVersion:
            raise ValueError("it has no resourceVersion")
    except (ValueError, RecursionError) as error:
        raise _Trouble(f"The Kubernetes API's Lease cannot be read: {error}. Check the cluster") from error
    return found


def _spec(found: dict[str, Any]) -> _Spec:
    return msgspec.convert(found, _Lease).spec or _Spec()


def _micro_time() -> str:
    """The API wants exactly six digits after the point."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _now() -> float:
    """Goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
