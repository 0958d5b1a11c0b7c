"""Resources of others' kinds, by the schemas that others publish: `make test-crds` fetches them.

ServiceMonitor, PrometheusRule and ScaledObject by the CRDs in the npm packages of
kubernetes-models; what is KServe's by the models in its Python package.
"""

import ast
import copy
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from support.manifests import KUBERNETES, build, of_kind, overlay

PACKAGES = os.environ.get("CRD_PACKAGES", "")
SCALARS = {"str": str, "int": int, "bool": bool}

pytestmark = pytest.mark.skipif(not PACKAGES, reason="CRD_PACKAGES is not set: make test-crds")


def problems(resources):
    """By the packages of npm."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = Path(__file__).with_name("validate_crds.mjs")
    done = subprocess.run(
        [node, script, PACKAGES],
        input=json.dumps(resources),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def custom():
    kinds = ("ServiceMonitor", "PrometheusRule", "ScaledObject")
    return [copy.deepcopy(one) for kind in kinds for one in of_kind(overlay("autoscale"), kind)]


def test_prometheus_operator_and_keda_know_every_field():
    assert len(custom()) == 3
    assert problems(custom()) == ""


def test_what_is_wrong_would_be_found():
    monitor, _, scaled = custom()
    monitor["spec"]["endpoints"][0]["interval"] = "often"
    scaled["spec"]["maxReplicas"] = 10
    found = problems([monitor, scaled])
    assert "interval" in found
    assert "maxReplicas" in found


def kserve_fields():
    """Of each class of the published models: its fields as JSON has them, with their types."""
    (wheel,) = Path(PACKAGES).glob("kserve-*.whl")
    classes = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not re.fullmatch(r"kserve/models/v1\w+\.py", name):
                continue
            for node in ast.parse(archive.read(name)).body:
                if isinstance(node, ast.ClassDef):
                    tables = {
                        one.targets[0].id: ast.literal_eval(one.value)
                        for one in node.body
                        if isinstance(one, ast.Assign)
                    }
                    types, names = tables["openapi_types"], tables["attribute_map"]
                    classes[node.name] = {names[field]: types[field] for field in types}
    return classes


def check(value, kind, place, classes):
    """Kubernetes' own types are checked by test_kserve.py."""
    if listed := re.fullmatch(r"list\[(\w+)\]", kind):
        assert isinstance(value, list), place
        for number, one in enumerate(value):
            check(one, listed[1], f"{place}[{number}]", classes)
    elif kind in SCALARS:
        assert isinstance(value, SCALARS[kind]), place
    elif kind in classes:
        unknown = value.keys() - classes[kind].keys()
        assert not unknown, f"{place} has {unknown}"
        for key, one in value.items():
            check(one, classes[kind][key], f"{place}.{key}", classes)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ServingRuntime", "V1alpha1ServingRuntime"), ("InferenceService", "V1beta1InferenceService")],
)
def test_kserve_knows_every_field(kind, name):
    classes = kserve_fields()
    found = of_kind(build(KUBERNETES / "kserve"), kind)
    assert found
    for resource in found:
        check(resource, name, kind, classes)
    wrong = copy.deepcopy(found[0])
    wrong["spec"]["replica"] = 2
    with pytest.raises(AssertionError, match="replica"):
        check(wrong, name, kind, classes)
