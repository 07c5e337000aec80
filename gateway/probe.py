"""`python3 -m gateway.probe live|ready|startup`: asks the gateway on this machine, for images that have no curl.

It imports nothing but sockets: a container runtime starts it every few seconds. Exit code 0 for 200, else 1.
"""

from __future__ import annotations

import os
import socket
import sys

TIMEOUT_S = 2.0
PATHS = ("live", "ready", "startup")
ANY = {"", "0.0.0.0", "::"}  # noqa: S104 - what the gateway may listen on  # nosec B104


def ask(path: str, host: str, port: int) -> bool:
    """Whether GET /`path` is answered with 200 within TIMEOUT_S."""
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as connection:
            connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            status = connection.makefile("rb").readline(64)
    except OSError:
        return False
    return status.split()[1:2] == [b"200"]


def main(arguments: list[str]) -> int:
    """The exit code; where the gateway listens is taken from HTTP_HOST and HTTP_PORT, not from gateway.yaml."""
    path = arguments[0] if arguments else "live"
    port = os.environ.get("HTTP_PORT", "8080")
    if path not in PATHS or not (port.isascii() and port.isdigit()):
        sys.stderr.write(f"usage: python3 -m gateway.probe {'|'.join(PATHS)}, with a number in HTTP_PORT\n")
        return 2
    host = os.environ.get("HTTP_HOST", "")
    return 0 if ask(path, "localhost" if host in ANY else host, int(port)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
