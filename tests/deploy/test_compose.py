"""deploy/compose.yaml, running: make test-compose. Without Grafana, whose image is missing."""

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

pytestmark = pytest.mark.timeout(3600)  # includes building the images


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


def test_the_sample_models_are_trained_and_served(single):
    digits = RECIPES["lenet5"].load()
    with grpc.insecure_channel(single.address) as channel:
        served = {model.model for model in ModelsStub(channel).List(ListModelsRequest()).models}
        images = to_tensor("image", digits.test.inputs[:50])
        request = PredictRequest(model="lenet5", inputs=[images])
        rows = PredictionStub(channel).Predict(request, timeout=10).classification.rows
    assert served == {"lenet5", "lstm", "rnn"}
    truths = [digits.labels[target] for target in digits.test.targets[:50]]
    assert sum(truth == row.labels[0] for truth, row in zip(truths, rows, strict=True)) >= 45


def test_prometheus_scrapes_the_server(single):
    with Load(single.address) as load:
        load.wait_for(20)
    until(lambda: servers_up(single) == 1)

    def series():
        query = 'query?query=neurona_requests_total{model="rnn"}>0'
        return prometheus(single, query)["result"]

    assert until(series)


def test_the_container_is_read_only_and_has_no_privileges(single, engine):
    (container,) = single.servers()

    def inside(script):
        return engine.docker("exec", container, "sh", "-c", script, check=False)

    for place in ("/here", "/opt/neurona/here", "/models/here"):
        touch = inside(f"touch {place}")
        assert touch.returncode != 0
        assert "Read-only file system" in touch.stderr
    assert inside("touch /tmp/here /cache/here").returncode == 0
    assert inside("id -u; id -g").stdout.split() == ["10001", "10001"]
    # The server is the first process.
    status = dict(line.split(":\t", 1) for line in inside("cat /proc/1/status").stdout.splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert b"neurona-serve" in inside("cat /proc/1/cmdline").stdout.encode()


def test_no_call_fails_when_a_new_version_takes_over(single):
    with Load(single.address) as load:
        load.wait_for(50, version=1)
        copy = "cp -r /models/rnn/1 /tmp/2 && cp -r /tmp/2 /models/rnn/2"
        single("run", "--rm", "--entrypoint", "sh", "models", "-c", copy)
        load.wait_for(50, version=2)
        single("run", "--rm", "--entrypoint", "sh", "models", "-c", "rm -r /models/rnn/2")
        load.wait_for(1)  # of version 1
    assert load.failures == []


def test_a_stopping_server_reports_it_drains_and_exits_with_0(single, engine):
    (container,) = single.servers()
    assert engine.docker("exec", container, "neurona", "health").stdout == "SERVING\n"
    with Load(single.address, threads=2) as load:
        load.wait_for(10)
        # Like `compose stop`, without waiting: it serves for NEURONA_DRAIN_DELAY_MS, NOT_SERVING.
        engine.docker("kill", "--signal", "TERM", container)

        def unready():
            command = ("exec", container, "neurona", "health", "--address", "127.0.0.1:8001")
            return engine.docker(*command, check=False)

        health = until(lambda: (one := unready()).returncode and one, every=0.05)
        assert (health.returncode, health.stdout) == (1, "NOT_SERVING\n")
        load.wait_for(10)
        assert load.failures == []
    until(lambda: engine.inspect(container, ".State.Running") == "false")
    assert engine.inspect(container, ".State.ExitCode") == "0"


def test_no_call_fails_when_a_replica_is_killed(scaled, engine):
    assert len(scaled.servers()) == 3
    with Load(scaled.address) as load:
        load.wait_for(200)
        victim = scaled.servers()[0]
        process = int(engine.inspect(victim, ".State.Pid"))
        # Like the out-of-memory killer, without a signal to Docker, which restarts it.
        os.kill(process, signal.SIGKILL)
        load.wait_for(200)
        until(lambda: engine.inspect(victim, ".RestartCount") == "1" and scaled.healthy(victim))
        load.wait_for(200)
    print(f"{load.responses.total()} responses, {len(load.failures)} failures")
    assert load.failures == []


def test_no_call_fails_when_replicas_are_restarted_one_by_one(scaled, engine):
    with Load(scaled.address) as load:
        for container in scaled.servers():
            load.wait_for(100)
            engine.docker("restart", "-t", "45", container)
            until(lambda container=container: scaled.healthy(container))
        load.wait_for(100)
    print(f"{load.responses.total()} responses, {len(load.failures)} failures")
    assert load.failures == []


def test_calls_are_balanced_over_all_replicas(scaled):
    until(lambda: servers_up(scaled) == 3)
    with Load(scaled.address) as load:
        # Targets are scraped every 15 s.
        query = 'query?query=count(rate(neurona_requests_total{model="rnn"}[1m])>0)'
        until(lambda: [r["value"][1] for r in prometheus(scaled, query)["result"]] == ["3"])
    assert load.failures == []
