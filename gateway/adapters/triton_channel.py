"""The gRPC channel to Triton: with TLS made anew when its files are renewed, and asked why it does not connect."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc  # type: ignore[import-untyped]
import structlog

from gateway.adapters.tls import FileWatch, TlsError, diagnose, root_certificates
from gateway.adapters.triton_errors import MAX_ANSWER_BYTES
from gateway.adapters.triton_messages import GRPCInferenceServiceStub
from gateway.credentials import TlsFiles
from gateway.errors import BackendUnavailable, ConfigError

log = structlog.get_logger(__name__)

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
DIAGNOSE_EVERY_S = 5.0
DIAGNOSE_LIMIT_S = 1.0


class Line:
    """One channel with its stub; once it is retired it closes as soon as the last call on it has ended."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.stub = GRPCInferenceServiceStub(channel)
        self.infer = channel.unary_unary(MODEL_INFER)  # no serialisers: triton_codec does it
        self._calls = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def gone(self) -> bool:
        """Whether it was retired and has closed."""
        return self._closing is not None and self._closing.done()

    @property
    def connected(self) -> bool:
        """Whether it has a connection now."""
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    def __enter__(self) -> None:
        """Keep the channel open for as long as a call lasts."""
        self._calls += 1

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        self._close_when_idle()

    def retire(self) -> None:
        """Take no new calls."""
        self._retired = True
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._retired and not self._calls and self._closing is None:
            self._closing = asyncio.create_task(self.channel.close(), name="triton channel")


class TritonChannel:
    """The line to one Triton at `host:port`; opened at the first use, because it belongs to the loop that runs then.

    Without `tls` it is plain text. gRPC speaks nothing older than TLS 1.2, checks the host name, and never falls back
    to plain text.
    """

    def __init__(self, url: str, tls: TlsFiles | None, *, connect_timeout_s: float, look_at_files_s: float) -> None:
        self.url = url
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._look_at_files_s = look_at_files_s
        self._line: Line | None = None
        self._retired: list[Line] = []
        self._files: FileWatch | None = None
        self._looked_at = 0.0
        self._diagnosing = asyncio.Lock()
        self._diagnosed_at = float("-inf")
        self._closed = False
        self._trouble: TlsError | None = None

    @property
    def trouble(self) -> TlsError | None:
        """What TLS has to do with it that there is no connection, as far as is known."""
        return None if self._line is not None and self._line.connected else self._trouble

    def line(self) -> Line:
        """The line to call on, made anew if the files for TLS were renewed; raises BackendUnavailable."""
        where = f"Triton at {self.url}"
        if self._closed:
            raise BackendUnavailable("the connection has been closed", where=where)
        try:
            if self._line is None:
                self._files = FileWatch(self._tls.paths) if self._tls else None
                self._line = self._open()
            elif self._renewed():
                fresh = self._open()
                self._line.retire()
                self._retired = [line for line in (*self._retired, self._line) if not line.gone]
                self._line, self._diagnosed_at = fresh, float("-inf")
        except ConfigError as error:
            said = f"{error.where}: {error.message}"
            self._trouble = TlsError(said, where=where, fix=error.fix)
            raise BackendUnavailable(f"Triton cannot be reached ({said})", where=where, fix=error.fix) from error
        return self._line

    async def why(self) -> TlsError | None:
        """Find out whether TLS is the reason for a call that found no connection; asks at most every 5 s."""
        async with self._diagnosing:
            if self._line is not None and self._line.connected:
                self._trouble = None
            elif time.monotonic() - self._diagnosed_at >= DIAGNOSE_EVERY_S:
                host, _, port = self.url.rpartition(":")
                ask = asyncio.to_thread(diagnose, self._tls, host.strip("[]"), int(port), DIAGNOSE_LIMIT_S)
                self._trouble = await ask
                self._diagnosed_at = time.monotonic()
        return self._trouble

    async def close(self) -> None:
        """End all lines, and the calls on them."""
        self._closed = True
        lines = [*self._retired, *([self._line] if self._line else [])]
        self._line, self._retired = None, []
        for line in lines:
            await line.channel.close()

    def _open(self) -> Line:
        options = _channel_options(self._connect_timeout_s)
        if self._tls is None:
            return Line(grpc.aio.insecure_channel(self.url, options=options))
        for problem in self._tls.problems():
            raise problem
        credentials = grpc.ssl_channel_credentials(
            root_certificates(self._tls),
            self._tls.key.read_bytes() if self._tls.key else None,
            self._tls.certificate.read_bytes() if self._tls.certificate else None,
        )
        return Line(grpc.aio.secure_channel(self.url, credentials, options=options))

    def _renewed(self) -> bool:
        """Whether the files have new content that can be used; it costs a `stat` of each, every other second."""
        now = time.monotonic()
        if self._tls is None or self._files is None or now - self._looked_at < self._look_at_files_s:
            return False
        self._looked_at = now
        changed = self._files.changed()
        if not changed:
            return False
        problems = self._tls.renewal_problems()
        if problems:
            self._files.refuse()
            log.warning(
                "Renewed credentials for Triton cannot be used, the ones before hold",
                setting=problems[0].where,
                reason=problems[0].message,
                fix=problems[0].fix,
            )
            return False
        self._files.accept()
        log.info("Connecting to Triton with renewed credentials", files=[str(path) for path in changed])
        return True


def _channel_options(connect_timeout_s: float) -> list[tuple[str, int]]:
    return [
        # Pictures are larger than gRPC's default of 4 MiB. What is sent is bounded by the flow; what comes back is not.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        # gRPC's back-off grows to two minutes, in which a restarted Triton would stand idle. The "minimum"
        # is, in spite of its name, how long one attempt to connect may take.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),
        # A Triton that comes back as another pod has another address: look the name up again at once.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # A finite interval also sets TCP_USER_TIMEOUT, which notices a machine that vanished. Pings more often
        # than every five minutes would make Triton close the connection during a long load.
        ("grpc.keepalive_time_ms", 330_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Channels with equal arguments share connections, and a renewed one must not go on with those of before.
        ("grpc.use_local_subchannel_pool", 1),
    ]
