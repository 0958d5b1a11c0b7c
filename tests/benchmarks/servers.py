"""The servers that are compared, and the commands that start each with one model.

MLServer and Triton are installed from PyPI into their own virtual environments, because they need
other versions of packages than this project.
"""

import json
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import onnxruntime
from models import Model
from processes import INFER, PREDICT, Command, Server

HERE = Path(__file__).parent
BASELINE = "grpc.aio"
MLSERVER_VERSION = "1.7.1"
PYTRITON_VERSION = "0.7.0"
RUNTIME = f"onnxruntime=={onnxruntime.__version__}"
"""The same for all servers, or the comparison would be of runtimes."""

_NEURONA = Path(sys.executable).parent / "neurona-serve"
_MLSERVER_FOLDER = HERE / "inside_mlserver"
_TRITON_MODEL = HERE / "inside_triton" / "model.py"
_TRITON_CONFIG = """
backend: "python"
max_batch_size: 64
dynamic_batching {{}}
instance_group [{{ count: 1, kind: KIND_CPU }}]
input [{{ name: "{input}", data_type: TYPE_FP32, dims: {input_dims} }}]
output [{{ name: "{output}", data_type: TYPE_FP32, dims: {output_dims} }}]
"""


def copy_model(model: Model, repository: Path, name: str = "") -> None:
    """Copies a model into a repository as <name>/1/model.onnx."""
    path = repository / (name or model.name) / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copyfile(model.file, path)  # the server does not follow links out of the repository


def neurona_command(repository: Path, address: str, *flags: str) -> Command:
    """Returns the command of neurona-serve without a cache, so that every start is a first one."""
    words = [_NEURONA, "--repository", repository, "--address", address, "--cache", "off"]
    words += ["--metrics-address", "127.0.0.1:0", "--http-address", "off", "--log-level", "error"]
    return Command([*words, *flags])


def _neurona(transport: str, model: Model, folder: Path, address: str) -> Command:
    copy_model(model, folder / "models")
    return neurona_command(folder / "models", address, "--transport", transport)


def _aio(model: Model, _: Path, address: str) -> Command:
    return Command([sys.executable, HERE / "aio_server.py", model.file, address])


def create_environment(folder: Path, *requirements: str) -> Path:
    """Creates a virtual environment with these packages, once, and returns its Python.

    Raises:
        subprocess.CalledProcessError: pip fails.
    """
    python = folder / "bin" / "python"
    content = "\n".join(requirements)
    marker = folder / "installed.txt"
    if not marker.exists() or marker.read_text() != content:
        print(f"installing {', '.join(requirements)} into {folder}", file=sys.stderr)
        if not python.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        marker.write_text(content)
    return python


def install_mlserver(folder: Path) -> Server:
    """Installs MLServer, which uses a runtime class for ONNX Runtime and adaptive batching."""
    python = create_environment(folder / "mlserver", f"mlserver=={MLSERVER_VERSION}", RUNTIME)
    return Server(f"MLServer {MLSERVER_VERSION}", (INFER,), partial(_mlserver, python))


def _mlserver(python: Path, model: Model, folder: Path, address: str) -> Command:
    """One process: the default of a second process for the model is slower on two cores."""
    settings = {
        "name": model.name,
        "implementation": "onnx_runtime_model.OnnxModel",
        "parameters": {"uri": str(model.file.resolve())},
        # Adaptive batching. The time is how long a batch may wait to be filled; with 64 requests
        # in flight it is full before.
        "max_batch_size": 64,
        "max_batch_time": 0.001,
    }
    root = folder / "models" / model.name
    root.mkdir(parents=True)
    (root / "model-settings.json").write_text(json.dumps(settings))
    host, _, port = address.rpartition(":")
    ports = {"http_port": free_port(), "metrics_port": free_port()}
    server = {"host": host, "grpc_port": int(port), **ports, "parallel_workers": 0, "debug": False}
    server |= {"grpc_max_message_length": 64 << 20, "logging_settings": _errors_only(folder)}
    (folder / "models" / "settings.json").write_text(json.dumps(server))
    return Command(
        [python.parent / "mlserver", "start", folder / "models"],
        {"PYTHONPATH": str(_MLSERVER_FOLDER), "PYTHONWARNINGS": "ignore"},
    )


def _errors_only(folder: Path) -> str:
    """By default MLServer logs a line for each request."""
    path = folder / "logging.json"
    path.write_text(json.dumps({"version": 1, "root": {"level": "ERROR"}}))
    return str(path)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def install_triton(folder: Path) -> Server:
    """Installs Triton: nvidia-pytriton's C++ server, whose wheel has only the Python backend."""
    python = create_environment(folder / "triton", f"nvidia-pytriton=={PYTRITON_VERSION}", RUNTIME)
    return Server(f"Triton (pytriton {PYTRITON_VERSION})", (INFER,), partial(_triton, python))


def _triton(python: Path, model: Model, folder: Path, address: str) -> Command:
    packages = _site_packages(python)
    server = packages / "pytriton" / "tritonserver"
    root = folder / "models" / model.name
    (root / "1").mkdir(parents=True)
    (root / "1" / "model.onnx").symlink_to(model.file.resolve())
    # The backend's stub ignores PYTHONPATH, and the model's file is the first that it imports.
    extend_path = f"import sys; sys.path.insert(0, {str(packages)!r})\n"
    (root / "1" / "model.py").write_text(extend_path + _TRITON_MODEL.read_text())
    graph_input, graph_output = model.graph.input[0], model.graph.output[0]
    fields = {"input": graph_input.name, "input_dims": list(model.row)}
    fields |= {"output": graph_output.name, "output_dims": _dims_of_a_row(graph_output)}
    (root / "config.pbtxt").write_text(_TRITON_CONFIG.format(**fields))
    host, _, port = address.rpartition(":")
    flags = {
        "model-repository": folder / "models",
        "backend-directory": _python_backend(server, folder / "backends"),
        "grpc-address": host,
        "grpc-port": port,
        "allow-http": "false",
        "allow-metrics": "false",
        "log-verbose": "0",
    }
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return Command(
        [server / "bin" / "tritonserver", *(f"--{name}={value}" for name, value in flags.items())],
        {"LD_LIBRARY_PATH": libraries},
    )


def _site_packages(python: Path) -> Path:
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(result.stdout.strip())


def _python_backend(server: Path, backends: Path) -> Path:
    """Links the wheel's backend and its stub for this Python, which is in another folder."""
    python = backends / "python"
    python.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    for path in (*(server / "backends" / "python").glob("*triton_python*"), stub):
        (python / path.name).symlink_to(path)
    return backends


def _dims_of_a_row(tensor: onnx.ValueInfoProto) -> list[int]:
    return [axis.dim_value for axis in tensor.type.tensor_type.shape.dim][1:]


NEURONA = Server("neurona", (PREDICT, INFER), partial(_neurona, "cygrpc"))
NEURONA_AIO = Server("neurona, aio transport", (PREDICT, INFER), partial(_neurona, "aio"))
AIO = Server(BASELINE, (PREDICT,), _aio)

INSTALLED_SERVERS = {"neurona": NEURONA, "neurona-aio": NEURONA_AIO, "aio": AIO}
"""Servers that need only the packages of the tests, by their name on the command line."""

OTHER_SERVERS: dict[str, Callable[[Path], Server]] = {
    "mlserver": install_mlserver,
    "triton": install_triton,
}
"""Functions that install a server into a folder, by its name on the command line."""
