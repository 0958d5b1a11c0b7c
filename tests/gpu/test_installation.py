"""That the driver, the libraries and a device work, and are described as they are."""

import ctypes
import gc
import os
import subprocess
import sys
import threading

import numpy as np
import onnxruntime
import pytest

from neurona_server.models.onnx import gpu_installation, runtime
from neurona_server.models.onnx.cuda_driver import CudaDriver, CudaDriverError, load_driver
from neurona_server.models.onnx.cuda_libraries import (
    cudnn_cuda_major,
    cudnn_version,
    load_libraries,
)
from neurona_server.models.onnx.gpu_facts import cuda_build

pytestmark = pytest.mark.usefixtures("cuda")

REASON = "from neurona_server.models.onnx import runtime; print(runtime.missing_gpu_reason())"
EXPORT = """
from neurona_server.models.onnx.cuda_driver import load_driver
driver = load_driver()
memory = driver.device_allocate(0, 8 << 20)
memory.write(3 << 20, b"hello")
print(driver.ipc_handle(memory).hex(), flush=True)
input()
content = bytearray(5)
memory.read(3 << 20, content)
print(content.decode())
"""


@pytest.fixture(scope="module")
def driver() -> CudaDriver:
    return load_driver()


def reason_with(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", REASON],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


def test_nothing_is_missing() -> None:
    """First of all: the sentence in the failure says what to do."""
    assert runtime.missing_gpu_reason() == ""
    assert runtime.missing_gpu_reason(device=0) == ""
    print(gpu_installation.describe_gpus())


def test_every_library_is_found() -> None:
    build = cuda_build()
    assert build is not None
    assert [library.file for library in load_libraries(build[0])] == []
    assert cudnn_version().startswith("9."), cudnn_version()
    assert cudnn_cuda_major() == build[0]


def test_a_process_of_its_own_finds_the_libraries_too() -> None:
    """Without what other tests have loaded before, as torch."""
    assert reason_with() == ""


def test_hidden_and_unknown_devices_are_explained() -> None:
    assert "CUDA_VISIBLE_DEVICES is '' and hides all" in reason_with(CUDA_VISIBLE_DEVICES="")
    assert "'99', which names no GPU" in reason_with(CUDA_VISIBLE_DEVICES="99")


def test_devices_are_described_as_nvml_describes_them(driver: CudaDriver) -> None:
    count = driver.device_count()
    assert count > 0
    pynvml = pytest.importorskip("pynvml")
    pynvml.nvmlInit()
    for number in range(count):
        device = driver.device(number)
        if device.uuid.startswith("MIG"):
            handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid.encode())
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
            capability = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            assert device.compute_capability == tuple(capability)
        total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        assert device.total_bytes == pytest.approx(total, rel=0.05)


def test_memory_of_a_device_is_counted(driver: CudaDriver) -> None:
    size = 256 << 20
    before, total = driver.memory_info(0)
    assert 0 < before <= total
    memory = driver.device_allocate(0, size)
    assert driver.memory_info(0)[0] <= before - size // 2
    memory.close()
    assert driver.memory_info(0)[0] >= before - size // 2


def test_copies_in_every_direction(driver: CudaDriver) -> None:
    values = np.random.default_rng(1).random(1_000_003, np.float32)
    memory = driver.device_allocate(0, 2 * values.nbytes)
    memory.write(0, values)
    driver.copy_on_device(0, memory.address + values.nbytes, memory.address, values.nbytes)
    result = np.empty_like(values)
    memory.read(values.nbytes, result)
    np.testing.assert_array_equal(result, values)
    memory.write(4, b"")
    memory.read(8, result[:1])
    assert result[0] == values[2]


def test_page_locked_memory(driver: CudaDriver) -> None:
    memory = driver.host_allocate(64 << 20)
    array = np.frombuffer(memory, np.float32)
    assert array.ctypes.data == ctypes.addressof(memory)
    array[:] = np.arange(len(array))
    del memory
    gc.collect()
    on_device = driver.device_allocate(0, array.nbytes)
    on_device.write(0, array)
    result = np.empty_like(array)
    on_device.read(0, result)
    np.testing.assert_array_equal(result, array)


def test_memory_of_another_process(driver: CudaDriver) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", EXPORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        handle = bytes.fromhex(process.stdout.readline())
        memory = driver.ipc_open(0, handle)
        assert memory.nbytes >= 8 << 20
        content = bytearray(5)
        memory.read(3 << 20, content)
        assert content == b"hello"
        memory.write(3 << 20, b"HELL")
        memory.close()
        print(file=process.stdin, flush=True)
        assert process.stdout.read() == "HELLo\n"
    with pytest.raises(CudaDriverError):
        driver.ipc_open(0, os.urandom(64))
    driver.synchronize(0)  # which has done no harm


def test_the_driver_works_beside_a_session_in_several_threads(driver: CudaDriver) -> None:
    """The driver's calls use the context of ONNX Runtime, and leave it as it was."""
    session = onnxruntime.InferenceSession(
        gpu_installation.PROBE_MODEL, providers=["CUDAExecutionProvider"], enable_fallback=0
    )
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    failures: list[BaseException] = []

    def work(seed: float) -> None:
        try:
            memory = driver.device_allocate(0, 4096)
            content = bytearray(4096)
            for _ in range(50):
                memory.write(0, bytes([int(seed)]) * 4096)
                (result,) = session.run(None, {"x": np.array([seed], np.float32)})
                memory.read(0, content)
                assert result.tolist() == [-seed]
                assert content == bytes([int(seed)]) * 4096
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(float(seed),)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_missing_cudnn_has_its_sentence() -> None:
    """The libraries are hidden: the packages' folders, and what the loader's cache has."""
    code = (
        "import ctypes, neurona_server.models.onnx.cuda_libraries as libraries\n"
        "load = ctypes.CDLL\n"
        "def hide(name, *args, **kwargs):\n"
        "    if 'cudnn' in str(name): raise OSError(f'{name}: cannot open shared object file')\n"
        "    return load(name, *args, **kwargs)\n"
        f"ctypes.CDLL = hide\n{REASON}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "libcudnn.so.9 cannot be found (expected cuDNN 9 for CUDA" in done.stdout
    assert "pip install nvidia-cudnn-cu" in done.stdout
