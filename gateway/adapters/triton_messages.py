"""Triton's messages and stubs as tritonclient generates them, without its client.

Importing `tritonclient.grpc` brings its client along, with a JSON library and more that nothing here uses: 3.4 MB of
resident memory. The generated modules need none of it, so they are imported under a package that is a folder only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import tritonclient

_PACKAGE = "tritonclient.grpc"


@contextmanager
def _without_its_client() -> Iterator[None]:
    """For whoever imports the package after this, it is what it always is, with the same messages."""
    if _PACKAGE in sys.modules:
        yield
        return
    folder = ModuleType(_PACKAGE)
    folder.__path__ = [str(Path(place) / "grpc") for place in tritonclient.__path__]
    sys.modules[_PACKAGE] = folder
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]


with _without_its_client():
    from tritonclient.grpc import model_config_pb2, service_pb2
    from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse
    from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

__all__ = ["GRPCInferenceServiceStub", "ModelInferRequest", "ModelInferResponse", "model_config_pb2", "service_pb2"]
