"""HTTP for OpenTelemetry's exporter: what a receiver answers costs a bounded time and a bounded memory.

The exporter's own session reads an answer to its end, however long it is, and its time-out begins anew with each byte.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_ANSWER_BYTES = 128 * 1024
"""Of the head and the body as they come, with all interim answers and what frames the chunks."""
MAX_BODY_BYTES = 16 * 1024
"""A connection whose answer has a longer body is closed; nobody looks at the bodies."""
LIMIT_S = 10.0
"""For an answer, where the exporter names no limit; it names that of OTEL_EXPORTER_OTLP_TIMEOUT."""


def bounded_session() -> requests.Session:
    """A session whose answers come in full within the time-out and 128 KiB, or fail, and which goes nowhere else.

    Bodies are thrown away. An answer that sends it elsewhere fails: the exporter would take it for a success.
    """
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter())
    return session


class _Adapter(HTTPAdapter):
    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """A pool, straight or by a proxy, of connections that read bounded answers."""
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _bounded(pool.ConnectionCls)
        return pool

    def send(self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **kwargs: Any) -> Any:
        """An answer without its body. Raises RequestException when it takes too long or sends elsewhere."""
        response = super().send(request, True, *args, **kwargs)
        body = response.raw
        try:
            if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
                raise requests.TooManyRedirects(f"the answer is {response.status_code}, which is not followed")
            whole = len(body.read(MAX_BODY_BYTES + 1, decode_content=False)) <= MAX_BODY_BYTES
        except requests.RequestException:
            body.close()
            raise
        except Exception as error:
            body.close()
            raise requests.RequestException(f"the answer does not end: {error}", request=request) from error
        if not whole:
            body.close()
        response.raw = io.BytesIO()
        return response


@functools.cache
def _bounded(connection: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
    """The same kind of connection, with bounded answers."""
    if issubclass(connection.response_class, _Answer):
        return connection
    return type(f"Bounded{connection.__name__}", (connection,), {"response_class": _Answer})


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Bounded(sock, self.fp.detach()))


class _Bounded(io.RawIOBase):
    """The bytes of one answer; the socket's time-out holds for all of them together."""

    def __init__(self, sock: socket.socket, stream: io.RawIOBase) -> None:
        self._sock = sock
        self._stream = stream
        self._ends_at = time.monotonic() + (sock.gettimeout() or LIMIT_S)
        self._left = MAX_ANSWER_BYTES

    def readable(self) -> bool:
        """As the stream's."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        """Raises TimeoutError after the time, and HTTPException beyond the limit of bytes."""
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        if self._left <= 0:
            raise http.client.HTTPException(f"it has more than {MAX_ANSWER_BYTES} bytes")
        self._sock.settimeout(left_s)
        count = self._stream.readinto(memoryview(buffer).cast("B")[: self._left])
        self._left -= count or 0
        return count

    def close(self) -> None:
        """Close the stream too."""
        self._stream.close()
        super().close()
