"""deploy/kubernetes/README.md agrees with the manifests and the server."""

import json
import os
import re
import tomllib

import kubernetes_validate
import yaml
from support import manifests
from support.manifests import KUBERNETES, OVERLAYS, ROOT, build, container, environment, of_kind

from neurona_server.models.repository.scanner import read_settings

GUIDE = (KUBERNETES / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_every_overlay_and_component_is_documented():
    for name in OVERLAYS:
        assert f"| `overlays/{name}` |" in GUIDE
    (components,) = [line for line in GUIDE.splitlines() if line.startswith("| `components/`")]
    folders = {path.name for path in (KUBERNETES / "components").iterdir()} - {"scaled"}
    assert set(re.findall("`([a-z]+)`", components)) == folders


def test_the_example_overlay_builds(tmp_path):
    overlay, options = blocks("yaml")
    folder = os.path.relpath(ROOT, tmp_path)
    kustomization = overlay.replace("../neurona/", f"{folder}/") + options
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    (tmp_path / "neurona.toml").write_text('repository = ["/models"]\n')
    built = build(tmp_path)
    (deployment,) = of_kind(built, "Deployment")
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    assert one["image"] == "registry.example/neurona:0.1.0"
    (config,) = of_kind(built, "ConfigMap")
    assert config["data"] == {"neurona.toml": 'repository = ["/models"]\n'}
    names = [
        volume.get("configMap") for volume in deployment["spec"]["template"]["spec"]["volumes"]
    ]
    assert {"name": config["metadata"]["name"]} in names


def test_the_example_model_toml_is_valid(tmp_path):
    (text,) = blocks("toml")
    (tmp_path / "model.toml").write_text(text)
    read_settings(tmp_path)
    assert tomllib.loads(text)["traffic"] == {"canary": 5}


def test_grpc_accepts_the_service_config_of_the_example():
    (code,) = blocks("python")
    names = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    with names["channel"]:
        config = names["ROUND_ROBIN"]
        assert json.loads(json.dumps(config)) == config
    service = container("cpu")["readinessProbe"]["grpc"]["service"]
    assert config["healthCheckConfig"]["serviceName"] == service
    (service,) = [
        one["metadata"]["name"]
        for one in of_kind(manifests.overlay("cpu"), "Service")
        if one["spec"].get("clusterIP") == "None"
    ]
    assert f"dns:///{service}.neurona.svc.cluster.local:8001" in code


def test_the_documented_times_are_those_of_the_manifests():
    variables = environment(container("cpu"))
    spec = manifests.deployment("cpu")["spec"]["template"]["spec"]
    for name, seconds in {
        "NEURONA_DRAIN_DELAY_MS": int(variables["NEURONA_DRAIN_DELAY_MS"]) // 1000,
        "NEURONA_DRAIN_TIMEOUT_MS": int(variables["NEURONA_DRAIN_TIMEOUT_MS"]) // 1000,
        "terminationGracePeriodSeconds": spec["terminationGracePeriodSeconds"],
    }.items():
        assert re.search(rf"\| `{name}` \| (then up to )?{seconds} s \|", GUIDE), name


def test_paths_in_the_guide_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", GUIDE)
    paths = re.findall(r"`((?:overlays|components|base|kserve|tests)/[\w./-]*)`", GUIDE)
    assert len(paths) > 10
    for path in [*links, *paths]:
        assert (KUBERNETES / path).exists() or (ROOT / path).exists(), path
    for path in re.findall(r"deploy/kubernetes/[\w./-]+[\w]", GUIDE):
        assert (ROOT / path).exists(), path


def test_the_models_shell_complies_with_the_namespaces_policy():
    pod = yaml.safe_load((KUBERNETES / "models-shell.yaml").read_text())
    kubernetes_validate.validate(pod, "1.37", strict=True)
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (one,) = spec["containers"]
    assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert one["securityContext"]["allowPrivilegeEscalation"] is False
    claim = spec["volumes"][0]["persistentVolumeClaim"]["claimName"]
    (models,) = of_kind(manifests.overlay("cpu"), "PersistentVolumeClaim")
    assert claim == models["metadata"]["name"]
