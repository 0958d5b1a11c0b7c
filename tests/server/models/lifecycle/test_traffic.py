"""A shadow gets copies: nobody waits for what it answers."""

import threading
import weakref

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.fakes import FakeRequest

from neurona_server.batching.batch import BatchOutputs, RowSlice
from neurona_server.models.lifecycle.traffic import Shadow
from neurona_server.models.model import Model
from neurona_server.models.options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics

X = np.ones((1, 4), np.float32)


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def models(repository, metrics):
    folder = repository / "classifier"
    return [
        Model(ModelSource("c", n, folder / str(n) / "model.onnx"), ModelOptions(), metrics)
        for n in (1, 2)
    ]


def answered():
    return FakeRequest({"x": X}, 1, ()), [np.zeros((1, 3), np.float32)]


def counted(metrics, outcome):
    labels = {"model": "c", "version": "2", "outcome": outcome}
    return metrics.registry.get_sample_value("neurona_shadow_requests_total", labels)


def test_a_shadow_that_stops_does_not_run_what_it_still_has(models, metrics, wait_until):
    of, to = models
    runs, running, goes_on = [], threading.Event(), threading.Event()
    session = to.sessions[0]
    run_with = session.run_with

    def wait_and_run(*arguments):
        runs.append(arguments)
        running.set()
        goes_on.wait(20)
        return run_with(*arguments)

    session.run_with = wait_and_run
    to.start()
    shadow = Shadow(of, to, 100)
    shadow(*answered())
    assert running.wait(20)
    for _ in range(500):
        shadow(*answered())
    drained = []
    drain = threading.Thread(target=lambda: drained.append(to.drain(20)))
    drain.start()
    wait_until(lambda: not to.copies)
    goes_on.set()
    drain.join()
    assert (drained, len(runs), counted(metrics, "refused")) == ([True], 1, 501)


def test_the_answer_that_is_kept_for_comparison_counts_as_bytes_that_wait(models):
    of, to = models
    shadow = Shadow(of, to, 100)
    request, _ = answered()
    shadow(request, [np.zeros(1000)])
    (copy,) = to.copies
    assert copy.nbytes >= request.nbytes + 8000


def test_only_the_answer_itself_is_kept_not_its_batch(models):
    of, to = models
    request, _ = answered()
    whole = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    batch = weakref.ref(whole)
    Shadow(of, to, 100)(request, RowSlice(BatchOutputs([whole]), 5, 1))
    del whole
    assert batch() is None
    assert len(to.copies) == 1


def test_a_version_that_is_gone_is_not_counted_again(models, metrics):
    of, to = models
    shadow = Shadow(of, to, 100)
    to.batcher.close()
    shadow(*answered())
    assert counted(metrics, "refused") == 1
    to.close()
    shadow(*answered())
    assert counted(metrics, "refused") is None
