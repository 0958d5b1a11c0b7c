import functools
import itertools
import json
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [
    ROOT / folder / f"neurona_{folder}" for folder in ("protos", "server", "client", "training")
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, ROOT]
    subprocess.run(command, check=True)
    (path,) = folder.glob("neurona-*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_packages(wheel):
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


PLATFORMS = [
    {"sys_platform": "linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_machine": "AMD64"},
]
COMPLETE = {"server", "server-cpu", "training", "gpu"}
"""The extras with a runtime."""

RUNTIME = "onnxruntime-gpu" if platform.machine() in ("x86_64", "AMD64") else "onnxruntime"


def is_runtime(name):
    return name.lower().replace("_", "-").startswith("onnxruntime")


@pytest.mark.parametrize("target", PLATFORMS, ids=lambda one: one["platform_machine"])
def test_no_combination_of_extras_installs_two_runtimes(wheel, target):
    metadata = zipfile.ZipFile(wheel).read(f"{wheel.name.partition('-py3')[0]}.dist-info/METADATA")
    message = Parser().parsestr(metadata.decode())
    requirements = [Requirement(text) for text in message.get_all("Requires-Dist")]
    extras = message.get_all("Provides-Extra")
    assert set(extras) >= COMPLETE

    @functools.cache
    def runtimes(extra):
        """Return the runtimes that one extra brings, with the extras that it includes."""
        needs = [
            one
            for one in requirements
            if one.marker is None or one.marker.evaluate({**target, "extra": extra})
        ]
        names = {one.name for one in needs if is_runtime(one.name)}
        inner = {extra for one in needs if one.name == "neurona" for extra in one.extras}
        return names.union(*map(runtimes, inner))

    counts = defaultdict(set)
    for size in range(len(extras) + 1):
        for combination in itertools.combinations(extras, size):
            names = set().union(*map(runtimes, combination))
            counts[bool(COMPLETE & set(combination))].add(len(names))
    # The extra `gpu` by itself is empty where there is no such wheel.
    assert counts[False] == {0}
    assert counts[True] == ({1} if "onnxruntime-gpu" in runtimes("gpu") else {0, 1})


@pytest.mark.long
@pytest.mark.slow
def test_pip_resolves_all_extras_to_one_runtime(wheel, tmp_path):
    extras = PROJECT["project"]["optional-dependencies"]
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--report", report, f"{wheel}[{','.join(extras)}]"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "Could not find a version" in done.stderr:
        pytest.skip(f"needs a package index: {done.stderr}")
    assert done.returncode == 0, done.stderr
    names = [one["metadata"]["name"] for one in json.loads(report.read_text())["install"]]
    assert [name for name in names if is_runtime(name)] == [RUNTIME]


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


@pytest.mark.parametrize(
    ("command", "module", "missing", "extra"),
    [
        ("neurona-serve", "neurona_server.cli", "onnxruntime", "server"),
        ("neurona-serve", "neurona_server.cli", "prometheus_client", "server"),
        ("neurona-train", "neurona_training.cli.main", "torch", "training"),
        ("neurona-train", "neurona_training.cli.main", "onnxruntime", "training"),
    ],
)
def test_a_command_says_which_extra_is_not_installed(tmp_path, command, module, missing, extra):
    code = (
        "import importlib, sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] == {missing!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"sys.exit(importlib.import_module({module!r}).main())"
    )
    arguments = ["adaline", "--epochs", "1"] if command == "neurona-train" else []
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(command)
    assert f"package not installed: {missing} (expected the packages of 'neurona[{extra}]'" in line
