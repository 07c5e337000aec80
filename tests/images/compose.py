"""compose/compose.yaml as podman commands, as far as that file goes; what is not known here fails, not passes.

`docker compose` needs Docker's service, and podman-compose a podman and a systemd that time health checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compose.images.images import ROOT, Engine

FOLDER = ROOT / "compose"
PROJECT = "edge-gateway"
VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?::?-(?P<default>[^}]*)|:?\?[^}]*)?\})")
PASSED_BY = {"healthcheck", "logging", "restart", "profiles", "depends_on", "stop_grace_period", "deploy"}
PASSED_BY |= {"pull_policy"}
"""What podman is not told: whoever starts the services waits for them, checks their health and ends them."""
AT_THE_END = {"image", "command"}
FLAGS = {"user": "--user", "mem_limit": "--memory", "pids_limit": "--pids-limit", "network_mode": "--network"}
LISTS = {"cap_drop": "--cap-drop", "cap_add": "--cap-add", "security_opt": "--security-opt", "tmpfs": "--tmpfs"}
LISTS["ports"] = "--publish"


def read_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """compose/.env.example, with what is to be different."""
    lines = (FOLDER / ".env.example").read_text("utf-8").splitlines()
    return {**dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line)), **changes}


def _filled(node: Any, environment: Mapping[str, str]) -> Any:
    """All of it with variables replaced; KeyError for one that nothing sets."""
    if isinstance(node, dict):
        return {key: _filled(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, environment) for value in node]
    if not isinstance(node, str):
        return node

    def value(found: re.Match[str]) -> str:
        if found["escaped"]:
            return "$"
        return (
            environment[found["name"]] if found["default"] is None else environment.get(found["name"], found["default"])
        )

    return VARIABLE.sub(value, node)


@dataclass(frozen=True, slots=True)
class Service:
    """One of the services, with all variables filled in."""

    name: str
    settings: Mapping[str, Any]

    @property
    def needs(self) -> Mapping[str, str]:
        """The services to wait for, and the condition."""
        given = self.settings.get("depends_on", {})
        return {name: given[name]["condition"] for name in given}

    @property
    def health_command(self) -> list[str]:
        """What says that it is well, as a command inside it."""
        kind, *command = self.settings["healthcheck"]["test"]
        assert kind == "CMD", f"{self.name}: a health check by a shell"
        return [str(part) for part in command]

    def arguments(self) -> list[str]:
        """Those of `podman run`."""
        return [*self._options(), str(self.settings["image"]), *map(str, self.settings.get("command", []))]

    def _options(self) -> Iterator[str]:
        for key, value in self.settings.items():
            if key in FLAGS:
                yield f"{FLAGS[key]}={value}"
            elif key in LISTS:
                yield from (f"{LISTS[key]}={part}" for part in value)
            elif key == "read_only":
                yield f"--read-only={str(value).lower()}"
                yield "--read-only-tmpfs=false"  # docker mounts nothing of its own
            elif key == "environment":
                yield from (f"--env={name}={text}" for name, text in value.items())
            elif key == "env_file":
                yield from (f"--env-file={each['path']}" for each in value if (FOLDER / each["path"]).exists())
            elif key == "entrypoint":
                yield f"--entrypoint={_json(value)}"
            elif key == "volumes":
                yield from (f"--volume={_volume(text)}" for text in value)
            elif key == "networks":
                yield from _networks(self.name, value)
            else:
                assert key in PASSED_BY | AT_THE_END, f"{self.name}: `{key}` is not known to this test"


def _json(words: list[Any]) -> str:
    return "[" + ",".join(f'"{word}"' for word in words) + "]"


def _volume(text: str) -> str:
    source, rest = text.split(":", 1)
    if source.startswith((".", "/")):
        return f"{(FOLDER / source).resolve()}:{rest}"
    return f"{PROJECT}_{source}:{rest}"


def _networks(service: str, given: Any) -> Iterator[str]:
    named = given if isinstance(given, dict) else dict.fromkeys(given)
    for network, more in named.items():
        aliases = [service, *((more or {}).get("aliases", []))]
        yield f"--network={PROJECT}_{network}:" + ",".join(f"alias={alias}" for alias in aliases)


@dataclass(frozen=True, slots=True)
class Compose:
    """The file, for one environment."""

    services: Mapping[str, Service]
    networks: Mapping[str, Any]
    volumes: Mapping[str, Any]

    def in_order(self, without: set[str]) -> list[Service]:
        """Each service after those that it needs."""
        ordered: dict[str, Service] = {}

        def put(name: str) -> None:
            for needed in self.services[name].needs:
                put(needed)
            ordered.setdefault(name, self.services[name])

        for name in self.services:
            if name not in without:
                put(name)
        return list(ordered.values())

    def make_surroundings(self, podman: Engine) -> None:
        """Networks and volumes."""
        for name, more in self.networks.items():
            internal = ["--internal"] if (more or {}).get("internal") else []
            podman.run("network", "create", *internal, f"{PROJECT}_{name}", capture=True)
        for name, more in self.volumes.items():
            given = dict((more or {}).get("driver_opts", {}))
            if given.get("type") == "tmpfs":  # podman before 5 takes `size` for a quota of the disk
                given["o"] = ",".join(part for part in given["o"].split(",") if not part.startswith("size="))
            options = [f"--opt={key}={value}" for key, value in given.items()]
            podman.run("volume", "create", *options, f"{PROJECT}_{name}", capture=True)


def read_compose(environment: Mapping[str, str], path: Path = FOLDER / "compose.yaml") -> Compose:
    """The services of COMPOSE_PROFILES, and those of none."""
    loaded = yaml.safe_load(path.read_text("utf-8"))
    profiles = set(environment["COMPOSE_PROFILES"].split(","))
    chosen = {
        name: Service(name, _filled(settings, environment))
        for name, settings in loaded["services"].items()
        if not settings.get("profiles") or profiles & set(settings["profiles"])
    }
    return Compose(chosen, loaded["networks"], _filled(loaded["volumes"], environment))
