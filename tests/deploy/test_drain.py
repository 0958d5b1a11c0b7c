"""How long a replica has to leave, added up from the manifests."""

import pytest
from support.manifests import OVERLAYS, container, deployment, environment, probes

from neurona_server.processes.supervisor import LEAVING


@pytest.fixture(params=OVERLAYS)
def name(request):
    return request.param


def seconds(name, variable):
    return int(environment(container(name))[variable]) / 1000


def leaving(name):
    """From the decision to end the pod to the end of its process, at the longest."""
    hook = container(name).get("lifecycle", {}).get("preStop", {})
    asleep = hook.get("sleep", {}).get("seconds", 0)
    assert hook.keys() <= {"sleep"}, "how long would it take?"
    delay = seconds(name, "NEURONA_DRAIN_DELAY_MS")
    return asleep + delay + seconds(name, "NEURONA_DRAIN_TIMEOUT_MS") + LEAVING


def test_it_is_not_killed_while_it_drains(name):
    spec = deployment(name)["spec"]["template"]["spec"]
    assert leaving(name) + 5 <= spec["terminationGracePeriodSeconds"]


def test_balancers_have_noticed_before_it_stops_to_accept(name):
    """Two looks of the readiness probe, though endpoints are told of SIGTERM without it."""
    readiness = container(name)["readinessProbe"]
    assert seconds(name, "NEURONA_DRAIN_DELAY_MS") >= 2 * readiness["periodSeconds"]


def test_liveness_kills_none_that_drains_or_is_busy(name):
    """Some kubelets probe on while a pod ends, and then health is NOT_SERVING."""
    liveness = container(name)["livenessProbe"]
    silence = liveness["periodSeconds"] * (liveness["failureThreshold"] - 1)
    assert silence > leaving(name)
    assert liveness["timeoutSeconds"] >= 10
    assert liveness["timeoutSeconds"] <= liveness["periodSeconds"]


def test_there_is_time_to_load(name):
    startup = container(name)["startupProbe"]
    loading = startup["periodSeconds"] * startup["failureThreshold"]
    assert loading >= 600
    spec = deployment(name)["spec"]
    assert loading + spec["minReadySeconds"] < spec["progressDeadlineSeconds"]


def test_a_rollout_takes_no_replica_before_there_is_another(name):
    rolling = deployment(name)["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0
    assert rolling["maxSurge"] >= 1


def test_every_probe_has_all_its_times(name):
    for kind, probe in probes(container(name)):
        assert {"periodSeconds", "failureThreshold", "timeoutSeconds"} <= probe.keys(), kind
