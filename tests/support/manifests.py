"""Kubernetes manifests as kustomize builds them, for the tests that read them."""

import functools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
NAME = {"app.kubernetes.io/name": "neurona"}

Manifest = dict[str, Any]


@functools.cache
def build(folder: Path) -> list[Manifest]:
    """Returns what `kubectl apply -k` would apply; skips the test without kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", folder], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # it warns about deprecated fields
    return list(yaml.safe_load_all(done.stdout))


def overlay(name: str) -> list[Manifest]:
    return build(KUBERNETES / "overlays" / name)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]


def deployment(name: str) -> Manifest:
    (manifest,) = of_kind(overlay(name), "Deployment")
    return manifest


def container(name: str) -> Manifest:
    (manifest,) = deployment(name)["spec"]["template"]["spec"]["containers"]
    return manifest


def environment(manifest: Manifest) -> dict[str, str]:
    """Returns the variables of a container."""
    return {variable["name"]: variable["value"] for variable in manifest.get("env", ())}


def probes(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yields the probes of a container with their kinds."""
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield kind, manifest[kind]
