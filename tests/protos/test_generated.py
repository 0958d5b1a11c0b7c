import os
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[2] / "protos"


def test_the_generated_files_are_those_of_the_proto_files(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["/bin/sh", PROTOS / "generate.sh", tmp_path], env=environment, check=True)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {"prediction_pb2.py", "prediction_pb2.pyi", "prediction_pb2_grpc.py"} <= fresh.keys()
    for name, text in fresh.items():
        if (PROTOS / name).read_text() != text:
            pytest.fail(f"protos/{name} is stale: run `make proto`")
