import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from support import onnx_models
from support.cuda_stub import CudaStub
from support.server_process import ServerProcess, run_neurona_serve

from neurona_protos.prediction_pb2 import ListModelsRequest
from neurona_protos.prediction_pb2_grpc import ModelsStub
from neurona_server.models.onnx import gpu_installation
from neurona_server.models.onnx.cuda_driver import LIBRARY_MISSING, CudaDevice, CudaDriverError
from neurona_server.models.onnx.cuda_libraries import cuda_libraries
from neurona_server.models.onnx.gpu_facts import InstallationFacts, gather_facts
from neurona_server.models.onnx.gpu_installation import (
    PROBE_MODEL,
    RECHECK_SECONDS,
    InstallationCheck,
    explain_build,
    explain_device,
    explain_facts,
    explain_failure,
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DEVICE = CudaDevice(0, "NVIDIA H200", "GPU-1", 141 << 30, (9, 0))
WORKING = InstallationFacts(
    driver_version=(13, 0),
    devices=(DEVICE,),
    cuda_build=(13, 0),
    cudnn_cuda_major=13,
    kernel_module="580.82.07",
    driver_library="580.82.07",
    hardware=True,
    device_files=True,
)
NO_LIBRARY = CudaDriverError(
    LIBRARY_MISSING,
    "library missing",
    "libcuda.so.1: cannot open shared object file: No such file or directory",
    "libcuda.so.1",
)
EMPTY = InstallationFacts(driver_error=NO_LIBRARY, cuda_build=(13, 0))
LIBRARIES = {library.file: library for library in cuda_libraries(13)}
RUNTIME = f"onnxruntime-gpu {onnxruntime.__version__}"


def failing(code: int, detail: str = "detail") -> InstallationFacts:
    return replace(WORKING, driver_error=CudaDriverError(code, "CUDA_ERROR", detail), devices=())


def without(*files: str) -> InstallationFacts:
    return replace(WORKING, missing_libraries=tuple(LIBRARIES[file] for file in files))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (WORKING, ""),
        (EMPTY, "this machine has no NVIDIA driver (libcuda.so.1 cannot be loaded)"),
        (
            replace(EMPTY, hardware=True),
            "this machine has an NVIDIA GPU but no driver (expected NVIDIA driver 580 or newer)",
        ),
        (
            replace(EMPTY, kernel_module="580.82.07"),
            "library libcuda.so.1 cannot be loaded, although its kernel module 580.82.07 is",
        ),
        (
            replace(EMPTY, container=True, kernel_module="580.82.07"),
            "this container was started without the machine's GPU (expected docker run --gpus all",
        ),
        (
            replace(EMPTY, container=True, device_files=True),
            "(expected NVIDIA_DRIVER_CAPABILITIES=compute,utility when it is started)",
        ),
        (
            replace(
                EMPTY,
                driver_error=CudaDriverError(
                    LIBRARY_MISSING, "", "/lib/libcuda.so.1: file too short"
                ),
            ),
            "the NVIDIA driver's library cannot be loaded: /lib/libcuda.so.1: file too short",
        ),
        (
            replace(failing(100), visible_devices=""),
            "CUDA_VISIBLE_DEVICES is '' and hides all GPUs (expected it unset, or numbers",
        ),
        (
            replace(failing(100), visible_devices="GPU-7"),
            "CUDA_VISIBLE_DEVICES is 'GPU-7', which names no GPU that this process has",
        ),
        (
            replace(failing(100), container=True, device_files=False),
            "this container was started without a GPU: it has no /dev/nvidia0 (expected docker run",
        ),
        (
            replace(failing(100), device_files=False),
            "this process sees no /dev/nvidia0, although the machine has an NVIDIA GPU",
        ),
        (
            replace(failing(100), hardware=False, device_files=False),
            "this machine has an NVIDIA driver but no GPU",
        ),
        (failing(100), "the NVIDIA driver finds no GPU that works (expected nvidia-smi -L to list"),
        (
            replace(failing(803), driver_library="580.95.05"),
            "library 580.95.05 does not fit the kernel module 580.82.07: it was updated (exp",
        ),
        (failing(802), "(expected the service nvidia-fabricmanager, of the driver's version, to"),
        (failing(804), "compatibility library (cuda-compat) does not support this GPU"),
        (failing(34), "libcuda.so.1 is the CUDA toolkit's stub, not the driver"),
        (
            failing(999, "unknown error"),
            "the NVIDIA driver does not start: unknown error (expected",
        ),
        (
            failing(304, "OS call failed"),
            "OS call failed (expected read and write access to /dev/nv",
        ),
        (failing(7, "no idea"), "CUDA could not be started: no idea (CUDA error 7)"),
        (
            replace(WORKING, driver_version=(12, 9), kernel_module="575.57.08"),
            f"the NVIDIA driver 575.57.08 supports CUDA 12.9, and {RUNTIME} needs CUDA 13.0 "
            "(expected NVIDIA driver 580 or newer)",
        ),
        (replace(WORKING, driver_version=(12, 9), cuda_build=(12, 8), cudnn_cuda_major=12), ""),
        (replace(WORKING, driver_version=(13, 0), cuda_build=(13, 2)), ""),  # one major version
        (
            replace(WORKING, devices=(replace(DEVICE, name="V100", compute_capability=(7, 0)),)),
            "V100 is too old: it has compute capability 7.0 (expected 7.5 or newer, as CUDA 13",
        ),
        (replace(WORKING, devices=(replace(DEVICE, compute_capability=(7, 0)), DEVICE)), ""),
        (
            without("libcudnn.so.9"),
            "libcudnn.so.9 cannot be found (expected cuDNN 9 for CUDA 13: pip install "
            "nvidia-cudnn-cu13)",
        ),
        (
            without("libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9"),
            "libcublasLt.so.13, libcublas.so.13 and libcudnn.so.9 cannot be found (expected CUDA "
            "13 and cuDNN 9 for CUDA 13: pip install nvidia-cublas nvidia-cudnn-cu13)",
        ),
        (
            without("libcurand.so.10"),
            "libcurand.so.10 cannot be found (expected CUDA 13: pip install nvidia-curand)",
        ),
        (without("libcufft.so.12", "libnvrtc.so.13"), ""),  # for some models only
        (
            replace(WORKING, cudnn_cuda_major=12),
            f"cuDNN is built for CUDA 12, and {RUNTIME} needs it for CUDA 13 (expected pip",
        ),
        (replace(WORKING, cudnn_cuda_major=13), ""),
        (replace(without("libcudnn.so.9"), cuda_build=None), ""),  # explain_build says it
    ],
)
def test_each_broken_installation_has_its_sentence(facts: InstallationFacts, reason: str) -> None:
    text = explain_facts(facts)
    assert reason in text
    assert bool(text) is bool(reason)


def test_cudnn_can_be_done_without() -> None:
    assert explain_facts(without("libcudnn.so.9"), needs_cudnn=False) == ""
    assert explain_facts(replace(WORKING, cudnn_cuda_major=12), needs_cudnn=False) == ""
    assert "libcublas" in explain_facts(
        without("libcublas.so.13", "libcudnn.so.9"), needs_cudnn=False
    )


def test_a_device_is_too_old_for_the_cuda_of_the_build() -> None:
    pascal = replace(DEVICE, compute_capability=(6, 1))
    assert explain_device(pascal, (12, 8)) == ""
    assert "or an onnxruntime-gpu for CUDA 12" in explain_device(pascal, (13, 0))
    assert explain_device(pascal, (14, 0)) == ""  # not known yet


def test_the_wrong_package_is_explained() -> None:
    assert explain_build([CUDA, CPU], ["onnxruntime-gpu"]) == ""
    assert explain_build([CPU], ["onnxruntime"], "x86_64").startswith(
        "this onnxruntime is built without CUDA (expected onnxruntime-gpu in its place"
    )
    both = explain_build([CPU], ["onnxruntime", "onnxruntime-gpu"])
    assert both.startswith("onnxruntime and onnxruntime-gpu are installed over each other")
    assert "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu" in both
    assert "PyPI has no onnxruntime-gpu for aarch64" in explain_build([CPU], [], "aarch64")


CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, "
    "void, Status> onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError] CUDA "
    "failure {}: {} ; GPU=-1 ; hostname=vm ; file=cuda_execution_provider.cc ; line=355 ; "
    "expr=cudaSetDevice(info_.device_id); \n\n"
)
"""As ONNX Runtime 1.31 reports errors of CUDA."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            CALL.format(209, "no kernel image is available for execution on the device"),
            f"{RUNTIME} has no kernels for the compute capability 9.0 of NVIDIA H200 (expected an",
        ),
        (
            CALL.format(803, "system has unsupported display driver / cuda driver combination"),
            "does not fit the kernel module 580.82.07",
        ),
        (
            CALL.format(35, "CUDA driver version is insufficient for CUDA runtime version"),
            "(expected NVIDIA driver 580 or newer)",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Neg node. "
            "Name:'' Status Message: CUDA error cudaErrorNoKernelImageForDevice:no kernel image is "
            "available for execution on the device",
            f"{RUNTIME} has no kernels for the compute capability 9.0 of NVIDIA H200 (expected an",
        ),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:376 AllocateRawInternal "
            "Failed to allocate memory for requested buffer of size 256",
            "GPU 0 has no memory left to start CUDA",
        ),
        (
            CALL.format(222, "the provided PTX was compiled with an unsupported toolchain."),
            "580 or",
        ),
        (CALL.format(2, "out of memory"), "GPU 0 has no memory left to start CUDA"),
        (CALL.format(46, "busy or unavailable"), "(expected nvidia-smi -c DEFAULT"),
        (
            CALL.format(719, "unspecified launch failure"),
            "unspecified launch failure (CUDA error 7",
        ),
        (
            "libcudnn.so.9: cannot open shared object file: No such file or directory",
            "libcudnn.so.9 cannot be found (expected cuDNN 9 for CUDA 13: pip install nvidia-cudnn",
        ),
        (
            "libnvinfer.so.10: cannot open shared object file: No such file or directory",
            "CUDA could not be started: libnvinfer.so.10 is missing",
        ),
        (
            "libonnxruntime_providers_cuda.so: undefined symbol: cuTensorMapEncodeTiled",
            "(expected NVIDIA driver 580 or newer)",
        ),
        (
            "libonnxruntime_providers_cuda.so: undefined symbol: cublasLtCreate\nmore",
            "CUDA could not be started: libonnxruntime_providers_cuda.so: undefined symbol: cubl",
        ),
    ],
)
def test_messages_of_onnxruntime_are_explained(text: str, reason: str) -> None:
    explained = explain_failure(text, WORKING)
    assert reason in explained
    assert "\n" not in explained


def test_a_gpu_that_cannot_be_used_is_looked_at_again_later() -> None:
    now = [0.0]
    gathered: list[InstallationFacts] = [replace(WORKING, cuda_build=None), EMPTY, EMPTY]
    check = InstallationCheck(lambda: gathered.pop(), lambda: now[0])  # noqa: PLW0108
    assert "no NVIDIA driver" in check.problem()
    now[0] = RECHECK_SECONDS - 1
    assert "no NVIDIA driver" in check.problem()
    assert len(gathered) == 2
    now[0] = RECHECK_SECONDS
    assert "no NVIDIA driver" in check.problem()
    now[0] = 2 * RECHECK_SECONDS
    assert check.problem() == ""
    assert check.problem(0) == ""
    assert check.problem(1) == "there is no GPU 1"
    now[0] = 9 * RECHECK_SECONDS
    assert check.problem() == ""  # what works is not gathered again
    assert gathered == []


def test_probe_is_a_valid_model() -> None:
    onnx.checker.check_model(onnx.ModelProto.FromString(PROBE_MODEL))
    session = onnxruntime.InferenceSession(PROBE_MODEL, providers=[CPU])
    assert session.run(None, {"x": np.array([3], np.float32)})[0].tolist() == [-3]


@pytest.mark.parametrize("cudnn", [True, False])
def test_a_device_is_probed_without_cudnn_if_there_is_none(
    monkeypatch: pytest.MonkeyPatch, cudnn: bool
) -> None:
    given: list[tuple[str, dict[str, str]]] = []

    def fail(model: bytes, settings: object, providers: list[Any], **_: object) -> None:
        given.extend(providers)
        raise RuntimeError("no CUDA here")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    facts = WORKING if cudnn else without("libcudnn.so.9")
    check = InstallationCheck(lambda: facts)
    assert check.problem(0, needs_cudnn=False) == "CUDA could not be started: no CUDA here"
    assert given == [(CUDA, {"device_id": "0"} | ({} if cudnn else {"enable_cudnn": "0"}))]


needs_cuda_build = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="onnxruntime is built without CUDA"
)


@needs_cuda_build
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"errors": "cuInit=803"}, "does not fit the kernel module"),
        ({"visible": ""}, "CUDA_VISIBLE_DEVICES is '' and hides all GPUs"),
        ({"version": 12090}, f"supports CUDA 12.9, and {RUNTIME} needs CUDA 13"),
        ({"capability": "7.0"}, "Stub GPU is too old: it has compute capability 7.0"),
    ],
)
def test_a_real_look_at_a_broken_driver(
    cuda_stub: CudaStub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    values: dict[str, object],
    reason: str,
) -> None:
    cuda_stub.install(monkeypatch, **values)
    assert reason in InstallationCheck(lambda: gather_facts(tmp_path)).problem()


PROGRAM = """
import logging, sys
from pathlib import Path
from typing import Any
from neurona_server.errors import ConfigError, LoadError
from neurona_server.models.onnx.runtime import RuntimeOptions, check_options
from neurona_server.models.onnx.session import Session

session = Session(Path(sys.argv[1]), RuntimeOptions())
print(session.provider)
print(session.degraded)
for use in (check_options, lambda options: Session(Path(sys.argv[1]), options)):
    try:
        use(RuntimeOptions(require_gpu=True))
    except (ConfigError, LoadError) as error:
        print(error)
"""


@needs_cuda_build
def test_a_model_falls_back_to_the_cpu_and_says_why(cuda_stub: CudaStub, tmp_path: Path) -> None:
    """ONNX Runtime itself looks for its provider's libraries, and for a device that computes."""
    model = onnx_models.save_classifier(tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model],
        env=os.environ | cuda_stub.environment(devices=1),
        capture_output=True,
        text=True,
        check=True,
    )
    provider, degraded, option, load = done.stdout.splitlines()
    assert provider == CPU
    reason = degraded.removeprefix("runs on the CPU: ")
    assert reason != degraded
    assert "cannot be found (expected CUDA" in reason or "driver" in reason  # without or with CUDA
    assert option == f"option require_gpu is set, but {reason}"
    assert load == f"{degraded}, and require_gpu is set"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "",
            "onnxruntime: its files are incomplete, as after one of two ONNX Runtime packages was",
        ),
        (
            "raise ImportError('libonnxruntime.so.1: file too short', name='onnxruntime')",
            "onnxruntime: libonnxruntime.so.1: file too short",
        ),
    ],
)
def test_an_onnxruntime_in_pieces_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    done = run_neurona_serve("--help", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"neurona-serve: package cannot be imported: {reason}")


@needs_cuda_build
def test_a_server_on_the_cpu_says_why_everywhere(
    cuda_stub: CudaStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_models.save_classifier(tmp_path / "models" / "classifier" / "1" / "model.onnx")
    for name, value in cuda_stub.environment(version=12020).items():
        monkeypatch.setenv(name, value)
    with ServerProcess(tmp_path / "models", "--load-check", "false") as server:
        (model,) = ModelsStub(server.channel).List(ListModelsRequest(), timeout=30).models
        health = server.health.Check(HealthCheckRequest(service="gpu"), timeout=30).status
        log = server.log
    sentence = f"the NVIDIA driver supports CUDA 12.2, and {RUNTIME} needs CUDA 13.0"
    assert f"no GPU can be used: {sentence}" in log
    assert model.versions[0].degraded.startswith(f"runs on the CPU: {sentence}")
    assert health == HealthCheckResponse.NOT_SERVING
    assert "onnxruntime::" not in log  # it was not even tried


def test_the_check_of_this_process_is_the_default() -> None:
    assert gpu_installation.CHECK.facts() is gpu_installation.CHECK.facts()
