import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NODE = ROOT / "client" / "node"  # a package of npm's
FOLDERS = {folder: name for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}


def test_every_folder_with_code_is_a_package_that_is_installed():
    with_code = {
        ".".join([FOLDERS[folder], *path.parent.relative_to(ROOT / folder).parts])
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if NODE not in path.parents
    }
    assert sorted(with_code) == sorted(PROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_every_file_of_the_packages(tmp_path):
    source = tmp_path / "source"  # building leaves files behind, and they get into the next wheel
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("node"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("neurona-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    expected = {
        f"{FOLDERS[folder]}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".pyi", ".proto", ".typed", ".html", ".css", ".js")
        and NODE not in path.parents
    }
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
