"""Triton Edge Gateway: camera snapshots over MQTT, answered by two variants of a model on NVIDIA Triton."""

__version__ = "0.1.0"
