"""The manifests for KServe are valid, and the server loads what KServe's initializer copies.

The initializer (kserve-storage 0.21) copies the content of a folder, or a single file under its
own name, into /mnt/models.
"""

import grpc
import kubernetes_validate
import numpy as np
import pytest
import yaml
from support import onnx_models, triton_requests
from support.in_process_server import run_app
from support.manifests import KUBERNETES, build, environment, of_kind

from neurona_protos.open_inference_pb2 import ModelReadyRequest
from neurona_protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from neurona_server.errors import LoadError

LAYOUTS = {
    "a folder's model": ["model.onnx"],
    "a single file": ["digits.onnx"],
    "versions": ["1/model.onnx", "2/model.onnx"],
}


def runtime(name):
    runtimes = of_kind(build(KUBERNETES / "kserve"), "ServingRuntime")
    return next(one for one in runtimes if one["metadata"]["name"] == name)


def arguments(name, models, service="digits"):
    """Arguments of the container after KServe's substitutions."""
    (container,) = runtime(name)["spec"]["containers"]
    values = {"=/tmp/": f"={models}-tmp/", "{{.Name}}": service, "=/mnt/models": f"={models}"}
    result = list(container["args"])
    for placeholder, value in values.items():
        result = [one.replace(placeholder, value) for one in result]
    return result


def variables(name):
    (container,) = runtime(name)["spec"]["containers"]
    return environment(container)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("tmp"))  # like the image's


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_model_is_served_under_the_name_of_its_service(layout, tmp_path):
    for path in LAYOUTS[layout]:
        onnx_models.save_classifier(tmp_path / "models" / path)
    (tmp_path / "models" / "model.toml").write_text('labels = ["a", "b", "c"]')
    with run_app(arguments("neurona", tmp_path / "models"), variables("neurona")) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        assert stub.ModelReady(ModelReadyRequest(name="digits"), timeout=10).ready
        request = triton_requests.request("digits", x=("FP32", np.ones((2, 4))))
        response = stub.ModelInfer(request, timeout=10)
    assert response.model_name == "digits"
    assert triton_requests.arrays(response)["probabilities"].shape == (2, 3)


@pytest.mark.parametrize(
    ("folder_exists", "message"),
    [
        (True, r"no model in digits=.* \(expected model.onnx\): digits: no version"),
        (False, "none of the models can"),
    ],
)
def test_without_a_model_it_does_not_start(folder_exists, message, tmp_path):
    if folder_exists:
        (tmp_path / "models").mkdir()
    server = run_app(arguments("neurona", tmp_path / "models"), variables("neurona"))
    with pytest.raises(LoadError, match=message), server:
        pass


def test_every_model_of_a_repository_is_served(tmp_path):
    for name in ("a", "b"):
        onnx_models.save_classifier(tmp_path / "models" / name / "1" / "model.onnx")
    name = "neurona-repository"
    with run_app(arguments(name, tmp_path / "models"), variables(name)) as server:
        stub = GRPCInferenceServiceStub(server.channel)
        for name in ("a", "b"):
            assert stub.ModelReady(ModelReadyRequest(name=name), timeout=10).ready
        with pytest.raises(grpc.RpcError, match="digits"):
            stub.ModelInfer(triton_requests.request("digits"), timeout=10)


@pytest.mark.parametrize("name", ["neurona", "neurona-repository", "neurona-rest"])
def test_the_runtime_is_a_valid_pod_spec(name):
    """A runtime's spec is a pod spec with additional fields of KServe."""
    spec = dict(runtime(name)["spec"])
    additional = {"annotations", "supportedModelFormats", "protocolVersions", "multiModel"}
    pod = {key: value for key, value in spec.items() if key not in additional}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}
    kubernetes_validate.validate(manifest, "1.37", strict=True)
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"
    assert len(container["ports"]) == 1  # Knative allows no more
    port = container["ports"][0]["containerPort"]
    if spec["protocolVersions"] == ["v2"]:
        assert container["ports"][0]["name"] == "http1"
        assert f"--http-address=0.0.0.0:{port}" in container["args"]
        assert container["readinessProbe"]["httpGet"]["port"] == port
    else:
        assert container["ports"][0]["name"] == "h2c"
        assert f"--address=0.0.0.0:{port}" in container["args"]
        assert container["readinessProbe"]["grpc"]["port"] == port
    metrics = spec["annotations"]["prometheus.kserve.io/port"]
    assert f"--metrics-address=0.0.0.0:{metrics}" in container["args"]


@pytest.mark.parametrize("name", ["neurona", "neurona-repository", "neurona-rest"])
def test_a_draining_pod_is_not_killed(name):
    (container,) = runtime(name)["spec"]["containers"]
    options = dict(one.removeprefix("--").split("=", 1) for one in container["args"])
    drain = int(options["drain-delay-ms"]) + int(options["drain-timeout-ms"])
    assert drain / 1000 + 5 <= 30  # Kubernetes' default grace period, which a runtime cannot set


def test_the_inference_service_fits_the_runtime():
    (service,) = of_kind(build(KUBERNETES / "kserve"), "InferenceService")
    model = service["spec"]["predictor"]["model"]
    spec = runtime(model["runtime"])["spec"]
    assert model["modelFormat"]["name"] in {f["name"] for f in spec["supportedModelFormats"]}
    assert model["protocolVersion"] in spec["protocolVersions"]
    claim = model["storageUri"].removeprefix("pvc://").partition("/")[0]
    models = yaml.safe_load((KUBERNETES / "base" / "models.yaml").read_text())
    assert claim == models["metadata"]["name"]
