import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [
    ROOT / folder / f"neurona_{folder}" for folder in ("protos", "server", "client", "training")
]


def test_the_wheel_holds_every_file_of_the_packages(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("neurona-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    expected = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {f"neurona_protos/{path.name}" for path in (ROOT / "protos").glob("*.proto")}
    assert inside == expected


def test_every_dependency_has_its_version_in_the_constraints():
    pinned = set(re.findall(r"(?m)^([A-Za-z0-9._-]+)==", (ROOT / "constraints.txt").read_text()))
    pinned = {name.lower().replace("_", "-") for name in pinned}
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower() for requirement in wanted}
    assert names - {"neurona"} <= pinned


def test_a_client_needs_neither_a_runtime_nor_torch():
    code = (
        "import sys, neurona_client;"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'onnxruntime', "
        "'onnx', 'sklearn', 'prometheus_client', 'neurona_server', 'neurona_training'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_client_can_live_beside_that_of_triton():
    """Two descriptions of the package `inference` cannot be in one process."""
    code = "import sys, neurona_client; print([m for m in sys.modules if 'inference' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["neurona", "neurona-serve", "neurona-train"])
def test_the_commands_are_installed_and_explain_themselves(command):
    path = Path(sys.executable).with_name(command)
    done = subprocess.run([path, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {command}")
