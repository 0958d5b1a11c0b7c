"""The texts are those of onnxruntime-gpu 1.31.1 and its libraries, or reported by users."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support import onnx_models

from neurona_server.errors import DeviceLostError, DeviceMemoryError
from neurona_server.models.onnx.cuda_driver import CudaDriverError
from neurona_server.models.onnx.run_failures import (
    FailureKind,
    classify_failure,
    device_failure,
    is_sticky_code,
)

NODE = "Non-zero status code returned while running Conv node. Name:'{}' Status Message: "
TAIL = " ; GPU=1 ; hostname=a ; file=/onnxruntime_src/x.cc ; line=9 ; expr=cudaFree(p);"

OUT_OF_MEMORY = [
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 64",
    "Available memory of 1024 is smaller than requested bytes of 4096",
    "Failed to find a free memory block despite calling Extend. rounded_bytes=4096",
    "CUDA failure 2: out of memory" + TAIL,
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED" + TAIL,
    "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED" + TAIL,
    "CUFFT failure 2: CUFFT_ALLOC_FAILED" + TAIL,
    "HIP failure 2: out of memory" + TAIL,
    "CudaMempoolArena::Alloc: cudaMallocFromPoolAsync failed: out of memory (2), size=4096",
    "std::bad_alloc",
    "bad allocation",
    "Error Code 2: OutOfMemory (no further information)",
    "[OpenVINO-EP]  Wait Model Failed: Exception from src/inference/src/cpp/infer_request.cpp:245:"
    "\nException from ocl_engine.cpp:185:\n[GPU] out of GPU resources",
    "C:\\DmlCommandRecorder.cpp(371)\\onnxruntime.dll: Exception(1) tid(54) 8007000E Not enough.",
]
LOST = [
    "CUDA failure 700: an illegal memory access was encountered" + TAIL,
    "CUDA failure 214: uncorrectable ECC error encountered" + TAIL,
    "CUDA failure 719: unspecified launch failure" + TAIL,
    "CUDA failure 999: unknown error" + TAIL,
    "CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable" + TAIL,
    "HIP failure 719: unspecified launch failure" + TAIL,
    "Fail to execute fused moe kernel, cuda error 700",
    "CudaMempoolArena::Alloc: cudaMallocFromPoolAsync failed: unspecified launch failure (719), 8",
    "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; an illegal memory access was encountered",
    "C:\\DmlCommandRecorder.cpp(371)\\onnxruntime.dll: Exception(1) tid(54) 887A0006 Unbekannt.",
    "ZE_RESULT_ERROR_DEVICE_LOST",
]
DEVICE_ERROR = [
    "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED" + TAIL,
    "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED" + TAIL,
    "CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED" + TAIL,
    "CUDA failure 1: invalid argument" + TAIL,
    "TensorRT EP execution context enqueue failed.",
]
OTHER = [
    "Exiting due to terminate flag being set to true.",
    "Invalid Feed Input Name:x",
    "The input tensor cannot be reshaped to the requested shape. Input shape:{3}, requested:{2}",
    "GPU memory access is not supported",
]


def failure(text):
    return RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (kind, text)
        for kind, texts in (
            (FailureKind.OUT_OF_MEMORY, OUT_OF_MEMORY),
            (FailureKind.DEVICE_LOST, LOST),
            (FailureKind.DEVICE_ERROR, DEVICE_ERROR),
            (None, OTHER),
        )
        for text in texts
    ],
)
def test_a_message_is_classified_alone_and_as_the_status_of_a_node(kind, text):
    assert classify_failure(failure(text)) is kind
    assert classify_failure(failure(NODE.format("conv") + text)) is kind


def test_the_name_of_a_node_says_nothing_about_the_device():
    name = "CUDA failure 700: an illegal memory access was encountered ;"
    assert classify_failure(failure(NODE.format(name) + OTHER[2])) is None
    name = "' Status Message: out of memory"
    assert classify_failure(failure(NODE.format(name) + OTHER[2])) is None


def test_an_allocation_of_numpy_that_fails_is_out_of_memory():
    with pytest.raises(MemoryError) as raised:
        np.empty((1 << 50, 1 << 10), np.uint8)
    assert classify_failure(raised.value) is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize("text", [*OUT_OF_MEMORY, *DEVICE_ERROR])
def test_the_driver_is_asked_whether_what_looks_like_too_little_memory_is_a_lost_device(text):
    answers = []

    def probe():
        answers.append(text)
        return "CUDA_ERROR_ILLEGAL_ADDRESS (700)"

    error = device_failure(failure(text), "cuda:1", probe)
    assert isinstance(error, DeviceLostError)
    assert str(error) == (
        "device lost: cuda:1 failed while it ran the request (CUDA_ERROR_ILLEGAL_ADDRESS (700))"
    )
    assert answers


def test_the_driver_is_not_asked_if_the_message_leaves_nothing_open():
    def probe():
        raise AssertionError("a driver may hang after such an error")

    for text in LOST:
        error = device_failure(failure(text), "cuda:0", probe)
        assert isinstance(error, DeviceLostError)
        assert error.device == "cuda:0"
        assert "hostname" not in str(error)
    for text in OTHER:
        assert device_failure(failure(text), "cuda:0", probe) is None


def test_on_a_device_that_works_only_too_little_memory_is_its_fault():
    for text in OUT_OF_MEMORY:
        assert isinstance(device_failure(failure(text), "cuda:0", lambda: ""), DeviceMemoryError)
    for text in DEVICE_ERROR:
        assert device_failure(failure(text), "cuda:0", lambda: "") is None


def test_errors_of_the_driver_are_told_apart_by_their_numbers():
    assert classify_failure(CudaDriverError(2, "CUDA_ERROR_OUT_OF_MEMORY")) is (
        FailureKind.OUT_OF_MEMORY
    )
    assert classify_failure(CudaDriverError(201, "CUDA_ERROR_INVALID_CONTEXT")) is (
        FailureKind.DEVICE_ERROR
    )
    error = device_failure(CudaDriverError(719, "CUDA_ERROR_LAUNCH_FAILED"), "cuda:0")
    assert isinstance(error, DeviceLostError)
    assert error.reason == "CUDA_ERROR_LAUNCH_FAILED (719)"


def test_errors_that_spoil_the_process_are_told_from_others():
    assert all(is_sticky_code(code) for code in (46, 100, 214, 700, 719, 999))
    assert not any(is_sticky_code(code) for code in (0, 1, 2, 98, 200, 701, 720, 803))


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the memory on the CPU")
def test_a_model_serves_the_batches_that_the_memory_has_room_for(tmp_path):
    """A row needs 800 kB: in 24 MiB a batch of 64 has no room."""
    path = onnx_models.save_wide(tmp_path / "model.onnx")
    script = """
import json, sys, threading
from pathlib import Path
import numpy as np
from prometheus_client import CollectorRegistry
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Request
from neurona_server.errors import DeviceMemoryError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics

class Waiting(Request):
    def __init__(self, rows):
        self.done = threading.Event()
        x = np.repeat(np.linspace(0, 1, rows, dtype=np.float32)[:, None], 1000, axis=1)
        super().__init__({"x": x}, rows, (1000,))

    def finish(self, outputs, error):
        self.outputs, self.error = outputs, error
        self.done.set()

options = ModelOptions(
    BatchPolicy(max_rows=64), RuntimeOptions(threads=1, cpu_memory_bytes=24 << 20)
)
registry = CollectorRegistry()
model = Model(ModelSource("m", 1, Path(sys.argv[1])), options, Metrics(registry))
result = {"limit": model.batcher.queue.max_batch_rows}
try:
    model.sessions[0].run({"x": np.ones((64, 1000), np.float32)})
except DeviceMemoryError as error:
    result["message"], result["cause"] = str(error), str(error.__cause__)
model.start()
request = Waiting(64)
model.batcher.submit(request)
assert request.done.wait(30)
expected = np.exp(request.inputs["x"][:, 0])
result["error"] = request.error and str(request.error)
result["difference"] = float(np.abs(request.outputs[0][:, 0] - expected).max())
labels = {"model": "m", "version": "1"}
result["failed"] = registry.get_sample_value("neurona_out_of_memory_runs_total", labels)
print(json.dumps(result))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["limit"] < 32
    assert result["message"].startswith("out of memory: cpu has no room for a run of this request")
    assert "is smaller than requested bytes" in result["cause"]
    assert result["error"] is None
    assert result["difference"] < 0.01
    assert result["failed"] >= 1
    assert "batches have at most" in done.stderr
