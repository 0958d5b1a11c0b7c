"""A stand-in for a device and its memory: memory of the host, which ONNX Runtime's CPU provider
takes as that of its own device."""

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime

from neurona_server.batching.request import Array
from neurona_server.models.onnx.bindings import GraphTensor, graph_tensors

ALIGNMENT = 64
_TYPES: Mapping[str, tuple[int, Any]] = {
    "tensor(float)": (1, np.float32),
    "tensor(float16)": (10, np.float16),
    "tensor(bfloat16)": (16, np.uint16),
    "tensor(int32)": (6, np.int32),
    "tensor(int64)": (7, np.int64),
}


class HostBuffer:
    """Device memory that is not."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.address = array.ctypes.data


class HostMemory:
    """Allocates memory of the host for both sides, and counts what is alive.

    `copies` has a tuple ("in" or "out", bytes) for each copy, `synchronizations` the number of
    times that a thread waited for the device; `active` tells whether it is the current one.
    """

    device_type = "cpu"
    number = 0

    def __init__(self) -> None:
        self.copies: list[tuple[str, int]] = []
        self.allocations: list[tuple[str, int]] = []
        self.prepared_threads: set[int] = set()
        self.synchronizations = 0
        self.active = False

    def holds(self, info: onnxruntime.OrtMemoryInfo) -> bool:
        return info.name == "Cpu"

    def prepare_thread(self) -> None:
        self.prepared_threads.add(threading.get_ident())

    @contextmanager
    def activate(self) -> Iterator[None]:
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def synchronize(self) -> None:
        self.synchronizations += 1

    def free_bytes(self) -> int:
        return 1 << 40

    def allocate_host(self, nbytes: int) -> Array:
        self.allocations.append(("host", nbytes))
        return _aligned(nbytes)

    def allocate_device(self, nbytes: int) -> HostBuffer:
        self.allocations.append(("device", nbytes))
        return HostBuffer(_aligned(nbytes))

    def new_stream(self) -> "HostStream":
        return HostStream(self)


class HostStream:
    """Copies at once. A test may override what happens before."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory

    def copy_in(self, copies: Sequence[tuple[int, Array]]) -> None:
        for address, array in copies:
            self._memory.copies.append(("in", array.nbytes))
            ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def copy_out(self, copies: Sequence[tuple[Array, int]]) -> None:
        for array, address in copies:
            self._memory.copies.append(("out", array.nbytes))
            ctypes.memmove(array.ctypes.data, address, array.nbytes)


def bindable(
    session: onnxruntime.InferenceSession, host_names: Sequence[str] = ()
) -> tuple[list[GraphTensor], list[GraphTensor]]:
    """Return the tensors of a session on the CPU, as if its memory were a device's."""
    types = {
        node.name: (_TYPES[node.type][0], np.dtype(_TYPES[node.type][1]))
        for node in [*session.get_inputs(), *session.get_outputs()]
    }
    tensors = graph_tensors(session, types, HostMemory(), host_names)
    assert tensors is not None
    return tensors


def _aligned(nbytes: int) -> Array:
    block = np.full(nbytes + ALIGNMENT, 0xA5, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + nbytes]
