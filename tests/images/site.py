"""The services of compose.yaml running under podman, and what can be asked of them."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from compose.images.images import Engine, ImageError
from tests.images.bases import STAND_IN_LABEL
from tests.images.compose import PROJECT, Compose, Service

TIMEOUT_S = 120.0
PAUSE_S = 0.1


def wait(condition: Callable[[], bool], what: str, seconds: float = TIMEOUT_S) -> float:
    """Poll a condition; returns the seconds that it took, raises ImageError after the deadline."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise ImageError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(PAUSE_S)
    return time.monotonic() - began


class Site:
    """Containers by the names of their services."""

    def __init__(self, podman: Engine, compose: Compose, environment: Mapping[str, str]) -> None:
        self.podman = podman
        self.compose = compose
        self.environment = environment
        self.started: list[str] = []

    def start(self, without: set[str]) -> None:
        """Start all services in order, each when those that it needs are as it wants them."""
        self.compose.make_surroundings(self.podman)
        for service in self.compose.in_order(without):
            for name, condition in service.needs.items():
                self._wait_for(self.compose.services[name], condition)
            self.podman.run("run", "--detach", f"--name={container(service.name)}", *service.arguments(), capture=True)
            self.started.append(service.name)

    def _wait_for(self, service: Service, condition: str) -> None:
        if condition == "service_completed_successfully":
            code = self.podman.run("wait", container(service.name), capture=True).strip()
            if code != "0":
                raise ImageError(f"{service.name} ended with {code}:\n{self.log(service.name)}")
        else:
            assert condition == "service_healthy", condition
            self.wait_healthy(service.name)

    def wait_healthy(self, name: str) -> float:
        """Until the health check of compose.yaml succeeds in a container; seconds that it took."""
        command = self.compose.services[name].health_command
        return wait(lambda: self.succeeds(name, *command), f"{name} is not healthy")

    def succeeds(self, name: str, *command: str) -> bool:
        """Whether a command inside a container ends with 0; raises ImageError when the container has ended."""
        if not self.is_running(name):
            raise ImageError(f"{name} has ended:\n{self.log(name)}")
        line = [*self.podman.command, "exec", container(name), *command]
        return subprocess.run(line, check=False, capture_output=True).returncode == 0

    def is_running(self, name: str) -> bool:
        """Whether a container is up."""
        return bool(self.inspect(name)["State"]["Running"])

    def inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of a container."""
        found: dict[str, Any] = json.loads(self.podman.run("inspect", container(name), capture=True))[0]
        return found

    def is_stand_in(self, name: str) -> bool:
        """Whether Debian's packages stand in for the image that compose names."""
        return STAND_IN_LABEL in (self.inspect(name)["Config"]["Labels"] or {})

    def log(self, name: str) -> str:
        """The end of what a container has printed."""
        line = [*self.podman.command, "logs", "--tail", "30", container(name)]
        return subprocess.run(line, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout

    def secrets(self) -> dict[str, str]:
        """Passwords and tokens, as `docker compose run --rm setup show` prints them."""
        service = self.compose.services["setup"]
        text = self.podman.run("run", "--rm", *service.arguments()[:-1], "show", capture=True)
        return dict(line.split() for line in text.splitlines())

    def get(self, port: str, path: str) -> tuple[int, bytes]:
        """Status and body of a GET at a port of .env; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.environment[port]}{path}", timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""


def container(service: str) -> str:
    """The name of a service's container."""
    return f"{PROJECT}-{service}-1"
