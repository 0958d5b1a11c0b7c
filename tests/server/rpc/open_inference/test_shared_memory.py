import contextlib
import os
import uuid

import grpc
import numpy as np
import pytest
from support.in_process_server import InProcessServer
from support.shared_memory import (
    PREDICT_ONLY,
    TOKENS,
    Caller,
    from_memory,
    read_memory,
    register,
    set_region,
    token_entry,
    unregister,
    write_memory,
)
from support.triton_requests import DTYPES, arrays, raw, request

from neurona_protos import open_inference_pb2 as pb
from neurona_server.batching.policy import BatchPolicy
from neurona_server.models.onnx.gpu_facts import has_cuda_driver
from neurona_server.rpc.open_inference.regions import MAX_REGIONS, MAX_REGIONS_OF_TOKEN
from neurona_server.rpc.open_inference.shared_memory import FOLDER
from neurona_server.rpc.security import reloaded_files
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.transports.listener import ListenerOptions

pytestmark = pytest.mark.skipif(not os.path.isdir(FOLDER), reason=f"no {FOLDER} here")
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def key():
    """The name of a memory object of 4096 bytes."""
    name = f"neurona-test-{uuid.uuid4().hex}"
    path = os.path.join(FOLDER, name)
    with open(path, "wb") as file:
        file.truncate(4096)
    yield name
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@pytest.fixture
def shared(echo_server):
    """A server that has no regions registered, before and after the test."""
    yield echo_server
    echo_server.triton.SystemSharedMemoryUnregister(unregister(""), timeout=10)


def status(server, name=""):
    message = pb.SystemSharedMemoryStatusRequest(name=name)
    return server.triton.SystemSharedMemoryStatus(message, timeout=10).regions


def test_a_region_is_registered_listed_and_unregistered(shared, key):
    shared.triton.SystemSharedMemoryRegister(register("a", key, 100, 20), timeout=10)
    shared.triton.SystemSharedMemoryRegister(register("b", "/" + key), timeout=10)
    assert sorted(status(shared)) == ["a", "b"]
    (region,) = status(shared, "a").values()
    assert (region.name, region.key, region.offset, region.byte_size) == ("a", key, 20, 100)
    shared.triton.SystemSharedMemoryUnregister(unregister("a"), timeout=10)
    assert list(status(shared)) == ["b"]
    shared.triton.SystemSharedMemoryUnregister(unregister(""), timeout=10)
    assert not status(shared)
    shared.triton.SystemSharedMemoryUnregister(unregister("never there"), timeout=10)


@pytest.mark.parametrize("kind", [*DTYPES, "BYTES"])
def test_every_datatype_from_and_to_shared_memory(shared, key, kind):
    if kind == "BYTES":
        array = np.array([[b"one", b"two!"]], object)
    else:
        array = np.arange(4).reshape(1, 4).astype(DTYPES[kind])
    data = raw(array)
    write_memory(key, 100, data)
    shared.triton.SystemSharedMemoryRegister(register("in", key, 1000, 96), timeout=10)
    shared.triton.SystemSharedMemoryRegister(register("out", key, 1000, 2000), timeout=10)
    message = from_memory(kind, array.shape, "in", len(data), offset=4)
    set_region(message.outputs.add(name="echo"), "out", 500, 8)
    response = shared.triton.ModelInfer(message, timeout=10)
    assert read_memory(key, 2008, len(data)) == data
    (tensor,) = response.outputs
    assert (tensor.datatype, tuple(tensor.shape)) == (kind, array.shape)
    assert tensor.parameters["shared_memory_region"].string_param == "out"
    assert tensor.parameters["shared_memory_offset"].int64_param == 8
    assert tensor.parameters["shared_memory_byte_size"].int64_param == len(data)
    assert list(response.raw_output_contents) == [b""]


def test_raw_contents_are_for_inputs_that_are_not_in_shared_memory(shared, key):
    shared.triton.SystemSharedMemoryRegister(register("in", key), timeout=10)
    write_memory(key, 0, np.array([1, 2], np.float32).tobytes())
    message = pb.ModelInferRequest(model_name="adjustable")
    set_region(message.inputs.add(name="x", datatype="FP32", shape=[1, 2]), "in", 8)
    message.inputs.add(name="scale", datatype="FP32", shape=[1])
    message.raw_input_contents.append(np.array([10], np.float32).tobytes())
    assert arrays(shared.triton.ModelInfer(message, timeout=10))["y"].tolist() == [[10, 20]]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (register("", "{key}"), "the region's name is ''"),
        (register("a\n", "{key}"), "the region's name is 'a\\\\n'"),
        (register("a", ""), "the region's key is ''"),
        (register("a", "/"), "the region's key is '/'"),
        (register("a", ".."), "the region's key is '..'"),
        (register("a", "."), "the region's key is '.'"),
        (register("a", "../shm/{key}"), "expected the name of a memory object"),
        (register("a", "//{key}"), "expected the name of a memory object"),
        (register("a", "sub/{key}"), "expected the name of a memory object"),
        (register("a", "{key}\0"), "expected the name of a memory object"),
        (register("a", "x" * 300), "expected the name of a memory object"),
        (register("a", "not-there-at-all"), "Unable to open shared memory region: 'not-there-at-a"),
        (register("a", "{key}", 0), "it has 0 bytes"),
        (
            register("a", "{key}", 4097),
            "expected at most 4096, the size of the memory object '{key}'",
        ),
        (register("a", "{key}", 1, 4096), "ends at byte 4097 (expected at most 4096"),
        (register("a", "{key}", 2**64 - 1, 2**64 - 1), "expected at most 4096"),
        (register("a", "{key}", 2, 2**64 - 1), "expected at most 4096"),
    ],
)
def test_invalid_regions_are_not_registered(shared, rejection, key, message, text):
    named = pb.SystemSharedMemoryRegisterRequest()
    named.CopyFrom(message)
    named.key = message.key.replace("{key}", key)
    code, details = rejection(shared.triton.SystemSharedMemoryRegister, named)
    assert code == "INVALID_ARGUMENT"
    assert text.replace("{key}", key).replace("\\\\", "\\") in details
    assert FOLDER not in details
    assert not status(shared)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_memory_objects_are_opened(shared, rejection, kind):
    name = f"neurona-test-{uuid.uuid4().hex}"
    path = os.path.join(FOLDER, name)
    {
        "link": lambda: os.symlink(os.path.abspath(__file__), path),
        "folder": lambda: os.mkdir(path),
        "pipe": lambda: os.mkfifo(path),
    }[kind]()
    try:
        code, details = rejection(shared.triton.SystemSharedMemoryRegister, register("a", name, 1))
    finally:
        os.rmdir(path) if kind == "folder" else os.unlink(path)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("Unable to open shared memory region")


def test_a_name_is_registered_once(shared, rejection, key):
    shared.triton.SystemSharedMemoryRegister(register("a", key), timeout=10)
    error = rejection(shared.triton.SystemSharedMemoryRegister, register("a", key))
    assert error == ("ALREADY_EXISTS", "shared memory region 'a' already in manager")
    message = pb.SystemSharedMemoryStatusRequest(name="b")
    code, text = rejection(shared.triton.SystemSharedMemoryStatus, message)
    assert (code, text) == ("NOT_FOUND", "Unable to find system shared memory region: 'b'")


def test_the_number_of_regions_is_limited(shared, rejection, key):
    for number in range(MAX_REGIONS):
        shared.triton.SystemSharedMemoryRegister(register(str(number), key), timeout=10)
    code, _ = rejection(shared.triton.SystemSharedMemoryRegister, register("more", key))
    assert code == "FAILED_PRECONDITION"
    shared.triton.SystemSharedMemoryUnregister(unregister("7"), timeout=10)
    shared.triton.SystemSharedMemoryRegister(register("more", key), timeout=10)


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (from_memory("FP32", (1, 2), "b", 8), "NOT_FOUND", "Unable to find shared memory region"),
        (
            from_memory("FP32", (1, 2), "a", 8, 93),
            "INVALID_ARGUMENT",
            "Invalid offset + byte size for shared memory region: 'a': 93 + 8 (expected at most 10",
        ),
        (
            from_memory("FP32", (1, 2), "a", 2**63 - 1, 2**63 - 1),
            "INVALID_ARGUMENT",
            "Invalid offset for shared memory region: 'a'",
        ),
        (from_memory("FP32", (1, 2), "a", 8, -1), "INVALID_ARGUMENT", "'shared_memory_offset' is"),
        (from_memory("FP32", (1, 2), "a", -8), "INVALID_ARGUMENT", "'shared_memory_byte_size' is"),
        (
            from_memory("FP32", (1, 2), "a", 12),
            "INVALID_ARGUMENT",
            "input byte size mismatch for input 'x' for model 'echo_FP32'. Expected 8, got 12",
        ),
        (from_memory("BYTES", (1, 2), "a", 5), "INVALID_ARGUMENT", "too few for 2 strings"),
    ],
)
def test_a_tensor_must_be_within_its_region(shared, rejection, key, message, code, text):
    shared.triton.SystemSharedMemoryRegister(register("a", key, 100), timeout=10)
    status, details = rejection(shared.triton.ModelInfer, message)
    assert status == code
    assert text in details


def test_incomplete_parameters_are_rejected(shared, rejection, key):
    shared.triton.SystemSharedMemoryRegister(register("a", key, 100), timeout=10)
    message = from_memory("FP32", (1, 2), "a", 8)
    del message.inputs[0].parameters["shared_memory_byte_size"]
    assert "without 'shared_memory_byte_size'" in rejection(shared.triton.ModelInfer, message)[1]
    message = from_memory("FP32", (1, 2), "a", 8)
    message.inputs[0].parameters["shared_memory_region"].int64_param = 1
    assert "expected string_param" in rejection(shared.triton.ModelInfer, message)[1]
    message = from_memory("FP32", (1, 2), "a", 8)
    message.inputs[0].contents.fp32_contents.append(1)
    _, details = rejection(shared.triton.ModelInfer, message)
    assert details == "input 'x' has both contents and a shared memory region"


def test_an_output_that_does_not_fit_is_not_written(shared, rejection, key):
    shared.triton.SystemSharedMemoryRegister(register("a", key, 100), timeout=10)
    write_memory(key, 0, b"\xff" * 100)
    message = request("echo_FP32", x=("FP32", ROWS))
    set_region(message.outputs.add(name="echo"), "a", 31)
    code, text = rejection(shared.triton.ModelInfer, message)
    assert code == "INVALID_ARGUMENT"
    assert "output 'echo' (31 bytes) should be at least 32 bytes to hold the results" in text
    assert read_memory(key, 0, 100) == b"\xff" * 100


def test_shortened_memory_is_an_error(shared, rejection, key):
    """If the server had mapped the memory, the kernel would kill it here."""
    shared.triton.SystemSharedMemoryRegister(register("a", key), timeout=10)
    os.truncate(os.path.join(FOLDER, key), 10)
    error = rejection(shared.triton.ModelInfer, from_memory("FP32", (1, 4), "a", 16))
    assert error == ("INVALID_ARGUMENT", "shared memory region 'a' was shortened")
    message = request("echo_FP32", x=("FP32", ROWS))
    set_region(message.outputs.add(name="echo"), "a", 32)
    assert (
        rejection(shared.triton.ModelInfer, message)[1] == "shared memory region 'a' was shortened"
    )


def test_a_region_is_listed_until_the_last_run_that_uses_it_ends(
    echoes, key, wait_until, rejection
):
    server = InProcessServer(echoes, BatchPolicy(), start_models=False, shared_memory=True)
    try:
        server.triton.SystemSharedMemoryRegister(register("a", key), timeout=10)
        write_memory(key, 0, ROWS.tobytes())
        message = from_memory("FP32", (2, 4), "a", 32)
        message.model_version = "1"
        set_region(message.outputs.add(name="echo"), "a", 32, 100)
        call = server.triton.ModelInfer.future(message, timeout=30)
        wait_until(lambda: server.count("queue_rows", model="echo_FP32", version="1") == 2)
        server.triton.SystemSharedMemoryUnregister(unregister(""), timeout=10)
        assert [*status(server)] == [*status(server, "a")] == ["a"]  # the server may write to it
        assert rejection(server.triton.ModelInfer, message)[0] == "NOT_FOUND"
        write_memory(key, 0, b"\0" * 32)  # the caller reuses its memory
        server.registry.resolve("echo_FP32", 1).start()
        call.result()
        assert read_memory(key, 100, 32) == ROWS.tobytes()
        assert not status(server)
    finally:
        server.stop()


@pytest.mark.parametrize("ending", ["cancelled", "failed"])
def test_a_request_without_a_response_releases_its_regions(
    echoes, key, wait_until, rejection, ending
):
    server = InProcessServer(echoes, BatchPolicy(), start_models=False, shared_memory=True)
    try:
        for name in ("in", "other"):
            server.triton.SystemSharedMemoryRegister(register(name, key), timeout=10)
        message = from_memory("FP32", (2, 4), "in", 32 if ending == "cancelled" else 31)
        message.model_version = "1"
        if ending == "failed":
            assert rejection(server.triton.ModelInfer, message)[0] == "INVALID_ARGUMENT"
        else:
            call = server.triton.ModelInfer.future(message, timeout=30)
            wait_until(lambda: server.count("queue_rows", model="echo_FP32", version="1") == 2)
            server.triton.SystemSharedMemoryUnregister(unregister("in"), timeout=10)
            assert sorted(status(server)) == ["in", "other"]
            # The name is free, and the listed region is the newer one.
            server.triton.SystemSharedMemoryRegister(register("in", key, 16), timeout=10)
            assert status(server)["in"].byte_size == 16
            call.cancel()
        server.triton.SystemSharedMemoryUnregister(unregister("in"), timeout=10)
        wait_until(lambda: [*status(server)] == ["other"])
    finally:
        server.stop()


def test_no_more_is_read_than_the_queue_may_hold(echoes, key, rejection):
    server = InProcessServer(echoes, BatchPolicy(max_queue_bytes=1000), shared_memory=True)
    try:
        server.triton.SystemSharedMemoryRegister(register("a", key), timeout=10)
        message = from_memory("BYTES", (1, 1), "a", 1001)
        code, text = rejection(server.triton.ModelInfer, message)
        assert code == "INVALID_ARGUMENT"
        assert "1001 bytes or more (expected at most 1000" in text
    finally:
        server.stop()


def test_strings_in_shared_memory_count_by_their_bytes(echoes, key, wait_until):
    """NumPy counts 8 bytes for a string of any length."""
    server = InProcessServer(echoes, BatchPolicy(), start_models=False, shared_memory=True)
    try:
        server.triton.SystemSharedMemoryRegister(register("a", key), timeout=10)
        write_memory(key, 0, raw(np.array([b"x" * 3996], object)))
        message = from_memory("BYTES", (1, 1), "a", 4000)
        message.model_version = "1"
        call = server.triton.ModelInfer.future(message, timeout=30)
        queue = server.registry.resolve("echo_BYTES", 1).batcher.queue
        wait_until(lambda: queue.rows == 1)
        assert f"1 rows, {message.ByteSize() + 4000} bytes" in repr(queue)
        call.cancel()
    finally:
        server.stop()


def test_shared_memory_is_off_by_default(server, rejection):
    cuda = pb.CudaSharedMemoryRegisterRequest(name="a")
    for method, message in (
        (server.triton.SystemSharedMemoryRegister, register("a", "b")),
        (server.triton.CudaSharedMemoryRegister, cuda),
    ):
        code, text = rejection(method, message)
        assert code == "FAILED_PRECONDITION"
        assert "the server's option shared_memory enables it" in text


def test_there_are_no_regions_where_shared_memory_is_off(server, rejection):
    assert not status(server)
    for name in ("", "a"):  # as perf_analyzer does before it begins
        server.triton.SystemSharedMemoryUnregister(unregister(name), timeout=10)
        cuda = pb.CudaSharedMemoryUnregisterRequest(name=name)
        server.triton.CudaSharedMemoryUnregister(cuda, timeout=10)
    message = pb.SystemSharedMemoryStatusRequest(name="a")
    error = rejection(server.triton.SystemSharedMemoryStatus, message)
    assert error == ("NOT_FOUND", "Unable to find system shared memory region: 'a'")


def test_tensors_in_shared_memory_are_rejected_if_it_is_off(server, rejection):
    message = pb.ModelInferRequest(model_name="classifier")
    set_region(message.inputs.add(name="x", datatype="FP32", shape=[1, 4]), "a", 16)
    assert rejection(server.triton.ModelInfer, message)[0] == "FAILED_PRECONDITION"
    message = request("classifier", x=("FP32", ROWS))
    set_region(message.outputs.add(name="probabilities"), "a", 16)
    assert rejection(server.triton.ModelInfer, message)[0] == "FAILED_PRECONDITION"


@pytest.mark.skipif(has_cuda_driver(), reason="there is a driver")
def test_there_is_no_cuda_memory_without_a_driver(echo_server, rejection):
    message = pb.CudaSharedMemoryRegisterRequest(name="a")
    code, text = rejection(echo_server.triton.CudaSharedMemoryRegister, message)
    assert code == "UNIMPLEMENTED"
    assert text.startswith("CUDA shared memory is not supported: this machine has no NVIDIA driver")


def test_there_is_no_cuda_memory(echo_server, rejection):
    message = pb.CudaSharedMemoryStatusRequest()
    assert not echo_server.triton.CudaSharedMemoryStatus(message, timeout=10).regions
    message.name = "a"
    error = rejection(echo_server.triton.CudaSharedMemoryStatus, message)
    assert error == ("NOT_FOUND", "Unable to find cuda shared memory region: 'a'")


def test_there_is_no_cuda_memory_to_unregister(echo_server):
    message = pb.CudaSharedMemoryUnregisterRequest()
    assert echo_server.triton.CudaSharedMemoryUnregister(message, timeout=10) is not None


def test_files_are_closed_when_no_longer_used(shared, key, wait_until):
    def open_files():
        target = os.path.join(FOLDER, key)
        links = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
        return sum(os.path.exists(link) and os.readlink(link) == target for link in links)

    shared.triton.SystemSharedMemoryRegister(register("a", key), timeout=10)
    assert open_files() == 1
    write_memory(key, 0, ROWS.tobytes())
    shared.triton.ModelInfer(from_memory("FP32", (2, 4), "a", 32), timeout=10)
    shared.triton.SystemSharedMemoryUnregister(unregister("a"), timeout=10)
    # The thread of the run may still hold the request, whose response was sent before its end.
    wait_until(lambda: open_files() == 0)


@pytest.fixture
def tokens_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reloaded_files, "CHECK_INTERVAL", 0.02)
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS + PREDICT_ONLY)
    return path


@pytest.fixture
def callers(echoes, tokens_file):
    """Callers with the tokens a and b, which may register, and c, which may predict only."""
    options = ListenerOptions(1 << 20, access=Access(tokens_file))
    server = InProcessServer(echoes, BatchPolicy(), shared_memory=True, options=options)
    yield [Caller(server, letter * 20) for letter in "abc"]
    server.stop()


def into(region, size=32):
    message = request("echo_FP32", x=("FP32", ROWS))
    set_region(message.outputs.add(name="echo"), region, size)
    return message


def test_regions_are_used_only_by_the_caller_that_registered_them(callers, key):
    a, b, c = callers
    a.register("r", key)
    write_memory(key, 0, b"\xff" * 64)
    for other in (b, c):
        for message in (into("r"), from_memory("FP32", (2, 4), "r", 32)):
            error = other.error_of("ModelInfer", message)
            assert error == ("NOT_FOUND", "Unable to find shared memory region: 'r'")
    assert read_memory(key, 0, 64) == b"\xff" * 64
    a.call("ModelInfer", into("r"))
    assert read_memory(key, 0, 32) == ROWS.tobytes()


def test_regions_are_seen_and_unregistered_only_by_the_caller_that_registered_them(callers, key):
    a, b, _ = callers
    a.register("r", key)
    assert b.status() == []
    request = pb.SystemSharedMemoryStatusRequest(name="r")
    code, text = b.error_of("SystemSharedMemoryStatus", request)
    assert (code, text) == ("NOT_FOUND", "Unable to find system shared memory region: 'r'")
    b.unregister("r")
    b.unregister("")
    assert a.status() == ["r"]
    a.unregister("")
    assert a.status() == []


def test_callers_have_names_of_their_own(callers, key):
    a, b, _ = callers
    other_key = f"{key}-2"
    with open(os.path.join(FOLDER, other_key), "wb") as file:
        file.truncate(4096)
    try:
        a.register("r", key)
        b.register("r", other_key)
        b.call("ModelInfer", into("r"))
        assert read_memory(key, 0, 32) == bytes(32)
        assert read_memory(other_key, 0, 32) == ROWS.tobytes()
        b.unregister("r")
        a.call("ModelInfer", into("r"))
        assert read_memory(key, 0, 32) == ROWS.tobytes()
    finally:
        os.unlink(os.path.join(FOLDER, other_key))


def test_the_memory_of_another_caller_cannot_be_registered(callers, key):
    a, b, _ = callers
    a.register("r", key, 100)
    link = os.path.join(FOLDER, f"{key}-link")
    os.link(os.path.join(FOLDER, key), link)
    try:
        for other in (key, f"/{key}", f"{key}-link"):
            code, text = b.error_of("SystemSharedMemoryRegister", register("x", other, 50, 200))
            assert code == "PERMISSION_DENIED"
            assert text == f"the memory object '{other}' has regions of another caller"
    finally:
        os.unlink(link)
    a.register("r2", key)  # its own
    a.unregister("")
    b.register("x", key)
    assert b.status() == ["x"]


def test_one_token_cannot_use_all_regions(callers, key):
    a, b, _ = callers
    for number in range(MAX_REGIONS_OF_TOKEN):
        a.register(str(number), key)
    code, text = a.error_of("SystemSharedMemoryRegister", register("more", key))
    assert code == "FAILED_PRECONDITION"
    assert "too many shared memory regions of the token (expected at most 256)" in text
    with open(os.path.join(FOLDER, f"{key}-2"), "wb") as file:
        file.truncate(4096)
    try:
        b.register("r", f"{key}-2")
    finally:
        os.unlink(os.path.join(FOLDER, f"{key}-2"))
    a.unregister("7")
    a.register("more", key)


def test_a_replaced_token_of_the_same_name_keeps_its_regions(callers, tokens_file, key, wait_until):
    a, b, _ = callers
    a.register("r", key)
    tokens_file.write_text(token_entry("a", "n" * 20, "predict", "control") + PREDICT_ONLY)
    new = Caller(a.server, "n" * 20)

    def is_replaced():
        try:
            return new.status() == ["r"]
        except grpc.RpcError:
            return False

    wait_until(is_replaced)
    assert b.error_of("ModelInfer", into("r"))[0] == "UNAUTHENTICATED"
    new.call("ModelInfer", into("r"))
    assert read_memory(key, 0, 32) == ROWS.tobytes()
