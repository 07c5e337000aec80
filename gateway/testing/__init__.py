"""In-memory implementations of the two ports, for tests of the gateway and of what people build on it."""

from gateway.testing.memory_broker import MemoryBroker, MemoryBrokerClient
from gateway.testing.memory_triton import MemoryTriton

__all__ = ["MemoryBroker", "MemoryBrokerClient", "MemoryTriton"]
