"""Tensors in shared memory, and callers with tokens of their own that register regions."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from neurona_protos import open_inference_pb2 as pb
from neurona_server.rpc.open_inference.shared_memory import FOLDER
from support.in_process_server import InProcessServer


def register(
    name: str, key: str, byte_size: int = 4096, offset: int = 0
) -> pb.SystemSharedMemoryRegisterRequest:
    return pb.SystemSharedMemoryRegisterRequest(
        name=name, key=key, offset=offset, byte_size=byte_size
    )


def unregister(name: str) -> pb.SystemSharedMemoryUnregisterRequest:
    return pb.SystemSharedMemoryUnregisterRequest(name=name)


def write_memory(key: str, offset: int, data: bytes) -> None:
    with open(os.path.join(FOLDER, key), "r+b") as file:
        file.seek(offset)
        file.write(data)


def read_memory(key: str, offset: int, size: int) -> bytes:
    with open(os.path.join(FOLDER, key), "rb") as file:
        file.seek(offset)
        return file.read(size)


def set_region(tensor: Any, region: str, byte_size: int, offset: int = 0) -> Any:
    """Say that an input or a requested output is in a region, and return it."""
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = byte_size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset
    return tensor


def from_memory(
    kind: str, shape: Sequence[int], region: str, byte_size: int, offset: int = 0
) -> pb.ModelInferRequest:
    """Return a request to echo what is in a region."""
    message = pb.ModelInferRequest(model_name=f"echo_{kind}")
    set_region(message.inputs.add(name="x", datatype=kind, shape=shape), region, byte_size, offset)
    return message


def token_entry(name: str, token: str, *rights: str) -> str:
    """Return the entry of a token in the file of tokens."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[tokens]]\nname = "{name}"\nsha256 = "{digest}"\nrights = {list(rights)}\n'


class Caller:
    """Calls with a token; each call returns its response."""

    def __init__(self, server: InProcessServer, token: str) -> None:
        self.server = server
        self._metadata = [("authorization", f"Bearer {token}")]

    def call(self, method: str, message: Any) -> Any:
        call = getattr(self.server.triton, method)
        return call(message, timeout=10, metadata=self._metadata)

    def error_of(self, method: str, message: Any) -> tuple[str, str]:
        """Return the name of the status code of a call that must fail, and its details."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, message)
        return caught.value.code().name, caught.value.details()

    def register(self, *region: Any) -> None:
        self.call("SystemSharedMemoryRegister", register(*region))

    def unregister(self, name: str) -> None:
        self.call("SystemSharedMemoryUnregister", unregister(name))

    def status(self, name: str = "") -> list[str]:
        request = pb.SystemSharedMemoryStatusRequest(name=name)
        return sorted(self.call("SystemSharedMemoryStatus", request).regions)


TOKENS = token_entry("a", "a" * 20, "predict", "control") + token_entry(
    "b", "b" * 20, "predict", "control"
)
PREDICT_ONLY = token_entry("c", "c" * 20, "predict")
