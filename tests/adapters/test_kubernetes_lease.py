"""The lease over the Kubernetes API, against a strict stand-in of it: TLS, tokens, versions, and what it validates."""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.adapters.kubernetes_lease import DEFAULT_NAME, RULE, KubernetesLease
from gateway.errors import ConfigError
from gateway.rollout.lease import Lease, new_identity
from tests.adapters.mqtt_client import run_program

NAMESPACE = "site-7"
PATH = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
SPEC = {"holderIdentity", "leaseDurationSeconds", "acquireTime", "renewTime", "leaseTransitions"}
MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
DURATION_S = 2
"""Where a test waits for it; the others have one that is never over."""
TOKEN = "first.token"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, old.crt and new.crt, each with a certificate for 127.0.0.1: old-server.pem, new-server.pem."""
    folder = tmp_path_factory.mktemp("certificates")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("old", "new"):
        subject = ("-subj", f"/CN=kubernetes-{name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")
        run_program("openssl", "req", "-x509", *new_key, *subject, folder=folder)
        request = ("-subj", "/CN=kube-apiserver", "-keyout", f"{name}-server.key", "-out", f"{name}.csr")
        run_program("openssl", "req", *new_key, *request, folder=folder)
        signed_by = ("-CA", f"{name}.crt", "-CAkey", f"{name}.key", "-CAcreateserial", "-extfile", "names")
        result = ("-out", f"{name}-server.pem")
        run_program("openssl", "x509", "-req", "-in", f"{name}.csr", *signed_by, *result, folder=folder)
    return folder


class ApiServer:
    """As much of kube-apiserver as a Lease needs, and as strict."""

    def __init__(self, certificates: Path) -> None:
        self.token = TOKEN
        self.allowed = True
        self.delay_s = 0.0
        self.answer: web.Response | None = None
        self.edited_after_get = False
        self.stored: dict[str, Any] | None = None
        self.verbs: list[str] = []
        self.port = 0
        self._version = 100
        self._certificates = certificates
        self._runner: web.AppRunner | None = None

    async def start(self, authority: str = "old") -> None:
        app = web.Application()
        for path in (PATH, f"{PATH}/{{name}}"):
            app.router.add_route("*", path, self._answer)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server = self._certificates / f"{authority}-server"
        context.load_cert_chain(f"{server}.pem", f"{server}.key")
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def write(self, body: dict[str, Any]) -> web.Response:
        """As if somebody else had done so."""
        self._version += 1
        body["metadata"] = {**body["metadata"], "resourceVersion": str(self._version), "uid": "u-1"}
        self.stored = body
        return web.json_response(body)

    async def _answer(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.delay_s)
        if self.answer is not None:
            return web.Response(status=self.answer.status, body=self.answer.body)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized")
        if not self.allowed:
            return status(
                403, f'User "gw" cannot {request.method} resource "leases" in API group "coordination.k8s.io"'
            )
        self.verbs.append(request.method)
        if request.method == "GET":
            return self._get()
        body = await request.json()
        if problem := invalid(body):
            return status(422, problem)
        return self._create(body) if request.method == "POST" else self._update(body)

    def _get(self) -> web.Response:
        if self.stored is None:
            return status(404, f'leases.coordination.k8s.io "{DEFAULT_NAME}" not found')
        answer = web.json_response(self.stored)
        if self.edited_after_get:
            self.write({**self.stored})
        return answer

    def _create(self, body: dict[str, Any]) -> web.Response:
        if "resourceVersion" in body["metadata"]:
            return status(500, "resourceVersion should not be set on objects to be created")
        if self.stored is not None:
            return status(409, "already exists")
        return self.write(body)

    def _update(self, body: dict[str, Any]) -> web.Response:
        if self.stored is None:
            return status(404, "not found")
        if body["metadata"].get("resourceVersion") != self.stored["metadata"]["resourceVersion"]:
            return status(409, "the object has been modified; please apply your changes to the latest version")
        return self.write(body)


def status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)


def invalid(body: dict[str, Any]) -> str:
    spec = body["spec"]
    if (body["apiVersion"], body["kind"]) != ("coordination.k8s.io/v1", "Lease"):
        return "no Lease"
    if body["metadata"]["name"] != DEFAULT_NAME or not set(spec) <= SPEC | {"strategy"}:
        return "unknown name or key"
    if spec["leaseDurationSeconds"] <= 0 or spec["leaseTransitions"] < 0 or not isinstance(spec["holderIdentity"], str):
        return "must be greater than 0"
    return "" if all(MICRO_TIME.fullmatch(spec[name]) for name in ("acquireTime", "renewTime")) else "no MicroTime"


@pytest.fixture
async def server(certificates: Path) -> AsyncIterator[ApiServer]:
    running = ApiServer(certificates)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
def account(tmp_path: Path, certificates: Path) -> Path:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "namespace").write_text(NAMESPACE)
    (tmp_path / "ca.crt").write_bytes((certificates / "old.crt").read_bytes())
    return tmp_path


NewLease = Callable[..., KubernetesLease]


@pytest.fixture
async def new_lease(server: ApiServer, account: Path) -> AsyncIterator[NewLease]:
    leases: list[KubernetesLease] = []

    def make(gateway: str = "gw", duration_s: int = 60) -> KubernetesLease:
        url = f"https://127.0.0.1:{server.port}"
        leases.append(
            KubernetesLease(new_identity(gateway), url=url, namespace=NAMESPACE, account=account, duration_s=duration_s)
        )
        return leases[-1]

    yield make
    for lease in leases:
        await lease.release()


def foreign(**spec: Any) -> dict[str, Any]:
    """A Lease that another program holds."""
    body = {
        "holderIdentity": "far_123",
        "leaseDurationSeconds": DURATION_S,
        "acquireTime": "1999-01-01T00:00:00.000000Z",
        "renewTime": "1999-01-01T00:00:00.000000Z",
        "leaseTransitions": 4,
    }
    metadata = {"name": DEFAULT_NAME, "namespace": NAMESPACE, "annotations": {"who": "me"}}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {**body, **spec}}


async def test_of_two_that_start_together_one_holds_it(server: ApiServer, new_lease: NewLease) -> None:
    first, second = new_lease("first"), new_lease("second")
    leases: tuple[Lease, Lease] = (first, second)
    with capture_logs() as logs:
        for _ in range(3):
            held = await asyncio.gather(*(lease.hold() for lease in leases))
            assert sorted(held) == [False, True]
            assert held == [lease.check() for lease in leases]
    winner, loser = leases if held[0] else leases[::-1]
    assert server.stored is not None
    assert server.stored["spec"]["leaseTransitions"] == 0
    assert loser.holder == winner.holder == ("first" if winner is first else "second")
    assert len(logs) == 2
    with capture_logs() as logs:
        await winner.release()
    assert [entry["log_level"] for entry in logs] == ["info"]
    assert not winner.check()
    assert await loser.hold()
    assert server.stored["spec"]["leaseTransitions"] == 1


async def test_a_holder_that_goes_silent_is_followed_after_it_has_stepped_down(new_lease: NewLease) -> None:
    first, second = new_lease("first", DURATION_S), new_lease("second", DURATION_S)
    assert await first.hold()
    begun = time.monotonic()
    moments: list[tuple[bool, bool]] = []
    while not moments or not moments[-1][1]:
        await second.hold()
        moments.append((first.check(), second.check()))
        await asyncio.sleep(0.01)
        assert time.monotonic() - begun < DURATION_S * 5
    assert time.monotonic() - begun > DURATION_S * 0.9
    assert moments[0] == (True, False)
    assert (True, True) not in moments
    assert (False, False) in moments  # so that a write which has begun comes to its end
    assert not await first.hold()


async def test_among_many_there_is_one_at_each_moment(server: ApiServer, new_lease: NewLease) -> None:
    leases = [new_lease(f"gw{number}", DURATION_S) for number in range(5)]
    dice = random.Random(7)
    running = True

    async def contend(lease: KubernetesLease) -> None:
        while running:
            await lease.hold()
            if dice.random() < 0.5:
                await lease.release()
            await asyncio.sleep(dice.choice((0.0, 0.01, 0.05, 0.05, DURATION_S * 1.3)))

    tasks = [asyncio.create_task(contend(lease)) for lease in leases]
    deadline = time.monotonic() + 60
    while server.stored is None or server.stored["spec"]["leaseTransitions"] < 3:
        assert time.monotonic() < deadline
        assert sum(lease.check() for lease in leases) <= 1
        await asyncio.sleep(0.001)
    running = False
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("renewed", ["1999-01-01T00:00:00.000000Z", "2199-01-01T00:00:00.000000Z"])
async def test_the_clock_of_the_other_is_not_believed(server: ApiServer, new_lease: NewLease, renewed: str) -> None:
    server.write(foreign(renewTime=renewed, strategy="OldestEmulationVersion"))
    lease = new_lease("gw", DURATION_S)
    begun = time.monotonic()
    while not await lease.hold():
        assert lease.holder == "far_123"
        assert time.monotonic() - begun < DURATION_S * 4
        await asyncio.sleep(0.02)
    assert time.monotonic() - begun > DURATION_S * 0.9
    assert server.stored is not None
    assert server.stored["metadata"]["annotations"] == {"who": "me"}
    assert server.stored["spec"]["strategy"] == "OldestEmulationVersion"
    assert server.stored["spec"]["leaseTransitions"] == 5


async def test_a_lease_that_its_holder_gave_back_is_taken_at_once(server: ApiServer, new_lease: NewLease) -> None:
    server.write(foreign(holderIdentity=""))
    assert await new_lease().hold()


async def test_given_back_without_an_end_it_can_be_had_again(server: ApiServer, new_lease: NewLease) -> None:
    """As a gateway does whose Triton was away."""
    first, second = new_lease("first"), new_lease("second")
    assert await first.hold()
    await first.release()
    assert not first.check()
    assert await second.hold()
    assert not await first.hold()
    assert first.holder == "second"
    await second.release()
    assert await first.hold()


async def test_an_edit_by_somebody_costs_no_lease(server: ApiServer, new_lease: NewLease) -> None:
    lease, other = new_lease("gw"), new_lease("other")
    assert await lease.hold()
    server.edited_after_get = True
    assert await lease.hold()  # refused with 409, but the renewal before holds
    assert lease.problem == ""
    assert not await other.hold()
    server.edited_after_get = False
    assert await lease.hold()
    server.stored = None  # deleted by hand: for everybody to take, but never for two
    assert await lease.hold()
    assert not await other.hold()


async def test_somebody_who_took_it_is_noticed(server: ApiServer, new_lease: NewLease) -> None:
    lease = new_lease()
    assert await lease.hold()
    server.write(foreign())
    assert not await lease.hold()
    assert (lease.check(), lease.holder) == (False, "far_123")


async def test_cut_off_it_steps_down_before_others_may_take_it(server: ApiServer, new_lease: NewLease) -> None:
    lease = new_lease("gw", DURATION_S)
    assert await lease.hold()
    begun = time.monotonic()
    await server.stop()
    with capture_logs() as logs:
        assert await lease.hold()
        while await lease.hold():
            await asyncio.sleep(0.01)
    assert DURATION_S / 2 < time.monotonic() - begun < DURATION_S
    assert [entry["log_level"] for entry in logs] == ["error", "warning"]
    assert "cannot be asked" in lease.problem
    await server.start()
    assert await lease.hold()
    assert lease.problem == ""


async def test_a_server_that_hangs_is_not_waited_for(server: ApiServer, new_lease: NewLease) -> None:
    server.delay_s = 30
    lease = new_lease("gw", DURATION_S)
    begun = time.monotonic()
    assert not await lease.hold()
    assert time.monotonic() - begun < DURATION_S
    assert "does not answer" in lease.problem


async def test_without_the_right_it_names_the_rule(server: ApiServer, new_lease: NewLease) -> None:
    server.allowed = False
    lease = new_lease()
    with capture_logs() as logs:
        assert [await lease.hold() for _ in range(3)] == [False, False, False]
    assert len(logs) == 1
    assert 'cannot GET resource "leases"' in logs[0]["reason"]
    assert RULE in logs[0]["reason"]
    server.allowed = True
    assert await lease.hold()


async def test_a_renewed_token_and_a_renewed_authority_are_taken_over(
    server: ApiServer, account: Path, certificates: Path, new_lease: NewLease
) -> None:
    lease = new_lease()
    assert await lease.hold()
    server.token = "second.token"
    await lease.hold()
    assert "401" in lease.problem
    (account / "token").write_text("second.token")
    assert await lease.hold()
    await server.stop()
    await server.start("new")
    await lease.hold()
    assert "CERTIFICATE_VERIFY_FAILED" in lease.problem
    (account / "ca.crt").write_bytes((certificates / "new.crt").read_bytes())
    assert await lease.hold()
    assert set(server.verbs) == {"GET", "POST", "PUT"}  # what RULE allows


@pytest.mark.parametrize("token", [b"", b"two\nlines", b"\xff\xfe", b"secret\0x"])
async def test_a_damaged_token_is_sent_nowhere_and_shown_to_nobody(
    account: Path, new_lease: NewLease, token: bytes
) -> None:
    (account / "token").write_bytes(token)
    lease = new_lease()
    assert not await lease.hold()
    assert "secret" not in lease.problem
    assert str(account) in lease.problem


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"[" * 100_000, bytes(2**20 + 1), b"{}", b'{"metadata": {"resourceVersion": ""}}'],
    ids=["html", "list", "deep", "large", "empty", "no version"],
)
async def test_an_answer_that_is_no_lease_makes_a_follower(server: ApiServer, new_lease: NewLease, body: bytes) -> None:
    lease = new_lease()
    for code in (200, 500):
        server.answer = web.Response(status=code, body=body)
        assert not await lease.hold()
        assert lease.problem.startswith("The Kubernetes API")
    server.answer = web.Response(
        status=200, body=b'{"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": 7}}'
    )
    assert not await lease.hold()


async def test_in_a_cluster_it_finds_everything(
    server: ApiServer, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    lease = KubernetesLease.in_cluster("gw/1", account=account)
    assert await lease.hold()
    await lease.release()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ConfigError, match="no pod") as caught:
        KubernetesLease.in_cluster("gw/1", account=account)
    assert caught.value.where == "ROLLOUT_LEASE=kubernetes"
    with pytest.raises(ConfigError, match="No such file"):
        KubernetesLease.in_cluster("gw/1", account=account / "nowhere")
