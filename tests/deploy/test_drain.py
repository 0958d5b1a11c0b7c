"""The manifests give a replica enough time to start, drain and exit."""

import pytest
from support.manifests import OVERLAYS, container, deployment, environment, probes

from neurona_server.processes.supervisor import EXIT_SECONDS


@pytest.fixture(params=OVERLAYS)
def name(request):
    return request.param


def seconds(name, variable):
    return int(environment(container(name))[variable]) / 1000


def longest_termination(name):
    """Seconds from the pod's deletion to the exit of its process, at most."""
    hook = container(name).get("lifecycle", {}).get("preStop", {})
    sleep = hook.get("sleep", {}).get("seconds", 0)
    assert hook.keys() <= {"sleep"}, "unknown duration"
    delay = seconds(name, "NEURONA_DRAIN_DELAY_MS")
    return sleep + delay + seconds(name, "NEURONA_DRAIN_TIMEOUT_MS") + EXIT_SECONDS


def test_a_draining_pod_is_not_killed(name):
    spec = deployment(name)["spec"]["template"]["spec"]
    assert longest_termination(name) + 5 <= spec["terminationGracePeriodSeconds"]


def test_load_balancers_notice_before_the_port_closes(name):
    """After two readiness probes, though SIGTERM alone already removes the endpoint."""
    readiness = container(name)["readinessProbe"]
    assert seconds(name, "NEURONA_DRAIN_DELAY_MS") >= 2 * readiness["periodSeconds"]


def test_liveness_does_not_kill_a_draining_or_busy_pod(name):
    """Some kubelets keep probing a terminating pod, whose health is NOT_SERVING."""
    liveness = container(name)["livenessProbe"]
    tolerated = liveness["periodSeconds"] * (liveness["failureThreshold"] - 1)
    assert tolerated > longest_termination(name)
    assert liveness["timeoutSeconds"] >= 10
    assert liveness["timeoutSeconds"] <= liveness["periodSeconds"]


def test_the_startup_probe_gives_enough_time_to_load(name):
    startup = container(name)["startupProbe"]
    loading = startup["periodSeconds"] * startup["failureThreshold"]
    assert loading >= 600
    spec = deployment(name)["spec"]
    assert loading + spec["minReadySeconds"] < spec["progressDeadlineSeconds"]


def test_a_rollout_stops_no_replica_before_another_serves(name):
    rolling = deployment(name)["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxUnavailable"] == 0
    assert rolling["maxSurge"] >= 1


def test_every_probe_sets_its_times(name):
    for kind, probe in probes(container(name)):
        assert {"periodSeconds", "failureThreshold", "timeoutSeconds"} <= probe.keys(), kind
