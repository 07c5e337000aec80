"""A real gRPC server that says what Triton says, and what it never should."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages

Handler = Callable[[bytes, Any], Awaitable[bytes]]


class Wire(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A gRPC server that answers each of Triton's methods with whatever a test gives it."""

    def __init__(self) -> None:
        self.answers: dict[str, Handler] = {}
        self.default: Handler | None = None

    def service(self, details: Any) -> Any:
        handler = self.answers.get(details.method.rpartition("/")[2], self.default)
        return handler and grpc.unary_unary_rpc_method_handler(handler)

    def says(self, **answers: Any) -> None:
        """Answer a method with a message or with bytes."""
        for method, answer in answers.items():
            payload = answer if isinstance(answer, bytes) else answer.SerializeToString()
            self.answers[method] = self._constant(payload)

    def fails(self, code: grpc.StatusCode, details: str) -> None:
        """Answer every method with a status."""

        async def abort(_: bytes, context: Any) -> bytes:
            await context.abort(code, details)
            raise AssertionError("abort raises")

        self.answers.clear()
        self.default = abort

    @staticmethod
    def _constant(payload: bytes) -> Handler:
        async def answer(_: bytes, context: Any) -> bytes:
            return payload

        return answer


@asynccontextmanager
async def listening(credentials: Any = None, host: str = "127.0.0.1") -> AsyncIterator[tuple[Wire, str]]:
    """A `Wire` on a free port, and its address; with gRPC's credentials it wants TLS."""
    handler = Wire()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield handler, f"{host}:{port}"
    finally:
        await server.stop(None)


def statistics_response(*memory: int) -> Any:
    """Two versions, the first with these memory usages."""
    response = messages.ModelStatisticsResponse()
    for version in ("1", "2"):
        stats = response.model_stats.add(name="m", version=version)
        stats.inference_stats.success.count = 5
        for part in ("queue", "compute_input", "compute_infer", "compute_output"):
            getattr(stats.inference_stats, part).ns = 100
    for size in memory:
        response.model_stats[0].memory_usage.add(type="CPU", byte_size=size)
    return response
