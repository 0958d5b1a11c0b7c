"""What kustomize builds: by the schemas of the Kubernetes API, against itself and the server."""

import json
import os
import re
import tomllib

import kubernetes_validate
import pytest
from support import manifests
from support.manifests import (
    NAME,
    OVERLAYS,
    ROOT,
    container,
    deployment,
    environment,
    of_kind,
    overlay,
)

from neurona_server.config import sources
from neurona_server.config.options import Config
from neurona_server.models.onnx.graph_cache import GraphCache

# The oldest that has all that the manifests use, and the newest whose schemas are there.
VERSIONS = ("1.31", "1.37")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
OPTIONS = set(Config.__struct_fields__)


@pytest.fixture(params=OVERLAYS)
def name(request):
    return request.param


def options_file(name):
    """neurona.toml as the overlay has it."""
    (options,) = of_kind(overlay(name), "ConfigMap")
    return options["data"]["neurona.toml"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_of_kubernetes_allow_them_and_know_every_field(version):
    every = [one for name in OVERLAYS for one in overlay(name) if one["kind"] not in CUSTOM]
    different = {json.dumps(one, sort_keys=True): one for one in every}  # reading schemas is slow
    assert len(different) > len(OVERLAYS) + 5
    for manifest in different.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_be_found():
    manifest = {**deployment("cpu"), "spec": {**deployment("cpu")["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="'replica' was unexpected"):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_every_selector_finds_the_pods(name):
    labels = deployment(name)["spec"]["template"]["metadata"]["labels"]
    spec = deployment(name)["spec"]
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    selectors = [
        spec["selector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in spread),
        *(one["spec"]["selector"] for one in of_kind(overlay(name), "Service")),
        *(
            one["spec"]["selector"]["matchLabels"]
            for one in of_kind(overlay(name), "PodDisruptionBudget")
        ),
        *(
            one["spec"]["podSelector"]["matchLabels"]
            for one in of_kind(overlay(name), "NetworkPolicy")
        ),
    ]
    assert len(selectors) == 7
    for selector in selectors:
        assert selector.items() >= NAME.items()
        assert selector.items() <= labels.items()


def test_all_stand_in_one_namespace(name):
    for manifest in overlay(name):
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "neurona", manifest["kind"]


def test_prometheus_finds_each_replica_through_one_service():
    services = of_kind(overlay("autoscale"), "Service")
    (monitor,) = of_kind(overlay("autoscale"), "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [one for one in services if one["metadata"]["labels"].items() >= wanted]
    assert [one["metadata"]["name"] for one in found] == ["neurona-replicas"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in found[0]["spec"]["ports"]}
    assert found[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "neurona"


def test_ports_that_are_named_exist(name):
    ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
    assert len(ports) == 2
    for service in of_kind(overlay(name), "Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    (policy,) = of_kind(overlay(name), "NetworkPolicy")
    allowed = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert sorted(allowed) == sorted(ports)
    for _, probe in manifests.probes(container(name)):
        port = (probe.get("grpc") or probe["httpGet"])["port"]
        assert port in ports or port in ports.values()
    options = tomllib.loads(options_file(name))
    assert options["address"].endswith(f":{ports['grpc']}")
    assert options["metrics_address"].endswith(f":{ports['metrics']}")


def test_every_option_is_one_of_the_server(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    variables = environment(container(name))
    (tmp_path / "neurona.toml").write_text(options_file(name))
    assert os.path.basename(variables["NEURONA_CONFIG"]) == "neurona.toml"
    for variable in variables:
        assert variable == "NEURONA_CONFIG" or variable.removeprefix("NEURONA_").lower() in OPTIONS
    variables["NEURONA_CONFIG"] = "neurona.toml"
    config = sources.load([], variables)  # their values, too
    assert caplog.records == []
    assert config.drain_delay_ms > 0
    assert config.require_gpu == (name == "gpu")


def test_no_option_of_the_image_wins_over_the_overlays(name):
    """The environment wins over neurona.toml: of the image's there is only the file's name."""
    dockerfile = ROOT / "deploy" / "Dockerfile"
    if not dockerfile.exists():
        pytest.skip("deploy/ has no Dockerfile")
    image = set(re.findall(r"\bNEURONA_[A-Z_]+(?==)", dockerfile.read_text()))
    assert image <= environment(container(name)).keys()


def test_what_the_options_name_is_mounted(name):
    """Each file and folder lies in a volume; and only what may change can be written to."""
    spec = deployment(name)["spec"]["template"]["spec"]
    mounts = {one["mountPath"]: one for one in container(name)["volumeMounts"]}
    assert {one["name"] for one in mounts.values()} == {one["name"] for one in spec["volumes"]}
    options = tomllib.loads(options_file(name))
    paths = [*options["repository"], options["cache"], "/tmp"]  # noqa: S108
    paths += [value for value in environment(container(name)).values() if value.startswith("/")]
    for path in paths:
        assert path in mounts or os.path.dirname(path) in mounts, path
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"/cache", "/tmp"}  # noqa: S108


def test_the_cache_is_a_folder_that_is_taken(name, tmp_path):
    """Its owner's alone, so not the volume itself: an emptyDir is open to the pod's group."""
    folder = tomllib.loads(options_file(name))["cache"]
    volume = tmp_path / "cache"
    volume.mkdir()
    volume.chmod(0o2777)
    GraphCache(tmp_path / folder.lstrip("/"))
    with pytest.raises(PermissionError, match="expected mode 0700"):
        GraphCache(volume)


def test_images_are_pinned_to_this_version(name):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tag = container(name)["image"].rpartition(":")[2]
    assert re.fullmatch(re.escape(version) + "(-gpu)?", tag), tag
    assert tag.endswith("-gpu") == (name == "gpu")


def test_a_node_can_be_drained_and_somebody_serves_on(name):
    (budget,) = of_kind(overlay(name), "PodDisruptionBudget")
    replicas = deployment(name)["spec"].get("replicas")
    for scaled in of_kind(overlay(name), "ScaledObject"):
        replicas = scaled["spec"]["minReplicaCount"]
    for scaled in of_kind(overlay(name), "HorizontalPodAutoscaler"):
        replicas = scaled["spec"]["minReplicas"]
    assert 0 < budget["spec"]["maxUnavailable"] < replicas


def test_an_autoscaler_alone_says_how_many_replicas(name):
    scalers = [one for one in overlay(name) if "scaleTargetRef" in one.get("spec", {})]
    assert [one["spec"]["scaleTargetRef"]["name"] for one in scalers] == (
        ["neurona"] if name.startswith("autoscale") else []
    )
    assert ("replicas" in deployment(name)["spec"]) == (not scalers)


def test_pods_meet_the_restricted_profile(name):
    """Of the Pod Security Standards, which the namespace enforces; and the root is read-only."""
    spec = deployment(name)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert {"persistentVolumeClaim", "configMap", "emptyDir", "secret"} >= {
        kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}
    }
    assert spec["automountServiceAccountToken"] is False
    (account,) = of_kind(overlay(name), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == account["metadata"]["name"]


def test_threads_come_from_a_quota_of_whole_cpus(name):
    resources = container(name)["resources"]
    assert resources["limits"] == resources["requests"]  # the class Guaranteed
    assert int(resources["limits"]["cpu"]) >= 1
    assert ("nvidia.com/gpu" in resources["limits"]) == (name == "gpu")


def test_changed_options_are_a_rollout(name):
    (options,) = of_kind(overlay(name), "ConfigMap")
    assert re.fullmatch("neurona-options-[a-z0-9]{10}", options["metadata"]["name"])
    volumes = deployment(name)["spec"]["template"]["spec"]["volumes"]
    (volume,) = [one for one in volumes if "configMap" in one]
    assert volume["configMap"]["name"] == options["metadata"]["name"]
