"""Checks of ONNX Runtime and of all that a GPU needs; they run in a process of their own.

What is missing for a GPU is said in the sentences of models.onnx.gpu_installation, which the server
logs too.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neurona_server.doctor.findings import Check, Finding, Mark, shorten
from neurona_server.doctor.settings import DoctorSettings

INSTALL_RUNTIME = (
    "pip install onnxruntime (CPUs only), or onnxruntime-gpu (NVIDIA GPUs on x86-64, and CPUs)"
)


def runtime_checks(settings: DoctorSettings) -> list[tuple[str, Check]]:
    """Return the checks, with their subjects."""
    return [
        ("ONNX Runtime", _check_packages),
        ("providers", _check_providers),
        ("CPU provider", _check_cpu),
        ("GPU driver", _check_driver),
        ("CUDA libraries", _check_libraries),
        ("GPUs", _check_devices),
        ("GPU", lambda: _check_usable(settings)),
    ]


def transport_checks(settings: DoctorSettings) -> list[tuple[str, Check]]:
    """Return the check of the transport that depends on grpcio's internals."""
    return [("gRPC transport", lambda: _check_transport(settings))]


def _check_packages() -> Iterator[Finding]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        yield Finding("ONNX Runtime", Mark.FAULT, "not installed", INSTALL_RUNTIME)
        return
    except ImportError as error:
        text = f"cannot be imported: {shorten(str(error))}"
        yield Finding("ONNX Runtime", Mark.FAULT, text, "uninstall it, then install it again")
        return
    if not hasattr(onnxruntime, "InferenceSession"):
        text = "its folder is incomplete: one of two packages over each other was uninstalled"
        advice = "pip install --force-reinstall --no-deps, with the package that is wanted"
        yield Finding("ONNX Runtime", Mark.FAULT, text, advice)
        return
    from neurona_server.models.onnx.gpu_facts import runtime_packages

    packages, version = runtime_packages(), onnxruntime.__version__
    if len(packages) > 1:
        text = f"{' and '.join(packages)} are installed over each other (version {version} loads)"
        advice = f"pip uninstall {' '.join(packages)}, then install one of them"
        yield Finding("ONNX Runtime", Mark.FAULT, text, advice)
    else:
        package = packages[0] if packages else "onnxruntime, of no package of PyPI"
        yield Finding("ONNX Runtime", Mark.OK, f"{version}, from {package}")


def _check_providers() -> Iterator[Finding]:
    import onnxruntime

    names = [
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    ]
    yield Finding("providers", Mark.OK, f"built in: {', '.join(names)}")


def _check_cpu() -> Iterator[Finding]:
    import numpy as np
    import onnxruntime

    from neurona_server.models.onnx.gpu_installation import PROBE_MODEL

    try:
        session = onnxruntime.InferenceSession(PROBE_MODEL, providers=["CPUExecutionProvider"])
        (result,) = session.run(None, {"x": np.array([3], np.float32)})
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        yield Finding("CPU provider", Mark.FAULT, f"runs no model: {shorten(str(error))}")
        return
    if result.tolist() == [-3]:
        yield Finding("CPU provider", Mark.OK, "runs a model")
    else:
        yield Finding("CPU provider", Mark.FAULT, f"computes -3 as {result.tolist()}")


def _check_driver() -> Iterator[Finding]:
    from neurona_server.models.onnx.gpu_installation import CHECK

    facts = CHECK.facts()
    version = facts.kernel_module or facts.driver_library
    supports = f"supports CUDA {_dotted(facts.driver_version)}" if facts.driver_version else ""
    driver = ", ".join(filter(None, [f"NVIDIA {version}" if version else "", supports]))
    if facts.driver_error is None:
        yield Finding("GPU driver", Mark.OK, driver or "loads")
        return
    hardware = "an NVIDIA GPU on the PCI bus" if facts.hardware else "no NVIDIA GPU on the PCI bus"
    error = facts.driver_error
    text = f"{driver or 'none'}; {hardware}"
    if driver:
        text = f"{text}; it does not start: {error.name}"
    yield Finding("GPU driver", Mark.NOTE, text)


def _check_libraries() -> Iterator[Finding]:
    from neurona_server.models.onnx.cuda_libraries import (
        cuda_libraries,
        cudnn_cuda_major,
        cudnn_version,
        load_libraries,
    )
    from neurona_server.models.onnx.gpu_facts import MIN_DRIVERS
    from neurona_server.models.onnx.gpu_installation import CHECK

    facts = CHECK.facts()
    build = facts.cuda_build
    major = (build or facts.driver_version or (0, 0))[0]
    if build is not None:
        yield Finding("CUDA", Mark.OK, f"this ONNX Runtime is built for CUDA {_dotted(build)}")
    if major not in MIN_DRIVERS:
        text = "not looked for: this ONNX Runtime has no CUDA, and there is no driver"
        yield Finding("CUDA libraries", Mark.NOTE, text)
        return
    missing = load_libraries(major)
    versions = [
        f"{library.file} {_library_version(library.file, library.package)}".rstrip()
        for library in cuda_libraries(major)
        if library not in missing
    ]
    if versions:
        yield Finding("CUDA libraries", Mark.OK, ", ".join(versions))
    if version := cudnn_version():
        yield Finding("cuDNN", Mark.OK, f"{version}, for CUDA {cudnn_cuda_major()}")
    for optional, consequence in ((False, "no model runs on a GPU"), (True, "some models do not")):
        absent = [library for library in missing if library.optional is optional]
        if absent:
            text = f"missing: {', '.join(one.file for one in absent)} ({consequence} without)"
            packages = " ".join(dict.fromkeys(one.package for one in absent))
            yield Finding("CUDA libraries", Mark.NOTE, text, f"pip install {packages}")


def _check_devices() -> Iterator[Finding]:
    from neurona_server.models.onnx.gpu_installation import CHECK

    facts = CHECK.facts()
    for device in facts.devices:
        text = (
            f"{device.name}, compute capability {_dotted(device.compute_capability)}, "
            f"{device.total_bytes / 2**30:.1f} GiB"
        )
        if facts.cuda_build is None:
            yield Finding(f"GPU {device.number}", Mark.NOTE, text)
        elif problem := CHECK.problem(device.number):
            yield Finding(f"GPU {device.number}", Mark.NOTE, f"{text}; {problem}")
        else:
            yield Finding(f"GPU {device.number}", Mark.OK, f"{text}; runs a model")


def _check_usable(settings: DoctorSettings) -> Iterator[Finding]:
    from neurona_server.models.onnx.gpu_installation import CHECK, explain_facts
    from neurona_server.models.onnx.runtime import missing_gpu_reason

    reason = missing_gpu_reason()
    if not reason:
        yield Finding("GPU", Mark.OK, "models run on it")
        return
    facts = CHECK.facts()
    # Where there is neither a GPU nor a driver, another ONNX Runtime would change nothing.
    reasons = [explain_facts(facts)]
    if facts.hardware or facts.kernel_module or not reasons[0]:
        reasons.append(reason)
    text = "; ".join(dict.fromkeys(filter(None, reasons)))
    if settings.require_gpu:
        yield Finding("GPU", Mark.FAULT, f"require_gpu is true, but {text}")
    else:
        yield Finding("GPU", Mark.NOTE, f"models run on the CPU: {text}")


def _check_transport(settings: DoctorSettings) -> Iterator[Finding]:
    import grpc

    from neurona_server.rpc.transports.auto import self_test

    failure = self_test()
    if not failure:
        text = f"cygrpc passes its self-test with grpcio {grpc.__version__}"
        yield Finding("gRPC transport", Mark.OK, text)
        return
    text = f"cygrpc fails its self-test with grpcio {grpc.__version__}: {failure}"
    if settings.transport == "cygrpc":
        yield Finding("gRPC transport", Mark.FAULT, text, "set transport to auto")
    else:
        advice = "the server uses grpc.aio, which is slower; another grpcio may pass"
        yield Finding("gRPC transport", Mark.NOTE, text, advice)


def _library_version(file: str, package: str) -> str:
    """Return the version of a library that is loaded: its file's, or that of its package."""
    import importlib.metadata

    stem = file.partition(".so")[0]
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return ""
    match = re.search(rf"(/\S*/{re.escape(stem)}\.so\S*)$", maps, re.MULTILINE)
    if match is None:
        return ""
    if "/site-packages/" in match[1]:
        try:
            return f"of {package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            pass
    full = Path(match[1]).name.partition(".so.")[2]
    return f"({full} in {Path(match[1]).parent})"


def _dotted(version: Any) -> str:
    return ".".join(map(str, version))
