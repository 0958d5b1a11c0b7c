"""Too little memory, and a device that is lost, on a real GPU.

The device is lost in a process of its own: a kernel that reads outside of its memory destroys the
context of that process only. ONNX Runtime has no such kernel, so one is loaded by the driver.
"""

import subprocess
import sys

import numpy as np
import pytest
from support import onnx_models

from neurona_server.errors import DeviceMemoryError
from neurona_server.models.onnx.cuda_driver import load_driver
from neurona_server.models.onnx.device_probe import DeviceProbe
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session

pytestmark = pytest.mark.usefixtures("cuda")

LIMIT = 64 << 20

LOSE_DEVICE = r'''
import ctypes, sys
from pathlib import Path
import numpy as np
from neurona_server.errors import DeviceLostError
from neurona_server.models.onnx import cuda_driver
from neurona_server.models.onnx.device_probe import probe_device
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session

PTX = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry poison() {
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
\0"""

session = Session(Path(sys.argv[1]), RuntimeOptions(threads=1))
inputs = {"x": np.ones((4, 4), np.float32)}
session.run(inputs)
driver = cuda_driver.load_driver()
assert probe_device(session.device) == "", "the device is said to be lost before it is"
library = ctypes.CDLL(cuda_driver.LIBRARY)
module, function = ctypes.c_void_p(), ctypes.c_void_p()
with driver.context(session.device.number):
    code = library.cuModuleLoadData(ctypes.byref(module), PTX)
    assert code == 0, f"cuModuleLoadData: {code}"
    code = library.cuModuleGetFunction(ctypes.byref(function), module, b"poison")
    assert code == 0, f"cuModuleGetFunction: {code}"
    code = library.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    assert code == 0, f"cuLaunchKernel: {code}"
    print("synchronize:", library.cuCtxSynchronize(), flush=True)
print("probe:", probe_device(session.device), flush=True)
try:
    session.run(inputs)
    print("run: succeeds", flush=True)
except DeviceLostError as error:
    print("run: lost:", error.reason, flush=True)
except Exception as error:
    print("run:", type(error).__name__, error, flush=True)
import os
os._exit(0)
'''


@pytest.fixture
def wide(tmp_path):
    """A model whose runs need 800 kB a row."""
    return onnx_models.save_wide(tmp_path / "model.onnx")


def test_a_run_beyond_the_limit_of_the_memory_is_an_error_and_the_next_one_runs(wide):
    options = RuntimeOptions(threads=1, gpu_memory_bytes=LIMIT)
    session = Session(wide, options)
    assert session.device.kind == "cuda", f"runs on {session.provider}"
    small, large = (np.ones((rows, 1000), np.float32) for rows in (8, 4096))
    expected = session.run({"x": small})[0]
    for _ in range(3):
        with pytest.raises(DeviceMemoryError) as raised:
            session.run({"x": large})
        assert raised.value.device == session.device.label
        assert np.array_equal(session.run({"x": small})[0], expected)


def test_memory_that_is_not_used_is_returned_to_the_device(wide):
    driver = load_driver()
    session = Session(wide, RuntimeOptions(threads=1))
    session.run({"x": np.ones((1, 1000), np.float32)})
    before = driver.memory_info(session.device.number)[0]
    session.run({"x": np.ones((2048, 1000), np.float32)})
    kept = before - driver.memory_info(session.device.number)[0]
    session.free_device_memory()
    still_kept = before - driver.memory_info(session.device.number)[0]
    assert kept > 400 << 20, f"the arena has kept only {kept >> 20} MiB"
    assert still_kept < kept / 4, f"{still_kept >> 20} of {kept >> 20} MiB were not returned"


def test_a_device_that_works_is_not_said_to_be_lost():
    assert DeviceProbe(load_driver()).ask(0) == ""


def test_an_illegal_address_is_recognised_as_a_lost_device(tmp_path):
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", LOSE_DEVICE, path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout + done.stderr[-2000:]
    assert "synchronize: 700" in done.stdout, output
    assert "probe: CUDA_ERROR_ILLEGAL_ADDRESS (700)" in done.stdout, output
    assert "run: lost:" in done.stdout, output
    assert DeviceProbe(load_driver()).ask(0) == "", "the context of another process is lost, too"
