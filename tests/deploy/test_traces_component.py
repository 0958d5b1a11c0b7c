"""components/traces sends spans to a collector, and the NetworkPolicy allows it."""

import os
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
from support.manifests import KUBERNETES, build, environment, of_kind

from neurona_server.config import sources


@pytest.fixture
def built(tmp_path):
    folder = os.path.relpath(KUBERNETES, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{folder}/overlays/cpu]\ncomponents: [{folder}/components/traces]\n"
    )
    return build(tmp_path)


def endpoint(built):
    (deployment,) = of_kind(built, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {**environment(container), "NEURONA_CONFIG": ""}
    return sources.load(["--repository", "."], variables).traces_endpoint


def test_it_is_valid_by_the_schemas_of_kubernetes(built):
    for manifest in of_kind(built, "Deployment") + of_kind(built, "NetworkPolicy"):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_egress_is_limited_to_the_collector_and_dns(built):
    _, namespace, kind = str(urlsplit(endpoint(built)).hostname).split(".")
    assert kind == "svc"
    (policy,) = of_kind(built, "NetworkPolicy")
    allowed = {
        (
            to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"],
            port.get("protocol", "TCP"),
            port["port"],
        )
        for rule in policy["spec"]["egress"]
        for to in rule["to"]
        for port in rule["ports"]
    }
    collector = (namespace, "TCP", urlsplit(endpoint(built)).port)
    assert allowed == {collector, ("kube-system", "UDP", 53), ("kube-system", "TCP", 53)}
    assert len(policy["spec"]["ingress"]) == 2  # unchanged
