"""NVIDIA Triton: the C++ server inside PyPI's nvidia-pytriton, with ONNX Runtime in its Python
backend, since the wheel has no other."""

import sys
import sysconfig
from functools import partial
from pathlib import Path

import onnx
from models import Model
from processes import INFER, Command, Server
from rivals import RUNTIME, environment, site_packages

VERSION = "0.7.0"
_MODEL = Path(__file__).parent / "inside_triton" / "model.py"
_PYTHON_LIBRARY = sysconfig.get_config_var("LIBDIR")

_CONFIG = """
backend: "python"
max_batch_size: 64
dynamic_batching {{}}
instance_group [{{ count: 1, kind: KIND_CPU }}]
input [{{ name: "{given}", data_type: TYPE_FP32, dims: {row} }}]
output [{{ name: "{answer}", data_type: TYPE_FP32, dims: {answers} }}]
"""


def install(folder: Path) -> Server:
    python = environment(folder / "triton", f"nvidia-pytriton=={VERSION}", RUNTIME)
    return Server(f"Triton (pytriton {VERSION})", (INFER,), partial(_command, python))


def _command(python: Path, model: Model, folder: Path, address: str) -> Command:
    packages = site_packages(python)
    server = packages / "pytriton" / "tritonserver"
    root = folder / "models" / model.name
    (root / "1").mkdir(parents=True)
    (root / "1" / "model.onnx").symlink_to(model.file.resolve())
    # The stub does not read PYTHONPATH, and the model's file is the first that it imports.
    found = f"import sys; sys.path.insert(0, {str(packages)!r})\n"
    (root / "1" / "model.py").write_text(found + _MODEL.read_text())
    given, answer = model.graph.input[0], model.graph.output[0]
    words = {"given": given.name, "row": list(model.row)}
    words |= {"answer": answer.name, "answers": _sizes(answer)}
    (root / "config.pbtxt").write_text(_CONFIG.format(**words))
    backend = _python_backend(server, folder / "backends")
    host, _, port = address.rpartition(":")
    flags = {
        "model-repository": folder / "models",
        "backend-directory": backend,
        "grpc-address": host,
        "grpc-port": port,
        "allow-http": "false",
        "allow-metrics": "false",
        "log-verbose": "0",
    }
    return Command(
        [server / "bin" / "tritonserver", *(f"--{name}={value}" for name, value in flags.items())],
        {"LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{_PYTHON_LIBRARY}"},
    )


def _python_backend(server: Path, backends: Path) -> Path:
    """As the wheel has it, with the stub for our Python, which the wheel keeps elsewhere."""
    python = backends / "python"
    python.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    for path in (*(server / "backends" / "python").glob("*triton_python*"), stub):
        (python / path.name).symlink_to(path)
    return backends


def _sizes(tensor: onnx.ValueInfoProto) -> list[int]:
    """Without the batch axis."""
    return [axis.dim_value for axis in tensor.type.tensor_type.shape.dim][1:]
