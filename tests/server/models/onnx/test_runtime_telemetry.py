"""ONNX Runtime's own telemetry is disabled before it is loaded."""

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
def test_nothing_is_written_into_the_home_folder(module, tmp_path):
    """ONNX Runtime stores events to be sent and an identifier of the machine there."""
    home = tmp_path / "home"
    home.mkdir()
    model = onnx_models.save_classifier(tmp_path / "model.onnx")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", LOAD.format(module=module), str(model)]
    subprocess.run(command, check=True, env={**environment, "HOME": str(home)}, timeout=100)
    assert [str(path.relative_to(home)) for path in Path(home).rglob("*")] == []


def test_environment_variable_takes_precedence():
    code = "import os, neurona_server; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "0\n"
