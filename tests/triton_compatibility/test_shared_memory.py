"""L0_shared_memory and L0_cuda_shared_memory: inputs and outputs in regions of the caller."""

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory

import numpy as np
import pytest
from support import triton_models
from support.triton_calls import Slice, expect_error

from neurona_protos import open_inference_pb2 as pb
from neurona_server.models.onnx.cuda_driver import load_driver

pytestmark = pytest.mark.triton("L0_shared_memory")
BAD = "INVALID_ARGUMENT"
SIZE = 64
ROW = np.arange(16, dtype=np.int32).reshape(1, 16)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    triton_models.save_add_sub(root / "simple" / "1" / "model.onnx")
    triton_models.write_config(root / "simple", triton_models.add_sub_config())
    triton_models.save_identities(root / "strings" / "1" / "model.onnx", "BYTES", [["batch", "n"]])
    return root


@pytest.fixture(scope="module")
def all_regions(serve, repository):
    return serve(repository, "--shared-memory", "true").triton


@pytest.fixture
def server(all_regions):
    all_regions.unregister()
    yield all_regions
    all_regions.unregister()


class Region:
    """A region of POSIX shared memory, deleted at the end of the test."""

    def __init__(self, size):
        self.memory = shared_memory.SharedMemory(f"neurona-{uuid.uuid4().hex}", True, size)
        self.key = "/" + self.memory.name.lstrip("/")

    def array(self, count=16, offset=0):
        return np.frombuffer(self.memory.buf, np.int32, count, offset).copy()

    def write(self, array, offset=0):
        data = array.tobytes()
        self.memory.buf[offset : offset + len(data)] = data


@pytest.fixture
def make_region():
    with contextlib.ExitStack() as stack:

        def make(size=SIZE):
            region = Region(size)
            stack.callback(region.memory.unlink)
            stack.callback(region.memory.close)
            return region

        yield make


@pytest.fixture
def four(server, make_region):
    """Four registered regions: both inputs, with data, and both outputs."""
    regions = {}
    for name in ("input0_data", "input1_data", "output0_data", "output1_data"):
        regions[name] = make_region()
        server.register(name, regions[name].key, SIZE)
    regions["input0_data"].write(ROW)
    regions["input1_data"].write(np.ones_like(ROW))
    return regions


def infer(
    server,
    *,
    second=None,
    offset=0,
    size=SIZE,
    outputs=("output0_data", "output1_data"),
    timeout=60,
):
    second = second or Slice("input1_data", SIZE, (1, 16))
    values = {
        "INPUT0": ("INT32", Slice("input0_data", SIZE, (1, 16))),
        "INPUT1": ("INT32", second),
    }
    slices = {f"OUTPUT{i}": Slice(name, size, (1, 16), offset) for i, name in enumerate(outputs)}
    return server.infer("simple", values, slices=slices, timeout=timeout)


def check(regions):
    assert (regions["output0_data"].array() == ROW[0] + 1).all()
    assert (regions["output1_data"].array() == ROW[0] - 1).all()


def test_valid_create_set_register(server, make_region):
    server.register("dummy_data", make_region().key, 8)
    assert server.regions() == ["dummy_data"]


def test_unregister_before_register(server):
    server.unregister("dummy_data")
    assert server.regions() == []


def test_unregister_after_register(server, make_region):
    server.register("dummy_data", make_region().key, 8)
    server.unregister("dummy_data")
    assert server.regions() == []


def test_reregister_after_register(server, make_region):
    region = make_region()
    server.register("dummy_data", region.key, 8)
    expect_error(
        lambda: server.register("dummy_data", region.key, 8),
        "ALREADY_EXISTS",
        "shared memory region 'dummy_data' already in manager",
    )
    assert server.regions() == ["dummy_data"]


def test_unregister_after_inference(server, four):
    infer(server)
    check(four)
    server.unregister("output0_data")
    assert server.regions() == ["input0_data", "input1_data", "output1_data"]


def test_register_after_inference(server, four, make_region):
    infer(server)
    server.register("input2_data", make_region().key, SIZE)
    assert len(server.regions()) == 5


@pytest.mark.triton("L0_shared_memory", cause="error texts")
def test_too_big_shm(server, four, make_region):
    region = make_region(128)
    server.register("input2_data", region.key, 128)
    message = "input byte size mismatch for input 'INPUT1' for model 'simple'. Expected 64, got 128"
    expect_error(lambda: infer(server, second=Slice("input2_data", 128, (1, 16))), BAD, message)


def test_mixed_raw_shm(server, four):
    values = {
        "INPUT0": ("INT32", Slice("input0_data", SIZE, (1, 16))),
        "INPUT1": ("INT32", np.ones_like(ROW)),
    }
    slices = {"OUTPUT0": Slice("output0_data", SIZE, (1, 16))}
    response = server.infer("simple", values, slices=slices, outputs=["OUTPUT0", "OUTPUT1"])
    assert (four["output0_data"].array() == ROW[0] + 1).all()
    assert response.message.raw_output_contents[1] == (ROW - 1).tobytes()


def test_unregisterall(server, four):
    assert len(server.regions()) == 4
    server.unregister()
    assert server.regions() == []


def test_infer_offset_out_of_bound(server, four):
    expect_error(
        lambda: infer(server, offset=SIZE),
        BAD,
        "Invalid offset for shared memory region",
    )


def test_infer_byte_size_out_of_bound(server, four):
    expect_error(lambda: infer(server, offset=8), BAD, "Invalid offset + byte size")


@pytest.mark.parametrize(("size", "offset"), [(SIZE + 1, 0), (SIZE, 1), (1, SIZE), (0, SIZE + 1)])
@pytest.mark.triton("L0_shared_memory", cause="error texts")
def test_register_out_of_bound(server, make_region, size, offset):
    region = make_region(SIZE)
    expect_error(
        lambda: server.register("outside", region.key, size, offset),
        BAD,
        "failed to register shared memory region",
    )
    assert server.regions() == []


@pytest.mark.triton("L0_shared_memory", declared="shared memory")
def test_register_an_unknown_key(server):
    expect_error(
        lambda: server.register("nothing", "/neurona-not-there", 8),
        BAD,  # Triton: INTERNAL
        "Unable to open shared memory region",
    )


def test_status_of_one_region(server, make_region):
    region = make_region()
    server.register("one", region.key, 32, 16)
    request = pb.SystemSharedMemoryStatusRequest(name="one")
    status = server.stub.SystemSharedMemoryStatus(request, timeout=30).regions["one"]
    assert (status.name, status.key, status.offset, status.byte_size) == (
        "one",
        region.key,
        16,
        32,
    )


@pytest.mark.triton("L0_shared_memory", cause="error texts")
def test_status_of_an_unknown_region(server):
    expect_error(
        lambda: server.regions("nothing"),
        "NOT_FOUND",
        "Unable to find system shared memory region: 'nothing'",
    )


@pytest.mark.triton("L0_shared_memory", cause="error texts")
def test_infer_with_an_unknown_region(server, four):
    server.unregister("input1_data")
    expect_error(
        lambda: infer(server),
        "NOT_FOUND",
        "Unable to find shared memory region: 'input1_data'",
    )


def test_output_too_small(server, four):
    expect_error(
        lambda: infer(server, size=32),
        BAD,
        "shared memory size specified with the request for output 'OUTPUT0' (32 bytes) should be "
        "at least 64 bytes to hold the results",
    )


def test_offsets(server, make_region):
    region = make_region(4 * SIZE)
    server.register("all", region.key, 4 * SIZE)
    region.write(ROW)
    region.write(np.ones_like(ROW), SIZE)
    values = {f"INPUT{i}": ("INT32", Slice("all", SIZE, (1, 16), i * SIZE)) for i in range(2)}
    slices = {f"OUTPUT{i}": Slice("all", SIZE, (1, 16), (2 + i) * SIZE) for i in range(2)}
    response = server.infer("simple", values, slices=slices)
    assert (region.array(16, 2 * SIZE) == ROW[0] + 1).all()
    assert (region.array(16, 3 * SIZE) == ROW[0] - 1).all()
    assert [
        o.parameters["shared_memory_region"].string_param for o in response.message.outputs
    ] == ["all"] * 2


def test_strings(server, make_region):
    region = make_region(64)
    content = b"\x01\0\0\0a\x02\0\0\0\xff\xfe"
    region.memory.buf[: len(content)] = content
    server.register("strings", region.key, 64)
    values = {"INPUT0": ("BYTES", Slice("strings", len(content), (1, 2)))}
    slices = {"OUTPUT0": Slice("strings", 32, (1, 2), 32)}
    server.infer("strings", values, slices=slices)
    assert bytes(region.memory.buf[32 : 32 + len(content)]) == content


@pytest.mark.triton("L0_shared_memory", cause="error texts")
def test_names_and_keys_that_are_empty(server, make_region):
    for name, key in (("", make_region().key), ("x", "")):
        expect_error(lambda n=name, k=key: server.register(n, k, 8), BAD, "", "")


@pytest.mark.slow
@pytest.mark.triton("L0_shared_memory", cause="shared memory that is off")
def test_status_while_it_is_off(serve, repository):
    triton = serve(repository).triton
    assert triton.regions() == []


@pytest.mark.triton("L0_cuda_shared_memory", declared="CUDA shared memory")
def test_cuda_regions(server):
    request = pb.CudaSharedMemoryRegisterRequest(name="x", byte_size=8)
    expect_error(
        lambda: server.stub.CudaSharedMemoryRegister(request, timeout=30), "UNIMPLEMENTED", "CUDA"
    )


@pytest.mark.slow
@pytest.mark.triton("L0_cuda_shared_memory")
def test_inputs_and_outputs_in_the_memory_of_a_device(start, repository, cuda_stub, tmp_path):
    """With a stand-in for the driver, whose memory another process opens by its handle."""
    failures = tmp_path / "failures"
    failures.write_text("")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in cuda_stub.environment(devices=1, file=failures).items():
            monkeypatch.setenv(name, value)
        # The models stay on the CPU.
        server = start("--shared-memory", "true", "--providers", "cpu", root=repository)
        cuda_stub.install(monkeypatch, devices=1)
        driver = load_driver()
        regions = {}
        for name in ("input0_data", "input1_data", "output0_data", "output1_data"):
            regions[name] = driver.device_allocate(0, SIZE)
            request = pb.CudaSharedMemoryRegisterRequest(
                name=name, raw_handle=driver.ipc_handle(regions[name]), byte_size=SIZE
            )
            server.triton.stub.CudaSharedMemoryRegister(request, timeout=30)
        regions["input0_data"].write(0, ROW)
        regions["input1_data"].write(0, np.ones_like(ROW))
        infer(server.triton)
        outputs = []
        for name in ("output0_data", "output1_data"):
            content = np.empty(16, np.int32)
            regions[name].read(0, content)
            outputs.append(content.tolist())
        assert outputs == [(ROW[0] + 1).tolist(), (ROW[0] - 1).tolist()]
        # A device that no longer answers stops none of the other requests.
        failures.write_text("cuMemcpyDtoH=hang")
        with ThreadPoolExecutor(4) as threads:
            hung = [threads.submit(infer, server.triton, timeout=1) for _ in range(4)]
            values = {f"INPUT{i}": ("INT32", ROW) for i in range(2)}
            answer = server.triton.infer("simple", values, timeout=10).arrays["OUTPUT0"]
            assert answer.tolist() == (2 * ROW).tolist()
            for one in hung:
                expect_error(one.result, "DEADLINE_EXCEEDED", "")
        assert server.triton.stub.ServerLive(pb.ServerLiveRequest(), timeout=10).live
        for memory in regions.values():
            memory.close()


@pytest.mark.triton("L0_cuda_shared_memory")
def test_status_of_cuda_regions(server):
    request = pb.CudaSharedMemoryStatusRequest()
    assert not server.stub.CudaSharedMemoryStatus(request, timeout=30).regions
    server.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest(), timeout=30)
