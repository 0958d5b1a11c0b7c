"""The commands as people run them: a process of their own, against a server of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from served import Served

NEURONA = Path(sys.executable).with_name("neurona")


def environment(**variables):
    """Without what the machine has set for commands of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NEURONA_")}
    return kept | variables


@pytest.fixture(scope="session")
def served(repository, tmp_path_factory):
    """Shared by the tests that leave no trace in it."""
    root = tmp_path_factory.mktemp("served")
    for name in ("classifier", "regressor", "fixed"):
        shutil.copytree(repository / name, root / name)
    server = Served(root)
    yield server.wait_until_serving()
    server.close()


@pytest.fixture
def neurona(served):
    """Runs a command; it finds the server by the environment."""

    def neurona(*arguments, variables=None, **options):
        variables = {"NEURONA_ADDRESS": served.address} | (variables or {})
        pipe = subprocess.PIPE
        options = {"stdout": pipe, "stderr": pipe, "text": True, "timeout": 60} | options
        command = [NEURONA, *map(str, arguments)]
        return subprocess.run(command, env=environment(**variables), check=False, **options)

    return neurona
