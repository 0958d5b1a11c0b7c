"""Shadows get copies of requests whose outputs are only compared."""

import threading
import weakref

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.fakes import FakeRequest

from neurona_server.batching.batch import BatchOutputs, RowSlice
from neurona_server.models.lifecycle.traffic import Shadow
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.sequences.form import SequenceForm
from neurona_server.sequences.ragged import LengthGrouper
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


def answered_request():
    return FakeRequest({"x": X}, 1, ()), [np.zeros((1, 3), np.float32)]


def shadow_count(metrics, outcome):
    labels = {"model": "c", "version": "2", "outcome": outcome}
    return metrics.registry.get_sample_value("neurona_shadow_requests_total", labels)


def test_draining_shadow_rejects_its_queued_copies(models, metrics, wait_until):
    primary, target = models
    runs, running, released = [], threading.Event(), threading.Event()
    session = target.sessions[0]
    run_with_options = session.run_with_options

    def wait_and_run(*arguments):
        runs.append(arguments)
        running.set()
        released.wait(20)
        return run_with_options(*arguments)

    session.run_with_options = wait_and_run
    target.start()
    shadow = Shadow(primary, target, 100)
    shadow(*answered_request())
    assert running.wait(20)
    for _ in range(500):
        shadow(*answered_request())
    drained = []
    drain = threading.Thread(target=lambda: drained.append(target.drain(20)))
    drain.start()
    wait_until(lambda: not target.copies)
    released.set()
    drain.join()
    assert (drained, len(runs), shadow_count(metrics, "rejected")) == ([True], 1, 501)


def test_outputs_kept_for_comparison_count_as_queued_bytes(models):
    primary, target = models
    shadow = Shadow(primary, target, 100)
    request, _ = answered_request()
    shadow(request, [np.zeros(1000)])
    (copy,) = target.copies
    assert copy.nbytes >= request.nbytes + 8000


def test_only_the_rows_of_the_request_are_kept_not_the_batch(models):
    primary, target = models
    request, _ = answered_request()
    batch_output = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    batch = weakref.ref(batch_output)
    Shadow(primary, target, 100)(request, RowSlice(BatchOutputs([batch_output]), 5, 1))
    del batch_output
    assert batch() is None
    assert len(target.copies) == 1


def test_closed_shadow_leaves_no_metric_series(models, metrics):
    primary, target = models
    shadow = Shadow(primary, target, 100)
    target.batcher.close()
    shadow(*answered_request())
    assert shadow_count(metrics, "rejected") == 1
    target.close()
    shadow(*answered_request())
    assert shadow_count(metrics, "rejected") is None


def test_a_shadow_that_does_not_take_the_shape_of_a_request_counts_it_as_rejected(models, metrics):
    primary, target = models
    target.signature.group_sequences = LengthGrouper(SequenceForm({"x": 1}), ["x"])
    shadow = Shadow(primary, target, 100)
    shadow(FakeRequest({"x": X[:, :0]}, 1, ()), [np.zeros((1, 3), np.float32)])
    assert shadow_count(metrics, "rejected") == 1
    assert not target.copies
