"""Inputs and outputs in device memory that belongs to another process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.in_process_server import InProcessServer

from neurona_protos import open_inference_pb2 as pb
from neurona_server.batching.policy import BatchPolicy
from neurona_server.models.onnx.cuda_driver import load_driver
from neurona_server.models.onnx.graph_writer import FLOAT, write_model, write_node

pytestmark = pytest.mark.usefixtures("cuda")

OWNER = """
import sys
from neurona_server.models.onnx.cuda_driver import load_driver
driver = load_driver()
memory = driver.device_allocate(0, int(sys.argv[1]))
print(driver.ipc_handle(memory).hex(), flush=True)
for line in sys.stdin:
    command, offset, content = line.split()
    if command == "write":
        memory.write(int(offset), bytes.fromhex(content))
        print("done", flush=True)
    else:
        target = bytearray(int(content))
        memory.read(int(offset), target)
        print(target.hex(), flush=True)
"""
ROWS = np.arange(16, dtype=np.float32).reshape(2, 8)


class Owner:
    """A process that owns device memory, as a caller of the server does."""

    def __init__(self, size: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.handle = bytes.fromhex(self._line())

    def write(self, offset: int, content: bytes) -> None:
        assert self._ask(f"write {offset} {content.hex()}") == "done"

    def read(self, offset: int, size: int) -> bytes:
        return bytes.fromhex(self._ask(f"read {offset} {size}"))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()  # closes its pipes

    def _ask(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the process that owns the memory has ended: see its error above"
        return line


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    """A server with y = x + x."""
    root: Path = tmp_path_factory.mktemp("repository")
    (root / "twice" / "1").mkdir(parents=True)
    content = write_model(
        [write_node("Add", ["x", "x"], ["y"])],
        {"x": (FLOAT, ("batch", "n"))},
        {"y": (FLOAT, ("batch", "n"))},
    )
    (root / "twice" / "1" / "model.onnx").write_bytes(content)
    server = InProcessServer(root, BatchPolicy(), shared_memory=True)
    yield server
    server.stop()


@pytest.fixture
def owner(server: InProcessServer) -> Iterator[Owner]:
    owner = Owner(1 << 20)
    yield owner
    server.triton.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(), timeout=30)
    owner.kill()


def register(server: InProcessServer, name: str, handle: bytes, byte_size: int = 1 << 20) -> None:
    message = pb.CudaSharedMemoryRegisterRequest(name=name, raw_handle=handle, byte_size=byte_size)
    server.triton.CudaSharedMemoryRegister(message, timeout=60)


def infer(
    server: InProcessServer, region: str, source: int, target: int, shape: tuple[int, int] = (2, 8)
) -> None:
    message = pb.ModelInferRequest(model_name="twice")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=shape)
    for one, offset in ((tensor, source), (message.outputs.add(name="y"), target)):
        one.parameters["shared_memory_region"].string_param = region
        one.parameters["shared_memory_offset"].int64_param = offset
        one.parameters["shared_memory_byte_size"].int64_param = 4 * shape[0] * shape[1]
    server.triton.ModelInfer(message, timeout=60)


def test_the_extension_is_listed(server: InProcessServer) -> None:
    metadata = server.triton.ServerMetadata(pb.ServerMetadataRequest(), timeout=10)
    assert "cuda_shared_memory" in metadata.extensions


def test_inputs_and_outputs_are_in_the_memory_of_another_process(
    server: InProcessServer, owner: Owner
) -> None:
    register(server, "region", owner.handle)
    for round_number in range(20):
        rows = ROWS + round_number
        owner.write(4096, rows.tobytes())
        infer(server, "region", 4096, 65536)
        assert owner.read(65536, ROWS.nbytes) == (2 * rows).tobytes(), round_number
    (status,) = server.triton.CudaSharedMemoryStatus(
        pb.CudaSharedMemoryStatusRequest(), timeout=10
    ).regions.values()
    assert (status.name, status.device_id, status.byte_size) == ("region", 0, 1 << 20)


def test_large_inputs_and_outputs(server: InProcessServer, owner: Owner) -> None:
    """They are copied through page-locked memory."""
    register(server, "region", owner.handle)
    rows = np.random.default_rng(1).random((64, 1024), dtype=np.float32)
    owner.write(0, rows.tobytes())
    for _ in range(5):
        infer(server, "region", 0, 512 << 10, rows.shape)
    assert owner.read(512 << 10, rows.nbytes) == (2 * rows).tobytes()


def test_an_allocation_is_opened_twice_and_closed_twice(
    server: InProcessServer, owner: Owner
) -> None:
    register(server, "a", owner.handle)
    register(server, "b", owner.handle, 8192)
    owner.write(0, ROWS.tobytes())
    server.triton.CudaSharedMemoryUnregister(
        pb.CudaSharedMemoryUnregisterRequest(name="a"), timeout=30
    )
    infer(server, "b", 0, 4096)
    assert owner.read(4096, ROWS.nbytes) == (2 * ROWS).tobytes()


@pytest.mark.parametrize("kind", ["unknown handle", "beyond the allocation"])
def test_invalid_regions_are_refused_and_break_nothing(
    server: InProcessServer, owner: Owner, kind: str
) -> None:
    handle = bytes(range(64)) if kind == "unknown handle" else owner.handle
    with pytest.raises(grpc.RpcError) as caught:
        register(server, "bad", handle, 1 << 40)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    print(caught.value.details())
    register(server, "good", owner.handle)
    owner.write(0, ROWS.tobytes())
    infer(server, "good", 0, 4096)
    assert owner.read(4096, ROWS.nbytes) == (2 * ROWS).tobytes()


def test_the_end_of_the_owner_breaks_nothing(server: InProcessServer, owner: Owner) -> None:
    """CUDA promises nothing of memory whose owner has ended: it may be readable or not."""
    ended = Owner(1 << 20)
    register(server, "ended", ended.handle)
    ended.kill()
    try:
        infer(server, "ended", 0, 4096)
    except grpc.RpcError as error:
        print(error.code(), error.details())
    message = pb.CudaSharedMemoryUnregisterRequest(name="ended")
    server.triton.CudaSharedMemoryUnregister(message, timeout=60)
    register(server, "region", owner.handle)
    owner.write(0, ROWS.tobytes())
    infer(server, "region", 0, 4096)
    assert owner.read(4096, ROWS.nbytes) == (2 * ROWS).tobytes()


def test_regions_take_no_memory_once_they_are_unregistered(
    server: InProcessServer, owner: Owner
) -> None:
    driver = load_driver()
    free_before = 0
    for number in range(200):
        register(server, "region", owner.handle)
        server.triton.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(), timeout=30)
        if number == 10:
            free_before, _ = driver.memory_info(0)
    free_after, _ = driver.memory_info(0)
    assert free_before - free_after < 64 << 20, (free_before, free_after)
