"""A transport that runs a model inline reads requests between two batches, and continues with the
requests that are left."""

import numpy as np
import pytest

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching import inline_scheduler
from neurona_server.batching.inline import InlineRunner
from neurona_server.batching.policy import BatchPolicy


@pytest.fixture
def single_batches(monkeypatch):
    """Every batch takes the whole time limit, and the instances get none. Returns what
    `run_batches` returned: whether requests are left."""
    monkeypatch.setattr(inline_scheduler, "MAX_INLINE_SECONDS", 1e-9)
    monkeypatch.setattr(InlineRunner, "_is_short", lambda *_: True)
    results = []
    run_batches = InlineRunner.run_batches

    def recorded(self, process, end):
        results.append(run_batches(self, process, end))
        return results[-1]

    monkeypatch.setattr(InlineRunner, "run_batches", recorded)
    return results


def test_remaining_requests_are_run_without_further_events(make_server, single_batches, wait_until):
    server = make_server(BatchPolicy(inline=True, max_rows=1))
    futures = []
    for value in range(100):
        tensor = to_tensor("series", np.array([[value, 1.0]], np.float32))
        request = PredictRequest(model="regressor", inputs=[tensor])
        futures.append(server.prediction.Predict.future(request, timeout=20))
    sums = [future.result().regression.rows[0].values[0] for future in futures]
    assert sums == [value + 1 for value in range(100)]
    assert True in single_batches  # several requests waited at least once
    wait_until(lambda: not single_batches[-1])  # the last one returns after its response
