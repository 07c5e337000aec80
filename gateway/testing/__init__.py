"""In-memory implementations of the two ports, for tests of the gateway and of what people build on it."""

from gateway.testing.memory_broker import MemoryBroker, MemoryBrokerClient

__all__ = ["MemoryBroker", "MemoryBrokerClient"]
