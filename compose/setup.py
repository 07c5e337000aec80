"""Passwords and tokens of the containers: made once, and each service gets a copy of its own.

`make` (at each start) makes what is missing and writes the copies; `show` prints them; `renew NAME...` makes new ones.
Runs in the gateway's image as root with CAP_CHOWN alone, so each file is written before it is given away.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import secrets
import sys
from pathlib import Path

ROOT = Path("/secrets")
USERS = ("gateway", "camera", "viewer")
"""The roles of mosquitto/roles.acl."""
CLIENT_ID = "mqtt-client-id"
"""The gateway's: who knows it and may log in, as whoever it is, can take its session and what waits in it."""
NAMES = (*(f"mqtt-{user}" for user in USERS), CLIENT_ID, "api-token", "api-read-token", "grafana-admin")
SHORTEST = 16
"""Characters; what is shorter was cut off when it was written or restored."""
GATEWAY, MOSQUITTO, GRAFANA = (10001, 10001), (1883, 1883), (472, 0)
"""User and group of each service, as in compose.yaml."""
COPIES = {
    "mqtt-gateway": ("gateway/mqtt-password", GATEWAY),
    CLIENT_ID: ("gateway/gateway.yaml", GATEWAY),
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
    try:
        if action == "show" and not names:
            sys.stdout.writelines(f"{name:16}{kept(root, name)}\n" for name in NAMES if is_kept(root, name))
            return 0
        if action in ("make", "renew") and bool(names) == (action == "renew") and set(names) <= set(NAMES):
            make(root, names)
            return 0
    except OSError as error:
        hint = "make room on this disk" if error.errno == errno.ENOSPC else "see to the volumes"
        sys.stderr.write(f"setup: {error.filename}: {error.strerror}: {hint}, then start it again\n")
        return 1
    sys.stderr.write(f"usage: setup [make | show | renew NAME...], of {', '.join(NAMES)}\n")
    return 2


def make(root: Path, names: list[str]) -> None:
    """Make what is missing, and those named anew; then the copies of what is not as it was. OSError if one cannot."""
    folder = os.open(root / "all", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # several may start at once: `docker compose run setup` beside `up`
        for name in NAMES:
            if name in names or not is_kept(root, name):
                write(root / "all" / name, secrets.token_urlsafe(24), 0o600)
        for name, (place, owner) in COPIES.items():
            secret = kept(root, name)
            text = f'aio_mqtt_client_id: "edge-gateway-{secret}"' if name == CLIENT_ID else secret
            hand_out(root / place, text, 0o400, owner, made_of=secret)
        passwords = {user: kept(root, f"mqtt-{user}") for user in USERS}
        lines = "\n".join(password_line(user, password) for user, password in passwords.items())
        hand_out(root / PASSWORDS, lines, 0o600, MOSQUITTO, made_of="\n".join(passwords.values()))
    finally:
        os.close(folder)


def hand_out(copy: Path, text: str, mode: int, owner: tuple[int, int], *, made_of: str) -> None:
    """Write a copy unless it is of this secret already.

    What was given away we may not read, and times say nothing after a restore: the secret's digest lies beside it.
    """
    digest = hashlib.sha256(made_of.encode()).hexdigest()
    beside = copy.with_name(f".{copy.name}.sha256")
    if copy.is_file() and beside.is_file() and beside.read_text().strip() == digest:
        return
    write(copy, text, mode, owner)
    write(beside, digest, 0o600)


def is_kept(root: Path, name: str) -> bool:
    """Whether it has been made already, and is whole."""
    return (root / "all" / name).is_file() and len(kept(root, name)) >= SHORTEST


def kept(root: Path, name: str) -> str:
    """One of those that were made."""
    return (root / "all" / name).read_text(errors="replace").strip()


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
    try:
        with os.fdopen(file, "w") as stream:
            stream.write(f"{text}\n")
            stream.flush()
            os.fsync(file)
            os.fchmod(file, mode)
            if owner is not None:
                os.fchown(file, *owner)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
