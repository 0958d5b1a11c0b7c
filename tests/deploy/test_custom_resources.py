"""Custom resources are valid by the schemas that their projects publish: `make test-crds`.

ServiceMonitor, PrometheusRule and ScaledObject by the CRDs in the npm packages of
kubernetes-models; KServe's resources by the models in its Python package.
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
    """Returns the errors that the npm packages report."""
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


def custom_resources():
    kinds = ("ServiceMonitor", "PrometheusRule", "ScaledObject")
    return [copy.deepcopy(one) for kind in kinds for one in of_kind(overlay("autoscale"), kind)]


def test_prometheus_operator_and_keda_know_every_field():
    assert len(custom_resources()) == 3
    assert problems(custom_resources()) == ""


def test_errors_are_reported():
    monitor, _, scaled = custom_resources()
    monitor["spec"]["endpoints"][0]["interval"] = "often"
    scaled["spec"]["maxReplicas"] = 10
    errors = problems([monitor, scaled])
    assert "interval" in errors
    assert "maxReplicas" in errors


def kserve_fields():
    """Returns the JSON fields and their types for each class of the published models."""
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


def check(value, kind, path, classes):
    """Checks fields and scalar types; test_kserve.py checks Kubernetes' own types."""
    if element := re.fullmatch(r"list\[(\w+)\]", kind):
        assert isinstance(value, list), path
        for number, one in enumerate(value):
            check(one, element[1], f"{path}[{number}]", classes)
    elif kind in SCALARS:
        assert isinstance(value, SCALARS[kind]), path
    elif kind in classes:
        unknown = value.keys() - classes[kind].keys()
        assert not unknown, f"{path} has unknown {unknown}"
        for key, one in value.items():
            check(one, classes[kind][key], f"{path}.{key}", classes)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ServingRuntime", "V1alpha1ServingRuntime"), ("InferenceService", "V1beta1InferenceService")],
)
def test_kserve_knows_every_field(kind, name):
    classes = kserve_fields()
    resources = of_kind(build(KUBERNETES / "kserve"), kind)
    assert resources
    for resource in resources:
        check(resource, name, kind, classes)
    wrong = copy.deepcopy(resources[0])
    wrong["spec"]["replica"] = 2
    with pytest.raises(AssertionError, match="replica"):
        check(wrong, name, kind, classes)
