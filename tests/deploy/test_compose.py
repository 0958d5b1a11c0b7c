"""deploy/compose.yaml brought up: make test-compose. Grafana is left out, its image is not here."""

import json
import os
import signal
import urllib.request

import grpc
import pytest
from support.compose_project import Load, Project
from support.docker_engine import until

from neurona_client import PredictionStub, PredictRequest, to_tensor
from neurona_protos.prediction_pb2 import ListModelsRequest
from neurona_protos.prediction_pb2_grpc import ModelsStub
from neurona_training.recipes import RECIPES

pytestmark = pytest.mark.timeout(3600)  # with the images to build


@pytest.fixture(scope="module")
def project(engine, images):
    project = Project(engine, images)
    try:
        yield project
    finally:
        project.down()


@pytest.fixture(scope="module")
def single(project):
    project.up("cpu")
    return project


@pytest.fixture(scope="module")
def scaled(project):
    project.up("scale")
    return project


def prometheus(project, path):
    with urllib.request.urlopen(f"http://{project.prometheus}/api/v1/{path}") as page:
        return json.load(page)["data"]


def servers_up(project):
    targets = prometheus(project, "targets")["activeTargets"]
    return sum(t["labels"]["job"] == "neurona" and t["health"] == "up" for t in targets)


def test_the_sample_models_were_trained_and_are_served(single):
    digits = RECIPES["lenet5"].load()
    with grpc.insecure_channel(single.address) as channel:
        served = {model.model for model in ModelsStub(channel).List(ListModelsRequest()).models}
        images = to_tensor("image", digits.test.inputs[:50])
        request = PredictRequest(model="lenet5", inputs=[images])
        rows = PredictionStub(channel).Predict(request, timeout=10).classification.rows
    assert served == {"lenet5", "lstm", "rnn"}
    truths = [digits.labels[target] for target in digits.test.targets[:50]]
    assert sum(truth == row.labels[0] for truth, row in zip(truths, rows, strict=True)) >= 45


def test_prometheus_has_the_server_and_its_series(single):
    with Load(single.address) as load:
        load.wait_for(20)
    until(lambda: servers_up(single) == 1)

    def counted():
        query = 'query?query=neurona_requests_total{model="rnn"}>0'
        return prometheus(single, query)["result"]

    assert until(counted)


def test_nothing_in_the_container_can_be_written_or_gained(single, engine):
    (container,) = single.servers()

    def inside(script):
        return engine.docker("exec", container, "sh", "-c", script, check=False)

    for place in ("/here", "/opt/neurona/here", "/models/here"):
        refused = inside(f"touch {place}")
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stderr
    assert inside("touch /tmp/here /cache/here").returncode == 0
    assert inside("id -u; id -g").stdout.split() == ["10001", "10001"]
    # Of the server itself, which is the first process.
    status = dict(line.split(":\t", 1) for line in inside("cat /proc/1/status").stdout.splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert b"neurona-serve" in inside("cat /proc/1/cmdline").stdout.encode()


def test_a_new_version_in_the_volume_takes_over_and_no_call_is_lost(single):
    with Load(single.address) as load:
        load.wait_for(50, version=1)
        copy = "cp -r /models/rnn/1 /tmp/2 && cp -r /tmp/2 /models/rnn/2"
        single("run", "--rm", "--entrypoint", "sh", "models", "-c", copy)
        load.wait_for(50, version=2)
        single("run", "--rm", "--entrypoint", "sh", "models", "-c", "rm -r /models/rnn/2")
        load.wait_for(1)  # from what is left
    assert load.failures == []


def test_a_server_that_stops_says_so_drains_and_ends_with_0(single, engine):
    (container,) = single.servers()
    assert engine.docker("exec", container, "neurona", "health").stdout == "SERVING\n"
    with Load(single.address, threads=2) as load:
        load.wait_for(10)
        # As `compose stop`, without waiting: for NEURONA_DRAIN_DELAY_MS it serves on, and says no.
        engine.docker("kill", "--signal", "TERM", container)

        def unready():
            health = ("exec", container, "neurona", "health", "--address", "127.0.0.1:8001")
            return engine.docker(*health, check=False)

        answer = until(lambda: (one := unready()).returncode and one, every=0.05)
        assert (answer.returncode, answer.stdout) == (1, "NOT_SERVING\n")
        load.wait_for(10)
        assert load.failures == []
    until(lambda: engine.inspect(container, ".State.Running") == "false")
    assert engine.inspect(container, ".State.ExitCode") == "0"


def test_a_replica_that_is_killed_and_comes_back_loses_no_call(scaled, engine):
    assert len(scaled.servers()) == 3
    with Load(scaled.address) as load:
        load.wait_for(200)
        victim = scaled.servers()[0]
        process = int(engine.inspect(victim, ".State.Pid"))
        # From outside and at once, as a machine's memory would end it: Docker starts it again.
        os.kill(process, signal.SIGKILL)
        load.wait_for(200)
        until(lambda: engine.inspect(victim, ".RestartCount") == "1" and scaled.healthy(victim))
        load.wait_for(200)
    print(f"{load.answers.total()} answers, {len(load.failures)} failures")
    assert load.failures == []


def test_replicas_restarted_one_after_the_other_lose_no_call(scaled, engine):
    with Load(scaled.address) as load:
        for container in scaled.servers():
            load.wait_for(100)
            engine.docker("restart", "-t", "45", container)
            until(lambda container=container: scaled.healthy(container))
        load.wait_for(100)
    print(f"{load.answers.total()} answers, {len(load.failures)} failures")
    assert load.failures == []


def test_calls_are_spread_over_all_replicas(scaled):
    until(lambda: servers_up(scaled) == 3)
    with Load(scaled.address) as load:
        # Each target is scraped every 15 s.
        query = 'query?query=count(rate(neurona_requests_total{model="rnn"}[1m])>0)'
        until(lambda: [r["value"][1] for r in prometheus(scaled, query)["result"]] == ["3"])
    assert load.failures == []
