import ctypes
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.cuda_stub import CudaStub

from neurona_server.models.onnx.cuda_driver import (
    LIBRARY_MISSING,
    CudaDriver,
    CudaDriverError,
    load_driver,
    relax_capture_mode,
)


@pytest.fixture
def driver(cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch) -> CudaDriver:
    cuda_stub.configure(monkeypatch, devices=2, memory=1 << 20)
    return load_driver(str(cuda_stub.path))


def test_a_missing_library_is_an_error_with_its_own_code(tmp_path: Path) -> None:
    with pytest.raises(CudaDriverError, match="library missing") as caught:
        load_driver(str(tmp_path / "libcuda.so.1"))
    assert caught.value.code == LIBRARY_MISSING
    assert caught.value.version is None


def test_a_driver_that_does_not_start_says_why_and_its_version(
    cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stub.configure(monkeypatch, errors="cuInit=803", version=12090)
    with pytest.raises(CudaDriverError) as caught:
        load_driver(str(cuda_stub.path))
    error = caught.value
    assert (error.code, error.name) == (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
    assert (error.function, error.version) == ("cuInit", (12, 9))
    assert "unsupported display driver / cuda driver combination" in str(error)


def test_an_unknown_error_has_its_number(
    cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stub.configure(monkeypatch, errors="cuInit=12345,cuDriverGetVersion=1")
    with pytest.raises(CudaDriverError, match=r"cuInit: CUDA_ERROR \(12345\)") as caught:
        load_driver(str(cuda_stub.path))
    assert caught.value.version is None


def test_devices(driver: CudaDriver) -> None:
    assert driver.version == (13, 0)
    assert driver.device_count() == 2
    device = driver.device(1)
    assert (device.number, device.name, device.total_bytes) == (1, "Stub GPU", 1 << 20)
    assert device.uuid == "GPU-00000000-0000-0000-0000-000000000001"
    assert device.compute_capability == (9, 0)
    with pytest.raises(CudaDriverError, match="CUDA_ERROR_INVALID_DEVICE"):
        driver.device(2)


def test_hidden_and_reordered_devices(
    cuda_stub: CudaStub, driver: CudaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stub.configure(monkeypatch, devices=4, visible="3,1", mig=1)
    uuids = [driver.device(number).uuid for number in range(driver.device_count())]
    assert uuids == [f"MIG-00000000-0000-0000-0000-{number:012}" for number in (3, 1)]
    cuda_stub.configure(monkeypatch, devices=4, visible="")
    with pytest.raises(CudaDriverError, match="CUDA_ERROR_NO_DEVICE"):
        load_driver(str(cuda_stub.path))


def test_memory_is_counted_by_device(driver: CudaDriver) -> None:
    before = driver.memory_info(1)[0]
    memory = driver.device_allocate(1, 1000)
    assert driver.memory_info(1) == (before - 1000, 1 << 20)
    assert driver.memory_info(0)[0] == before
    memory.close()
    memory.close()
    assert driver.memory_info(1)[0] == before
    with pytest.raises(CudaDriverError) as caught:
        driver.device_allocate(1, (1 << 20) + 1)
    assert caught.value.code == 2


def test_copies_reach_their_place_and_stay_inside(driver: CudaDriver) -> None:
    memory = driver.device_allocate(0, 24)
    values = np.arange(6, dtype=np.float32)
    memory.write(0, values)
    driver.copy_on_device(0, memory.address + 16, memory.address, 8)
    result = np.empty((2, 3), np.float32)
    memory.read(0, result)
    assert result.tolist() == [[0, 1, 2], [3, 0, 1]]
    memory.write(20, b"")
    part = bytearray(4)
    memory.read(20, part)
    assert part == np.float32(1).tobytes()
    for offset in (-1, 21):
        with pytest.raises(ValueError, match=f"device memory of 24 bytes has no 4 .* {offset}"):
            memory.read(offset, part)
        with pytest.raises(ValueError, match="of 24 bytes has no 4 bytes at offset"):
            memory.write(offset, part)
    with pytest.raises(ValueError, match="read-only"):
        memory.read(0, b"1234")
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        memory.read(0, part)


def test_page_locked_memory_lives_as_long_as_an_array_over_it(
    driver: CudaDriver, cuda_stub: CudaStub
) -> None:
    gc.collect()
    before = cuda_stub.host_allocations()
    memory = driver.host_allocate(64)
    address = ctypes.addressof(memory)
    array = np.frombuffer(memory, np.float32).reshape(4, 4)
    row = array[1]
    row[:] = 7
    assert array.ctypes.data == address
    del memory, array
    gc.collect()
    assert cuda_stub.host_allocations() == before + 1
    assert row.tolist() == [7] * 4
    del row
    gc.collect()
    assert cuda_stub.host_allocations() == before


def test_memory_of_another_process(driver: CudaDriver, cuda_stub: CudaStub) -> None:
    code = (
        "import sys; from neurona_server.models.onnx.cuda_driver import load_driver\n"
        "driver = load_driver(sys.argv[1]); memory = driver.device_allocate(1, 5)\n"
        "memory.write(0, b'hello'); print(driver.ipc_handle(memory).hex(), flush=True)\n"
        "input(); content = bytearray(5); memory.read(0, content); print(content.decode())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, cuda_stub.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        handle = bytes.fromhex(process.stdout.readline())
        memory = driver.ipc_open(1, handle)
        content = bytearray(5)
        memory.read(0, content)
        assert content == b"hello"
        assert memory.nbytes == 5
        memory.write(0, b"HELL")
        memory.close()
        assert memory.closed
        print(file=process.stdin, flush=True)
        assert process.stdout.read() == "HELLo\n"
    with pytest.raises(CudaDriverError, match="CUDA_ERROR_INVALID_HANDLE"):
        driver.ipc_open(1, handle)  # the process has ended
    with pytest.raises(CudaDriverError, match="CUDA_ERROR_INVALID_HANDLE"):
        driver.ipc_open(1, os.urandom(64))
    with pytest.raises(CudaDriverError, match=r"63 bytes \(expected 64\)"):
        driver.ipc_open(1, bytes(63))


def test_every_thread_gets_its_context(driver: CudaDriver) -> None:
    results: list[tuple[int, int]] = []
    threads = [
        threading.Thread(target=lambda number=number: results.append(driver.memory_info(number)))
        for number in (0, 1) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(1 << 20, 1 << 20)] * 8


def test_a_device_that_hangs_at_its_first_use_holds_up_no_other_one(
    cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "errors"
    file.write_text("cuDevicePrimaryCtxRetain=hang\n")
    cuda_stub.configure(monkeypatch, devices=2, memory=1 << 20, file=file)
    driver = CudaDriver(ctypes.CDLL(str(cuda_stub.path)))
    driver.initialize()
    hung = threading.Thread(target=driver.memory_info, args=(0,), daemon=True)
    hung.start()
    hung.join(0.2)
    assert hung.is_alive()
    cuda_stub.configure(monkeypatch, devices=2, memory=1 << 20)  # of calls from now on
    other = threading.Thread(target=driver.memory_info, args=(1,), daemon=True)
    other.start()
    other.join(10)
    finished = not other.is_alive()
    file.write_text("")
    hung.join(10)
    assert finished
    assert not hung.is_alive()


def test_an_error_inside_a_context_is_the_one_raised(
    driver: CudaDriver, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = driver.device_allocate(0, 8)
    cuda_stub.configure(
        monkeypatch, devices=2, memory=1 << 20, errors="cuMemcpyDtoH=700,cuCtxPopCurrent=700"
    )
    with pytest.raises(CudaDriverError, match="cuMemcpyDtoH: CUDA_ERROR_ILLEGAL_ADDRESS"):
        memory.read(0, bytearray(8))
    cuda_stub.configure(monkeypatch, errors="cuMemFree=700")
    memory.close()  # a lost device's memory is gone; nothing to report
    assert memory.closed


def test_errors_can_come_from_a_file(
    driver: CudaDriver, cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "errors"
    cuda_stub.configure(monkeypatch, file=file)
    driver.synchronize(0)
    file.write_text("cuCtxSynchronize=719\n")
    with pytest.raises(CudaDriverError, match="CUDA_ERROR_LAUNCH_FAILED"):
        driver.synchronize(0)


def test_a_stream_copies_both_ways_and_is_given_back(
    driver: CudaDriver, cuda_stub: CudaStub
) -> None:
    streams = ctypes.CDLL(str(cuda_stub.path)).cuda_stub_streams
    before = streams()
    stream = driver.new_stream(1)
    memory = driver.device_allocate(1, 32)
    first, second = np.arange(4, dtype=np.float32), np.arange(4, dtype=np.int32) * 7
    stream.copy_in([(memory.address, first), (memory.address + 16, second)])
    stream.copy_in([])
    copies = np.empty_like(first), np.empty_like(second)
    stream.copy_out([(copies[0], memory.address), (copies[1], memory.address + 16)])
    np.testing.assert_array_equal(copies[0], first)
    np.testing.assert_array_equal(copies[1], second)
    with pytest.raises(CudaDriverError, match="CUDA_ERROR_INVALID_VALUE"):
        stream.copy_in([(memory.address + 24, first)])
    assert streams() == before + 1
    del stream
    gc.collect()
    assert streams() == before


def test_a_failed_copy_has_ended_when_it_is_raised(
    cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_stub.configure(monkeypatch)
    driver = load_driver(str(cuda_stub.path))
    stream = driver.new_stream(0)
    memory = driver.device_allocate(0, 16)
    cuda_stub.configure(monkeypatch, errors="cuMemcpyDtoHAsync=700,cuStreamSynchronize=719")
    with pytest.raises(CudaDriverError) as caught:
        stream.copy_out([(np.empty(4, np.float32), memory.address)])
    assert caught.value.code == 719
    assert isinstance(caught.value.__context__, CudaDriverError)
    assert caught.value.__context__.code == 700


@pytest.mark.parametrize("way", ["context", "session"])
def test_a_thread_goes_on_beside_captures_of_others(
    cuda_stub: CudaStub, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    cuda_stub.install(monkeypatch)
    driver = load_driver()
    modes: list[int] = []

    def exchange() -> None:
        if way == "context":
            with driver.context(0):
                pass
        else:
            relax_capture_mode()
        mode = ctypes.c_int(0)
        ctypes.CDLL(str(cuda_stub.path)).cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        modes.append(mode.value)

    thread = threading.Thread(target=exchange)
    thread.start()
    thread.join()
    assert modes == [2]  # CU_STREAM_CAPTURE_MODE_RELAXED
