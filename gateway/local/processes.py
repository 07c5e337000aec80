"""Child processes that never outlive this one, with the end of their log at hand. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from gateway.errors import StackError

LOOPBACK = "127.0.0.1"
LOG_LINES = 500
LOG_LINE_LENGTH = 2000
POLL_S = 0.02

# Asks the kernel for SIGKILL (9) at the parent's death, then becomes the program. A wrapper and not
# preexec_fn, which runs Python between fork and exec and can deadlock in a process with threads.
# SIGKILL and not SIGTERM, which a program that hangs would survive (seen with Triton).
_WRAPPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has died before the start")
os.execvp(sys.argv[2], sys.argv[2:])
"""

# The kernel sends that signal when the *thread* that forked ends. Whoever calls start() may do so from
# a short-lived one (asyncio.to_thread), so all children are forked by this one, which lives to the end.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-spawner")


class ChildProcess:
    """One run of a program that dies with this process, even when this one is killed.

    It has a session of its own: Ctrl-C in the terminal does not reach it before its parent has drained.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self._env = dict(env) if env is not None else None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the program; returns at once, see wait_ready."""
        wrapper = [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid())]
        self._process = _spawner.submit(self._spawn, wrapper + self._argv).result()
        self._reader = threading.Thread(target=self._read_log, name=f"{self.name}-log", daemon=True)
        self._reader.start()

    def _spawn(self, argv: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def _read_log(self) -> None:
        process = self._started()
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                self._log.append(line.rstrip("\n")[:LOG_LINE_LENGTH])

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process

    @property
    def pid(self) -> int:
        """The program's own process id; also that of its process group."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether it runs now; false before start()."""
        return self._process is not None and not self._exited()

    def _exited(self) -> bool:
        # Looks without reaping: as long as the zombie is there, the kernel gives its id, which is the
        # group's id too, to nobody else, and killpg() below cannot hit a stranger.
        process = self._started()
        if process.returncode is not None:
            return True
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def log_tail(self, count: int = 20) -> list[str]:
        """The last lines that the program wrote."""
        return list(self._log)[-count:]

    def wait_ready(self, ready: Callable[[], bool], timeout: float, *, fix: str) -> None:
        """Return when `ready()` is true; raise StackError with the log's end if that does not come to pass."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self._exited():
                code = self._reap()
                raise StackError(f"{self.name} ended at its start ({describe_exit(code)}){self.log_excerpt()}", fix=fix)
            if time.monotonic() > deadline:
                self.kill()
                raise StackError(f"{self.name} was not ready within {timeout:.0f} s{self.log_excerpt()}", fix=fix)
            time.sleep(POLL_S)

    def log_excerpt(self, count: int = 15) -> str:
        """The end of the log as a text to append to a message."""
        lines = self.log_tail(count)
        if not lines:
            return ", and wrote nothing"
        return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines) + "\n"

    def stop(self, grace: float) -> int:
        """Ask it to end (SIGTERM), kill what is left after `grace` seconds; returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while not self._exited() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return self.kill()

    def kill(self) -> int:
        """End it and all its descendants at once (SIGKILL to the group); returns the exit code."""
        if self._started().returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        return self._reap()

    def _reap(self) -> int:
        code = self._started().wait()
        if self._reader is not None:
            self._reader.join(timeout=1)  # a descendant may hold the pipe a moment longer
        return code


def describe_exit(code: int) -> str:
    """An exit code in words: 'exit code 1', 'killed by SIGKILL'."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def free_ports(count: int) -> list[int]:
    """Ports on the loopback address that nobody listens on now; all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port; connections in TIME_WAIT do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free_port(port: int, purpose: str, option: str) -> None:
    """Raise StackError if somebody listens on a port that was asked for."""
    if not port_is_free(port):
        raise StackError(
            f"port {port} for {purpose} is taken",
            fix=f"Choose another with {option}, leave {option} out for a free one, "
            f"or stop what listens there (ss -ltnp 'sport = :{port}')",
        )
