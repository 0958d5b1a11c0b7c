"""MLServer from PyPI, with ONNX Runtime as a runtime of ours and adaptive batching on."""

import json
import socket
from functools import partial
from pathlib import Path

from models import Model
from processes import INFER, Command, Server
from rivals import RUNTIME, environment

VERSION = "1.7.1"
_RUNTIME_FOLDER = Path(__file__).parent / "inside_mlserver"


def install(folder: Path) -> Server:
    python = environment(folder / "mlserver", f"mlserver=={VERSION}", RUNTIME)
    return Server(f"MLServer {VERSION}", (INFER,), partial(_command, python))


def _command(python: Path, model: Model, folder: Path, address: str) -> Command:
    """One process: its own default of a second one, for the model, is slower on two cores."""
    settings = {
        "name": model.name,
        "implementation": "onnx_runtime_model.OnnxModel",
        "parameters": {"uri": str(model.file.resolve())},
        # Adaptive batching; the time is how long a batch waits to be filled, and with 64 rows
        # at once it is full before.
        "max_batch_size": 64,
        "max_batch_time": 0.001,
    }
    root = folder / "models" / model.name
    root.mkdir(parents=True)
    (root / "model-settings.json").write_text(json.dumps(settings))
    host, _, port = address.rpartition(":")
    ports = {"host": host, "grpc_port": int(port), "http_port": _free(), "metrics_port": _free()}
    server = {**ports, "parallel_workers": 0, "debug": False, "grpc_max_message_length": 64 << 20}
    server["logging_settings"] = _quiet(folder)
    (folder / "models" / "settings.json").write_text(json.dumps(server))
    return Command(
        [python.parent / "mlserver", "start", folder / "models"],
        {"PYTHONPATH": str(_RUNTIME_FOLDER), "PYTHONWARNINGS": "ignore"},
    )


def _quiet(folder: Path) -> str:
    """It would write a line for each request."""
    path = folder / "logging.json"
    path.write_text(json.dumps({"version": 1, "root": {"level": "ERROR"}}))
    return str(path)


def _free() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
