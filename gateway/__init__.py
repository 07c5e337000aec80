"""Triton Edge Gateway: camera snapshots over MQTT, answered by two variants of a model on NVIDIA Triton."""

from gateway import without_rich

__version__ = "0.1.0"

without_rich.install()
