"""What each kind of fault does to the site, and how it is put right. `schedule.py` says when."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import httpx
import psutil

from tests.chaos.site import ChaosSite
from tests.e2e.site import until

DELAY_S = 0.25
"""In each direction of a connection."""
TIMEOUT_S = 20.0

Injection = Callable[[ChaosSite], Iterator[None]]


def _gateway_kill(site: ChaosSite) -> Iterator[None]:
    site.supervisor.kill()
    yield
    site.supervisor.start()


def _gateway_restart(site: ChaosSite) -> Iterator[None]:
    site.supervisor.terminate()
    yield
    site.supervisor.start()


def _gateway_stop(site: ChaosSite) -> Iterator[None]:
    os.kill(site.gateway.process.pid, signal.SIGSTOP)
    yield
    os.kill(site.gateway.process.pid, signal.SIGCONT)


def _triton_kill(site: ChaosSite) -> Iterator[None]:
    site.triton_keeper.end(site.triton.kill)
    yield
    site.triton_keeper.start()


def _triton_restart(site: ChaosSite) -> Iterator[None]:
    site.triton_keeper.end(site.triton.stop)
    yield
    site.triton_keeper.start()


def _triton_stop(site: ChaosSite) -> Iterator[None]:
    """The server and the processes of its models."""
    os.killpg(site.triton.pid, signal.SIGSTOP)
    yield
    os.killpg(site.triton.pid, signal.SIGCONT)


def _mosquitto_kill(site: ChaosSite) -> Iterator[None]:
    """What it may have forgotten, the bench lets the cameras send again."""
    site.kill_broker()
    yield
    site.broker.start()


def _mosquitto_restart(site: ChaosSite) -> Iterator[None]:
    site.stop_broker()
    yield
    site.broker.start()


def _mosquitto_stop(site: ChaosSite) -> Iterator[None]:
    os.kill(site.broker.pid, signal.SIGSTOP)
    yield
    os.kill(site.broker.pid, signal.SIGCONT)


def _link(name: str, action: str) -> Injection:
    def inject(site: ChaosSite) -> Iterator[None]:
        link = site.links[name]
        if action == "cut":
            link.cut()
        elif action == "delay":
            link.delay(DELAY_S)
        elif action == "swallow":
            link.swallow()
        else:
            link.silence()
        yield
        link.mend()

    return inject


def _disk_full(site: ChaosSite) -> Iterator[None]:
    site.disk.fill(site.gateway.process.pid)
    yield
    site.disk.free(site.gateway.process.pid)


def _disk_full_offline(site: ChaosSite) -> Iterator[None]:
    """Just when what cannot be published should be kept there."""
    site.disk.fill(site.gateway.process.pid)
    site.links["broker-link"].cut()
    yield
    site.links["broker-link"].mend()
    site.disk.free(site.gateway.process.pid)


def _variant_kill(site: ChaosSite) -> Iterator[None]:
    """The process of the model, of which Triton itself then knows nothing."""
    with contextlib.suppress(psutil.NoSuchProcess):
        _stub(site).kill()
    yield


def _variant_stop(site: ChaosSite) -> Iterator[None]:
    stub = _stub(site)
    stub.suspend()
    yield
    with contextlib.suppress(psutil.NoSuchProcess):  # Triton may have ended it meanwhile
        stub.resume()


def _variant_unload(site: ChaosSite) -> Iterator[None]:
    """Somebody else unloads the model behind the gateway's back."""
    url = f"{site.triton.http_url}/v2/repository/models/{site.main_model}/unload"
    httpx.post(url, json={}, timeout=TIMEOUT_S, trust_env=False).raise_for_status()
    yield


def _stub(site: ChaosSite) -> psutil.Process:
    """The process of the variant that answers, which may be being loaded again just now."""
    until(lambda: bool(_stubs(site)), f"a process of {site.main_model} at Triton", TIMEOUT_S)
    return _stubs(site)[0]


def _stubs(site: ChaosSite) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(site.triton.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"{site.main_model}_0_0" in child.cmdline():
                found.append(child)
    return found


INJECTIONS: dict[str, Injection] = {
    "gateway.kill": _gateway_kill,
    "gateway.stop": _gateway_stop,
    "gateway.restart": _gateway_restart,
    "triton.kill": _triton_kill,
    "triton.stop": _triton_stop,
    "triton.restart": _triton_restart,
    "mosquitto.kill": _mosquitto_kill,
    "mosquitto.stop": _mosquitto_stop,
    "mosquitto.restart": _mosquitto_restart,
    **{
        f"{name}.{action}": _link(name, action)
        for name in ("broker-link", "triton-link")
        for action in ("cut", "delay", "blackhole", "swallow")
    },
    "disk.full": _disk_full,
    "disk.full-offline": _disk_full_offline,
    "variant.kill": _variant_kill,
    "variant.stop": _variant_stop,
    "variant.unload": _variant_unload,
}
