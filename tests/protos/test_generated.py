"""The generated files match the .proto files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[2] / "protos"


def test_the_generated_files_are_up_to_date(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(["/bin/sh", PROTOS / "generate.sh", tmp_path], env=environment, check=True)
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    protos = [path.stem for path in PROTOS.glob("*.proto")]
    suffixes = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    assert fresh.keys() == {stem + suffix for stem in protos for suffix in suffixes}
    assert len(protos) == 5
    for name, text in fresh.items():
        if (PROTOS / "neurona_protos" / name).read_text() != text:
            pytest.fail(f"protos/neurona_protos/{name} is stale: run `make proto`")
