"""Nobody is told what is served: ONNX Runtime's own telemetry is off before it is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import onnx_models

LOAD = """
import sys
import {module}
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize(
    "module",
    [
        "neurona_server.models.onnx.session",
        "neurona_server.processes.worker",
        "neurona_training.export.parity",
    ],
)
def test_it_writes_nothing_into_the_home_folder(module, tmp_path):
    """Where ONNX Runtime keeps what it is going to send, and a name for the machine."""
    home = tmp_path / "home"
    home.mkdir()
    model = onnx_models.save_classifier(tmp_path / "model.onnx")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", LOAD.format(module=module), str(model)]
    subprocess.run(command, check=True, env={**environment, "HOME": str(home)}, timeout=100)
    assert [str(path.relative_to(home)) for path in Path(home).rglob("*")] == []


def test_whoever_sets_the_variable_decides():
    code = "import os, neurona_server; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "0\n"
