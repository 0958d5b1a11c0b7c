"""CUDA shared memory, with a stand-in for the driver whose device memory is the host's."""

import os
import threading
import uuid

import numpy as np
import pytest
from support.in_process_server import InProcessServer
from support.shared_memory import (
    PREDICT_ONLY,
    TOKENS,
    Caller,
    from_memory,
    register,
    set_region,
    unregister,
    write_memory,
)
from support.triton_requests import DTYPES, raw, request

from neurona_protos import open_inference_pb2 as pb
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import PermissionDeniedError
from neurona_server.models.onnx.cuda_driver import CudaDriver, DeviceMemory, load_driver
from neurona_server.rpc.open_inference import regions
from neurona_server.rpc.open_inference.shared_memory import FOLDER
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.transports.listener import ListenerOptions

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
ALLOCATION = 1 << 20


class CudaMemory:
    """Device memory as a caller has it: ALLOCATION bytes, and their handle."""

    def __init__(self, device=0):
        self._driver = load_driver()
        self._memory = self._driver.device_allocate(device, ALLOCATION)
        self.handle = self._driver.ipc_handle(self._memory)

    def write(self, offset, data):
        self._memory.write(offset, data)

    def read(self, offset, size):
        content = bytearray(size)
        self._memory.read(offset, content)
        return bytes(content)

    def free(self):
        self._memory.close()


@pytest.fixture(scope="module")
def driver(cuda_stub):
    """The stand-in, with two devices, as the driver of this process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        cuda_stub.install(monkeypatch, devices=2)
        yield load_driver()


@pytest.fixture(scope="module")
def module_server(echoes, transport, driver):
    server = InProcessServer(echoes, BatchPolicy(inline=False), shared_memory=True)
    yield server
    server.stop()


@pytest.fixture
def server(module_server):
    yield module_server
    unregister_cuda(module_server)
    module_server.triton.SystemSharedMemoryUnregister(unregister(""), timeout=10)


@pytest.fixture
def memory(driver):
    allocated = CudaMemory()
    yield allocated
    allocated.free()


def region(name, memory, byte_size=ALLOCATION, device=0):
    return pb.CudaSharedMemoryRegisterRequest(
        name=name, raw_handle=memory.handle, device_id=device, byte_size=byte_size
    )


def register_cuda(server, *arguments, **options):
    server.triton.CudaSharedMemoryRegister(region(*arguments, **options), timeout=10)


def unregister_cuda(server, name=""):
    message = pb.CudaSharedMemoryUnregisterRequest(name=name)
    server.triton.CudaSharedMemoryUnregister(message, timeout=10)


def status(server, name=""):
    message = pb.CudaSharedMemoryStatusRequest(name=name)
    return server.triton.CudaSharedMemoryStatus(message, timeout=10).regions


def into(name, size=32):
    message = request("echo_FP32", x=("FP32", ROWS))
    set_region(message.outputs.add(name="echo"), name, size)
    return message


def test_a_region_is_registered_listed_and_unregistered(server, memory, driver):
    register_cuda(server, "a", memory, 100)
    other = CudaMemory(device=1)
    register_cuda(server, "b", other, device=1)
    assert sorted(status(server)) == ["a", "b"]
    (found,) = status(server, "a").values()
    assert (found.name, found.device_id, found.byte_size) == ("a", 0, 100)
    assert status(server, "b")["b"].device_id == 1
    unregister_cuda(server, "a")
    assert list(status(server)) == ["b"]
    unregister_cuda(server)
    assert not status(server)
    unregister_cuda(server, "never there")
    other.free()


def test_the_extension_is_listed_where_a_driver_is(server):
    extensions = server.triton.ServerMetadata(pb.ServerMetadataRequest(), timeout=10).extensions
    assert [*extensions][-2:] == ["system_shared_memory", "cuda_shared_memory"]


@pytest.mark.parametrize("kind", [*DTYPES, "BYTES"])
def test_every_datatype_from_and_to_device_memory(server, memory, kind):
    if kind == "BYTES":
        array = np.array([[b"one", b"two!"]], object)
    else:
        array = np.arange(4).reshape(1, 4).astype(DTYPES[kind])
    data = raw(array)
    memory.write(4, data)
    register_cuda(server, "in", memory, 1000)
    register_cuda(server, "out", memory)
    message = from_memory(kind, array.shape, "in", len(data), offset=4)
    set_region(message.outputs.add(name="echo"), "out", 500, 2008)
    response = server.triton.ModelInfer(message, timeout=10)
    assert memory.read(2008, len(data)) == data
    (tensor,) = response.outputs
    assert (tensor.datatype, tuple(tensor.shape)) == (kind, array.shape)
    assert tensor.parameters["shared_memory_region"].string_param == "out"
    assert tensor.parameters["shared_memory_offset"].int64_param == 2008
    assert tensor.parameters["shared_memory_byte_size"].int64_param == len(data)
    assert list(response.raw_output_contents) == [b""]


def test_an_output_goes_to_another_kind_of_memory_than_the_input(
    echoes, driver, memory, system_key
):
    """Where the model runs in the transport's thread, which makes no copy itself."""
    server = InProcessServer(echoes, BatchPolicy(inline=True), shared_memory=True)
    try:
        server.triton.SystemSharedMemoryRegister(register("in", system_key), timeout=10)
        register_cuda(server, "out", memory)
        write_memory(system_key, 0, ROWS.tobytes())
        message = from_memory("FP32", (2, 4), "in", 32)
        set_region(message.outputs.add(name="echo"), "out", 32)
        server.triton.ModelInfer(message, timeout=10)
        assert memory.read(0, 32) == ROWS.tobytes()
    finally:
        server.stop()


@pytest.fixture
def system_key():
    name = f"neurona-test-{uuid.uuid4().hex}"
    path = os.path.join(FOLDER, name)
    with open(path, "wb") as file:
        file.truncate(ALLOCATION)
    yield name
    os.unlink(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": ""}, "the region's name is ''"),
        ({"byte_size": 0}, "it has 0 bytes"),
        ({"byte_size": 2**20 + 1}, "(expected at most 1048576, the size of the allocation"),
        ({"byte_size": 2**64 - 1}, "expected at most 1048576"),
        ({"raw_handle": b""}, "its raw_handle has 0 bytes (expected 64"),
        ({"raw_handle": b"x" * 65}, "its raw_handle has 65 bytes (expected 64"),
        ({"raw_handle": b"x" * 64}, "its raw_handle cannot be opened: CUDA_ERROR_INVALID_HANDLE"),
        ({"device_id": -1}, "its device_id is -1 (expected 0 to 1"),
        ({"device_id": 2}, "its device_id is 2 (expected 0 to 1"),
        ({"device_id": 2**63 - 1}, "(expected 0 to 1"),
    ],
)
def test_invalid_regions_are_not_registered(server, rejection, memory, changes, text):
    message = region("a", memory)
    for name, value in changes.items():
        setattr(message, name, value)
    code, details = rejection(server.triton.CudaSharedMemoryRegister, message)
    assert code == "INVALID_ARGUMENT"
    assert text in details
    assert not status(server)


def test_both_kinds_of_regions_share_their_names(server, rejection, memory, system_key):
    register_cuda(server, "a", memory)
    server.triton.SystemSharedMemoryRegister(register("b", system_key), timeout=10)
    known = ("ALREADY_EXISTS", "shared memory region 'b' already in manager")
    assert rejection(server.triton.CudaSharedMemoryRegister, region("b", memory)) == known
    system = server.triton.SystemSharedMemoryRegister
    assert rejection(system, register("a", system_key))[0] == "ALREADY_EXISTS"
    message = pb.CudaSharedMemoryStatusRequest(name="b")
    code, text = rejection(server.triton.CudaSharedMemoryStatus, message)
    assert code == "NOT_FOUND"
    assert (
        text == "The region named 'b' is registered as system shared memory, not CUDA shared memory"
    )
    message = pb.CudaSharedMemoryStatusRequest(name="c")
    error = rejection(server.triton.CudaSharedMemoryStatus, message)
    assert error == ("NOT_FOUND", "Unable to find cuda shared memory region: 'c'")
    unregister_cuda(server, "b")
    server.triton.SystemSharedMemoryUnregister(unregister("a"), timeout=10)
    listed = server.triton.SystemSharedMemoryStatus(
        pb.SystemSharedMemoryStatusRequest(), timeout=10
    )
    assert (list(listed.regions), list(status(server))) == (["b"], ["a"])


def test_both_kinds_of_regions_count_for_the_limit(
    server, rejection, memory, system_key, monkeypatch
):
    monkeypatch.setattr(regions, "MAX_REGIONS", 2)
    register_cuda(server, "a", memory)
    server.triton.SystemSharedMemoryRegister(register("b", system_key), timeout=10)
    code, text = rejection(server.triton.CudaSharedMemoryRegister, region("c", memory))
    assert (code, text) == (
        "FAILED_PRECONDITION",
        "too many shared memory regions (expected at most 2)",
    )


def test_a_tensor_must_be_within_its_region(server, rejection, memory):
    register_cuda(server, "a", memory, 100)
    code, text = rejection(server.triton.ModelInfer, from_memory("FP32", (1, 2), "a", 8, 93))
    assert code == "INVALID_ARGUMENT"
    assert "Invalid offset + byte size for shared memory region: 'a': 93 + 8" in text
    code, text = rejection(server.triton.ModelInfer, from_memory("FP32", (1, 2), "a", 12))
    assert (code, "Expected 8, got 12" in text) == ("INVALID_ARGUMENT", True)
    code, text = rejection(server.triton.ModelInfer, into("a", 31))
    assert (code, "(31 bytes) should be at least 32 bytes" in text) == ("INVALID_ARGUMENT", True)
    assert memory.read(0, 100) == bytes(100)


def test_large_inputs_are_read_into_memory_that_is_used_again(server, memory, cuda_stub):
    """The page-locked memory of one request serves the next one; small inputs need none."""
    register_cuda(server, "a", memory)
    rows = np.arange(32768, dtype=np.float32).reshape(2, -1)
    memory.write(0, rows.tobytes())
    message = from_memory("FP32", rows.shape, "a", rows.nbytes)
    set_region(message.outputs.add(name="echo"), "a", rows.nbytes, rows.nbytes)
    allocations = cuda_stub.host_allocations()
    for _ in range(4):
        server.triton.ModelInfer(message, timeout=10)
        assert memory.read(rows.nbytes, rows.nbytes) == rows.tobytes()
        server.triton.ModelInfer(from_memory("FP32", (2, 4), "a", 32), timeout=10)
    # A request may still hold its memory when the next one begins.
    assert 1 <= cuda_stub.host_allocations() - allocations <= 3


def test_without_page_locked_memory_inputs_are_read_too(
    echoes, driver, memory, cuda_stub, monkeypatch
):
    server = InProcessServer(echoes, BatchPolicy(inline=False), shared_memory=True)
    try:
        register_cuda(server, "a", memory)
        cuda_stub.configure(monkeypatch, devices=2, errors="cuMemHostAlloc=2")
        rows = np.arange(32768, dtype=np.float32).reshape(2, -1)
        memory.write(0, rows.tobytes())
        message = from_memory("FP32", rows.shape, "a", rows.nbytes)
        set_region(message.outputs.add(name="echo"), "a", rows.nbytes, rows.nbytes)
        server.triton.ModelInfer(message, timeout=10)
        assert memory.read(rows.nbytes, rows.nbytes) == rows.tobytes()
    finally:
        server.stop()


@pytest.mark.parametrize(("number", "code"), [(1, "INVALID_ARGUMENT"), (700, "UNAVAILABLE")])
def test_a_copy_that_fails_fails_its_request(
    server, rejection, memory, cuda_stub, monkeypatch, number, code
):
    register_cuda(server, "a", memory)
    cuda_stub.configure(monkeypatch, devices=2, errors=f"cuMemcpyDtoH={number}")
    status, text = rejection(server.triton.ModelInfer, from_memory("FP32", (1, 2), "a", 8))
    assert status == code
    assert text.startswith("shared memory region 'a' cannot be read: CUDA_ERROR_")
    cuda_stub.configure(monkeypatch, devices=2, errors=f"cuStreamSynchronize={number}")
    status, text = rejection(server.triton.ModelInfer, into("a"))
    assert status == code
    assert text.startswith("shared memory region 'a' cannot be written: CUDA_ERROR_")
    cuda_stub.configure(monkeypatch, devices=2)
    server.triton.ModelInfer(into("a"), timeout=10)
    assert memory.read(0, 32) == ROWS.tobytes()


def test_memory_is_given_back_when_the_last_run_that_uses_it_ends(
    echoes, memory, wait_until, rejection
):
    server = InProcessServer(echoes, BatchPolicy(), start_models=False, shared_memory=True)
    try:
        register_cuda(server, "a", memory)
        select = server.open_inference.memory.regions.select
        (opened,) = select("", regions.RegionKind.CUDA, "a").values()
        memory.write(0, ROWS.tobytes())
        message = from_memory("FP32", (2, 4), "a", 32)
        message.model_version = "1"
        set_region(message.outputs.add(name="echo"), "a", 32, 100)
        call = server.triton.ModelInfer.future(message, timeout=30)
        wait_until(lambda: server.count("queue_rows", model="echo_FP32", version="1") == 2)
        unregister_cuda(server)
        assert list(status(server)) == ["a"]
        assert rejection(server.triton.ModelInfer, message)[0] == "NOT_FOUND"
        assert not opened.is_closed
        server.registry.resolve("echo_FP32", 1).start()
        call.result()
        assert opened.is_closed
        assert memory.read(100, 32) == ROWS.tobytes()
        assert not status(server)
        register_cuda(server, "a", memory)
        (opened,) = select("", regions.RegionKind.CUDA, "a").values()
        unregister_cuda(server)
        assert opened.is_closed
    finally:
        server.stop()


def test_the_memory_of_another_caller_cannot_be_registered(echoes, memory, tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS + PREDICT_ONLY)
    options = ListenerOptions(1 << 20, access=Access(tokens))
    server = InProcessServer(echoes, BatchPolicy(), shared_memory=True, options=options)
    a, b = (Caller(server, letter * 20) for letter in "ab")
    try:
        a.call("CudaSharedMemoryRegister", region("r", memory, 100))
        error = b.error_of("CudaSharedMemoryRegister", region("x", memory))
        assert error == ("PERMISSION_DENIED", "the GPU memory of 'x' has regions of another caller")
        assert b.error_of("ModelInfer", into("r"))[0] == "NOT_FOUND"
        b.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
        a.call("CudaSharedMemoryRegister", region("r2", memory))  # its own
        a.call("ModelInfer", into("r"))  # what others may not open stays open
        assert memory.read(0, 32) == ROWS.tobytes()
        a.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
        b.call("CudaSharedMemoryRegister", region("x", memory))
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("errors", "code", "text"),
    [
        ("cuIpcOpenMemHandle=201", "INVALID_ARGUMENT", "its raw_handle cannot be opened"),
        ("cuIpcOpenMemHandle=2", "RESOURCE_EXHAUSTED", "cuda:0"),
        ("cuIpcOpenMemHandle=700,cuMemGetInfo=700", "UNAVAILABLE", "device 0 fails: CUDA_ERROR_I"),
        ("cuMemGetAddressRange=719,cuMemGetInfo=719", "UNAVAILABLE", "device 0 fails: CUDA_ERROR"),
    ],
)
def test_a_device_that_fails_is_not_the_fault_of_the_handle(
    server, rejection, memory, cuda_stub, monkeypatch, errors, code, text
):
    cuda_stub.configure(monkeypatch, devices=2, errors=errors)
    status_code, details = rejection(server.triton.CudaSharedMemoryRegister, region("a", memory))
    assert (status_code, text in details) == (code, True), details


def test_memory_that_is_not_registered_is_closed_before_the_error(
    server, rejection, memory, monkeypatch
):
    """The caller may free it then; errors may live as long as somebody holds them."""
    opened, errors = [], []
    ipc_open = CudaDriver.ipc_open
    check_owner = regions.Regions._check_owner

    def open_memory(self, *arguments):
        opened.append(ipc_open(self, *arguments))
        return opened[-1]

    def check(*arguments):
        try:
            check_owner(*arguments)
            raise PermissionDeniedError("another caller's")
        except PermissionDeniedError as error:
            errors.append(error)
            raise

    monkeypatch.setattr(CudaDriver, "ipc_open", open_memory)
    code, _ = rejection(server.triton.CudaSharedMemoryRegister, region("a", memory, ALLOCATION + 1))
    assert (code, opened[-1].closed) == ("INVALID_ARGUMENT", True)
    monkeypatch.setattr(regions.Regions, "_check_owner", check)
    code, _ = rejection(server.triton.CudaSharedMemoryRegister, region("a", memory))
    assert (code, opened[-1].closed) == ("PERMISSION_DENIED", True)
    assert len(opened) == 2


def test_a_driver_that_hangs_holds_up_no_other_request(
    echoes, driver, memory, cuda_stub, monkeypatch, tmp_path
):
    """Neither those of the model whose output it copies, nor those that use no shared memory."""
    file = tmp_path / "errors"
    file.write_text("")
    cuda_stub.configure(monkeypatch, devices=2, file=file)
    server = InProcessServer(echoes, BatchPolicy(inline=False), shared_memory=True)
    try:
        register_cuda(server, "a", memory)
        file.write_text("cuMemcpyHtoD=hang\n")
        calls = [server.triton.ModelInfer.future(into("a"), timeout=30) for _ in range(3)]
        classes = pb.ModelInferRequest(model_name="echo_FP32")
        tensor = classes.inputs.add(name="x", datatype="FP32", shape=[1, 50_000])
        tensor.contents.fp32_contents.extend([0.0] * 50_000)  # so many are decoded by a worker
        output = classes.outputs.add(name="echo")
        output.parameters["classification"].int64_param = 1
        for message in (request("echo_FP32", x=("FP32", ROWS)), classes):
            assert server.triton.ModelInfer(message, timeout=10).outputs
        assert not any(call.done() for call in calls)
        file.write_text("")
        for call in calls:
            call.result()
        assert memory.read(0, 32) == ROWS.tobytes()
    finally:
        file.write_text("")
        server.stop()


@pytest.mark.parametrize("ends_by", ["response", "cancellation"])
def test_memory_is_closed_by_the_threads_for_the_driver(
    echoes, memory, wait_until, monkeypatch, ends_by
):
    threads = []
    close = DeviceMemory.close

    def note_thread(self):
        threads.append(threading.current_thread().name)
        close(self)

    monkeypatch.setattr(DeviceMemory, "close", note_thread)
    server = InProcessServer(echoes, BatchPolicy(), start_models=False, shared_memory=True)
    try:
        register_cuda(server, "a", memory)
        message = from_memory("FP32", (2, 4), "a", 32)
        message.model_version = "1"
        call = server.triton.ModelInfer.future(message, timeout=30)
        wait_until(lambda: server.count("queue_rows", model="echo_FP32", version="1") == 2)
        unregister_cuda(server)
        assert not threads
        if ends_by == "response":
            server.registry.resolve("echo_FP32", 1).start()
            call.result()
        else:
            call.cancel()
        wait_until(lambda: threads)
        assert all(name.startswith("request-worker") for name in threads)
    finally:
        server.stop()


def test_a_driver_that_does_not_start_is_named(echoes, cuda_stub, monkeypatch, rejection):
    cuda_stub.install(monkeypatch, errors="cuInit=803")
    server = InProcessServer(echoes, BatchPolicy(), shared_memory=True)
    try:
        message = pb.CudaSharedMemoryRegisterRequest(name="a", byte_size=1)
        code, text = rejection(server.triton.CudaSharedMemoryRegister, message)
        assert code == "UNIMPLEMENTED"
        reason = "the NVIDIA driver reports CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"
        assert f"not supported: {reason}" in text
        extensions = server.triton.ServerMetadata(pb.ServerMetadataRequest(), timeout=10).extensions
        assert "cuda_shared_memory" not in extensions
    finally:
        server.stop()
