"""The server's image, built and run: make test-compose."""

import json

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from support.docker_engine import free_ports, until
from support.onnx_models import save, save_regressor

from neurona_client import PredictionStub, PredictRequest, to_array, to_tensor

pytestmark = pytest.mark.timeout(3600)  # includes building the images

LISTING = (
    "import hashlib, os\n"
    "for folder, _, names in sorted(os.walk('/opt/neurona')):\n"
    "    for name in sorted(names):\n"
    "        path = os.path.join(folder, name)\n"
    "        content = os.readlink(path) if os.path.islink(path) else "
    "hashlib.sha256(open(path, 'rb').read()).hexdigest()\n"
    "        print(path, content, os.stat(path, follow_symlinks=False).st_mtime)\n"
)


@pytest.fixture(scope="module")
def image(images):
    return images["NEURONA_IMAGE"]


@pytest.fixture
def model_folder(tmp_path):
    save_regressor(tmp_path / "regressor" / "1" / "model.onnx")
    tmp_path.chmod(0o755)  # readable by the image's user
    return tmp_path


@pytest.fixture
def start(engine, image):
    """Starts containers as compose.yaml does; returns the container's id and address."""
    containers = []

    def start(repository, *options):
        (port,) = free_ports(1)
        container = engine.docker(
            *("run", "--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),  # noqa: S108
            *("--security-opt", "no-new-privileges", "--volume", f"{repository}:/models:ro"),
            *("--publish", f"127.0.0.1:{port}:8001", *options, image),
        ).stdout.strip()
        containers.append(container)
        return container, f"127.0.0.1:{port}"

    yield start
    for container in containers:
        engine.docker("rm", "--force", "--volumes", container)


def health(engine, container):
    return engine.inspect(container, ".State.Health.Status")


def test_the_older_builder_builds_it_too(engine, images, pip):
    name = engine.build(
        *("neurona-test/older", "deploy/Dockerfile", "server"),
        *("--build-arg", f"BASE_IMAGE={images['BASE_IMAGE']}", *pip),
        buildkit=False,
    )
    printed = engine.docker("run", "--rm", "--network", "none", name, "--help").stdout
    assert printed.startswith("usage: neurona-serve")
    configured = engine.docker("run", "--rm", "--entrypoint", "env", name).stdout
    assert "PIP_" not in configured


def test_string_normalizer_has_the_locale_that_it_needs(engine, start, tmp_path):
    node = helper.make_node(
        "StringNormalizer", ["text"], ["upper"], case_change_action="UPPER", is_case_sensitive=1
    )
    strings = (TensorProto.STRING, ["n"])
    save(tmp_path / "upper" / "1" / "model.onnx", [node], {"text": strings}, {"upper": strings})
    tmp_path.chmod(0o755)
    container, address = start(tmp_path)
    until(lambda: health(engine, container) == "healthy")
    with grpc.insecure_channel(address) as channel:
        text = to_tensor("text", np.array(["straße", "élan"], np.object_))
        request = PredictRequest(model="upper", inputs=[text])
        (output,) = PredictionStub(channel).Predict(request, timeout=10).outputs
    assert list(to_array(output)) == ["STRAßE", "ÉLAN"]


def test_the_health_check_reports_a_draining_server(engine, start, model_folder):
    container, _ = start(
        model_folder,
        *("--env", "NEURONA_DRAIN_DELAY_MS=20000", "--health-interval", "500ms"),
        *("--health-start-period", "0s", "--health-retries", "1"),
    )
    until(lambda: health(engine, container) == "healthy")
    engine.docker("kill", "--signal", "TERM", container)
    until(lambda: health(engine, container) == "unhealthy")


def test_without_models_it_exits_with_an_error(engine, start, tmp_path):
    tmp_path.chmod(0o755)
    container, _ = start(tmp_path)
    until(lambda: engine.inspect(container, ".State.Running") == "false")
    assert engine.inspect(container, ".State.ExitCode") == "1"
    log = engine.docker("logs", container).stderr
    assert "no model in /models (expected <name>/<version>/model.onnx)" in log


def test_it_serves_without_a_writable_cache(engine, start, model_folder):
    # Nothing is mounted at /cache, and the image's folder is read-only.
    container, _ = start(model_folder)
    until(lambda: health(engine, container) == "healthy")
    listing = engine.docker("exec", container, "ls", "/cache/graphs", check=False)
    assert "No such file" in listing.stderr


def test_two_builds_have_the_same_content(engine, images, pip):
    def content(image):
        python = ("run", "--rm", "--entrypoint", "python", image)
        listing = engine.docker(*python, "-c", LISTING).stdout
        sbom = engine.docker(
            "run", "--rm", "--entrypoint", "cat", image, "/usr/share/neurona/sbom.json"
        )
        return listing.splitlines(), sbom.stdout

    again = engine.build(
        *("neurona-test/again", "deploy/Dockerfile", "server", "--no-cache"),
        *("--build-arg", f"BASE_IMAGE={images['BASE_IMAGE']}", *pip),
    )
    first, second = content(images["NEURONA_IMAGE"]), content(again)
    assert len(first[0]) > 1000
    assert first == second


def test_it_is_small_and_has_a_bill_of_materials(engine, image, tmp_path):
    assert int(engine.inspect(image, ".Size")) < 400e6
    labels = json.loads(
        engine.docker("inspect", "--format", "{{json .Config.Labels}}", image).stdout
    )
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    inside = ("run", "--rm", "--entrypoint", "cat", image, labels["neurona.sbom"])
    sbom = json.loads(engine.docker(*inside).stdout)
    assert sbom["metadata"]["component"]["name"] == "neurona"
    packages = {one["purl"].partition("@")[0] for one in sbom["components"]}
    assert {"pkg:pypi/onnxruntime", "pkg:pypi/grpcio", "pkg:deb/debian/libc6"} <= packages
    build_tools = {"pkg:pypi/pip", "pkg:pypi/setuptools", "pkg:pypi/hatchling"}
    assert not packages & {"pkg:pypi/torch", *build_tools}
