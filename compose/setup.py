"""Passwords and tokens of the containers: made once, and each service gets a copy of its own.

`make` (at each start) makes what is missing and writes the copies; `show` prints them; `renew NAME...` makes new ones.
Runs in the gateway's image as root with CAP_CHOWN alone, so each file is written before it is given away.
"""
# ruff: noqa: INP001 - a script in a container, not a package

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sys
from pathlib import Path

ROOT = Path("/secrets")
USERS = ("gateway", "camera", "viewer")
"""The roles of mosquitto/roles.acl."""
NAMES = (*(f"mqtt-{user}" for user in USERS), "api-token", "api-read-token", "grafana-admin")
GATEWAY, MOSQUITTO, GRAFANA = (10001, 10001), (1883, 1883), (472, 0)
"""User and group of each service, as in compose.yaml."""
COPIES = {
    "mqtt-gateway": ("gateway/mqtt-password", GATEWAY),
    "api-token": ("gateway/api-token", GATEWAY),
    "api-read-token": ("gateway/api-read-token", GATEWAY),
    "mqtt-camera": ("camera/mqtt-password", GATEWAY),
    "grafana-admin": ("grafana/admin-password", GRAFANA),
}
PASSWORDS = "mosquitto/passwords"
ITERATIONS = 1000
"""Of a password with 190 random bits few are enough; they cost the broker time at each connect."""


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Do as asked; returns the exit code."""
    action, names = (arguments or ["make"])[0], arguments[1:]
    if action == "show" and not names:
        sys.stdout.writelines(f"{name:16}{kept(root, name)}\n" for name in NAMES if is_kept(root, name))
        return 0
    if action not in ("make", "renew") or bool(names) != (action == "renew") or not set(names) <= set(NAMES):
        sys.stderr.write(f"usage: setup [make | show | renew NAME...], of {', '.join(NAMES)}\n")
        return 2
    for name in NAMES:
        if name in names or not is_kept(root, name):
            write(root / "all" / name, secrets.token_urlsafe(24), 0o600)
    for name, (place, owner) in COPIES.items():
        if is_older(root / place, root, (name,)):
            write(root / place, kept(root, name), 0o400, owner)
    if is_older(root / PASSWORDS, root, tuple(f"mqtt-{user}" for user in USERS)):
        lines = (password_line(user, kept(root, f"mqtt-{user}")) for user in USERS)
        write(root / PASSWORDS, "\n".join(lines), 0o600, MOSQUITTO)
    return 0


def is_older(copy: Path, root: Path, names: tuple[str, ...]) -> bool:
    """Whether a copy is missing, or older than what it is made of; what is given away we may not read."""
    made = max((root / "all" / name).stat().st_mtime_ns for name in names)
    return not copy.is_file() or copy.stat().st_mtime_ns < made


def is_kept(root: Path, name: str) -> bool:
    """Whether it has been made already."""
    return (root / "all" / name).is_file()


def kept(root: Path, name: str) -> str:
    """One of those that were made."""
    return (root / "all" / name).read_text().strip()


def password_line(user: str, password: str) -> str:
    """One line of Mosquitto's password file, as `mosquitto_passwd` writes it: PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"{user}:$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def write(path: Path, text: str, mode: int, owner: tuple[int, int] | None = None) -> None:
    """All of it or nothing: a service that starts at this moment reads the old file."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "w") as stream:
        stream.write(f"{text}\n")
        stream.flush()
        os.fsync(file)
        os.fchmod(file, mode)
        if owner is not None:
            os.fchown(file, *owner)
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
