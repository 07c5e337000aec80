"""A server that reads shared memory as Triton does, and misbehaves as a Triton may."""

from __future__ import annotations

import asyncio
import mmap
import random
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as messages

from gateway.adapters.triton_codec import NUMPY_TYPES
from tests.adapters.triton_wire import Wire


class ReadingTriton:
    """Answers ModelInfer with the mean of all inputs, which it takes from the request or from memory in `folder`."""

    def __init__(self, wire: Wire, folder: Path) -> None:
        self.folder = folder
        self.regions: dict[str, mmap.mmap] = {}
        self.registrations = 0
        self.unregistered: list[str] = []
        self.by_memory: list[messages.ModelInferRequest] = []
        self.by_bytes: list[messages.ModelInferRequest] = []
        self.reads_zeros = False
        self.random = False
        self.forgetful = False
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()
        self.registers = asyncio.Event()
        self.registers.set()
        wire.answers |= {
            "ModelInfer": self._infer,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "SystemSharedMemoryStatus": self._status,
        }

    def restart(self) -> None:
        """Forget all regions."""
        self.regions.clear()

    async def _register(self, payload: bytes, context: Any) -> bytes:
        asked = messages.SystemSharedMemoryRegisterRequest.FromString(payload)
        await self.registers.wait()
        self.registrations += 1
        if asked.name in self.regions:
            text = f"shared memory region '{asked.name}' already in manager"
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, text)
        try:
            with (self.folder / asked.key.lstrip("/")).open("r+b") as file:
                self.regions[asked.name] = mmap.mmap(file.fileno(), asked.byte_size)
        except OSError:
            text = f"Unable to open shared memory region: '{asked.key}'"
            await context.abort(grpc.StatusCode.INTERNAL, text)
        return b""

    async def _unregister(self, payload: bytes, context: Any) -> bytes:
        name = messages.SystemSharedMemoryUnregisterRequest.FromString(payload).name
        assert name, "Triton would forget everybody's"
        self.unregistered.append(name)
        self.regions.pop(name, None)
        return b""

    async def _status(self, payload: bytes, context: Any) -> bytes:
        answer = messages.SystemSharedMemoryStatusResponse()
        for name in self.regions:
            answer.regions[name].name = name
        return bytes(answer.SerializeToString())

    async def _infer(self, payload: bytes, context: Any) -> bytes:
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        asked = messages.ModelInferRequest.FromString(payload)
        raw = list(asked.raw_input_contents)
        memory = [tensor for tensor in asked.inputs if "shared_memory_region" in tensor.parameters]
        (self.by_memory if memory else self.by_bytes).append(asked)
        inputs = [await self._read(tensor, raw, context) for tensor in asked.inputs]
        assert not raw
        await self.answers.wait()
        said = float(np.mean([array.mean() for array in inputs])) + (random.random() if self.random else 0.0)
        if memory and self.forgetful:
            self.regions.clear()
        output = messages.ModelInferResponse.InferOutputTensor(name="y", datatype="FP64", shape=[1])
        answer = messages.ModelInferResponse(
            model_version="1", outputs=[output], raw_output_contents=[np.array([said]).tobytes()]
        )
        return bytes(answer.SerializeToString())

    async def _read(self, tensor: Any, raw: list[bytes], context: Any) -> NDArray[Any]:
        dtype = NUMPY_TYPES[tensor.datatype]
        if "shared_memory_region" not in tensor.parameters:
            return np.frombuffer(raw.pop(0), dtype).reshape(tuple(tensor.shape))
        region = tensor.parameters["shared_memory_region"].string_param
        if region not in self.regions:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{region}'")
        offset = tensor.parameters["shared_memory_offset"].int64_param
        size = tensor.parameters["shared_memory_byte_size"].int64_param
        content = self.regions[region][offset : offset + size]
        array = np.frombuffer(bytes(size) if self.reads_zeros else content, dtype)
        return array.reshape(tuple(tensor.shape))
