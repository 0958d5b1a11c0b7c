"""Overlays are valid by the schemas of Kubernetes, consistent, and fit the server's options."""

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

# The oldest version with all features that the manifests use, and the newest with schemas.
VERSIONS = ("1.31", "1.37")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
OPTIONS = set(Config.__struct_fields__)


@pytest.fixture(params=OVERLAYS)
def name(request):
    return request.param


def options_file(name):
    """Returns neurona.toml of the overlay."""
    (options,) = of_kind(overlay(name), "ConfigMap")
    return options["data"]["neurona.toml"]


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid_by_the_schemas_of_kubernetes(version):
    every = [one for name in OVERLAYS for one in overlay(name) if one["kind"] not in CUSTOM]
    unique = {json.dumps(one, sort_keys=True): one for one in every}  # reading schemas is slow
    assert len(unique) > len(OVERLAYS) + 5
    for manifest in unique.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_an_unknown_field_is_an_error():
    manifest = {**deployment("cpu"), "spec": {**deployment("cpu")["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="'replica' was unexpected"):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_every_selector_matches_the_pods(name):
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


def test_manifests_share_a_namespace(name):
    for manifest in overlay(name):
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "neurona", manifest["kind"]


def test_prometheus_scrapes_each_replica_through_one_service():
    services = of_kind(overlay("autoscale"), "Service")
    (monitor,) = of_kind(overlay("autoscale"), "ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    selected = [one for one in services if one["metadata"]["labels"].items() >= selector]
    assert [one["metadata"]["name"] for one in selected] == ["neurona-replicas"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in selected[0]["spec"]["ports"]}
    assert selected[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "neurona"


def test_named_ports_exist(name):
    ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
    assert len(ports) == 3
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
    assert options["http_address"].endswith(f":{ports['http']}")
    assert options["metrics_address"].endswith(f":{ports['metrics']}")


def test_every_option_is_known_to_the_server(name, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    variables = environment(container(name))
    (tmp_path / "neurona.toml").write_text(options_file(name))
    assert os.path.basename(variables["NEURONA_CONFIG"]) == "neurona.toml"
    for variable in variables:
        assert variable == "NEURONA_CONFIG" or variable.removeprefix("NEURONA_").lower() in OPTIONS
    variables["NEURONA_CONFIG"] = "neurona.toml"
    config = sources.load([], variables)  # checks their values too
    assert caplog.records == []
    assert config.drain_delay_ms > 0
    assert config.require_gpu == (name == "gpu")


def test_no_variable_of_the_image_wins_over_the_overlays(name):
    """Variables win over neurona.toml: the image sets only the file's path."""
    dockerfile = ROOT / "deploy" / "Dockerfile"
    if not dockerfile.exists():
        pytest.skip("deploy/ has no Dockerfile")
    image = set(re.findall(r"\bNEURONA_[A-Z_]+(?==)", dockerfile.read_text()))
    assert image <= environment(container(name)).keys()


def test_paths_in_options_are_mounted(name):
    """Each file and folder is in a volume, and only the cache and /tmp are writable."""
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


def test_the_server_accepts_the_cache_folder(name, tmp_path):
    """It is inside the volume: an emptyDir itself is accessible to the pod's group."""
    folder = tomllib.loads(options_file(name))["cache"]
    volume = tmp_path / "cache"
    volume.mkdir()
    volume.chmod(0o2777)
    GraphCache(tmp_path / folder.lstrip("/"))
    with pytest.raises(PermissionError, match="expected mode 0700"):
        GraphCache(volume)


def test_images_have_the_version_of_the_package(name):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tag = container(name)["image"].rpartition(":")[2]
    assert re.fullmatch(re.escape(version) + "(-gpu)?", tag), tag
    assert tag.endswith("-gpu") == (name == "gpu")


def test_a_node_can_be_drained_while_another_replica_serves(name):
    (budget,) = of_kind(overlay(name), "PodDisruptionBudget")
    replicas = deployment(name)["spec"].get("replicas")
    for scaled in of_kind(overlay(name), "ScaledObject"):
        replicas = scaled["spec"]["minReplicaCount"]
    for scaled in of_kind(overlay(name), "HorizontalPodAutoscaler"):
        replicas = scaled["spec"]["minReplicas"]
    assert 0 < budget["spec"]["maxUnavailable"] < replicas


def test_only_the_autoscaler_sets_the_number_of_replicas(name):
    scalers = [one for one in overlay(name) if "scaleTargetRef" in one.get("spec", {})]
    assert [one["spec"]["scaleTargetRef"]["name"] for one in scalers] == (
        ["neurona"] if name.startswith("autoscale") else []
    )
    assert ("replicas" in deployment(name)["spec"]) == (not scalers)


def test_pods_comply_with_the_restricted_profile(name):
    """Of the Pod Security Standards, which the namespace enforces; the root is read-only too."""
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


def test_cpu_limits_are_whole_and_equal_to_requests(name):
    resources = container(name)["resources"]
    assert resources["limits"] == resources["requests"]  # the class Guaranteed
    assert int(resources["limits"]["cpu"]) >= 1
    assert ("nvidia.com/gpu" in resources["limits"]) == (name == "gpu")


def test_changed_options_cause_a_rollout(name):
    (options,) = of_kind(overlay(name), "ConfigMap")
    assert re.fullmatch("neurona-options-[a-z0-9]{10}", options["metadata"]["name"])
    volumes = deployment(name)["spec"]["template"]["spec"]["volumes"]
    (volume,) = [one for one in volumes if "configMap" in one]
    assert volume["configMap"]["name"] == options["metadata"]["name"]
