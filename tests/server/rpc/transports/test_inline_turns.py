"""A transport that runs models itself reads between two batches, and comes back for what is
left."""

import numpy as np
import pytest

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching import batcher
from neurona_server.batching.batcher import Inline
from neurona_server.batching.policy import BatchPolicy


@pytest.fixture
def hasty(monkeypatch):
    """Every batch takes all the time that there is, and the instances get none."""
    monkeypatch.setattr(batcher, "LONGEST_INLINE", 1e-9)
    monkeypatch.setattr(Inline, "_next_seconds", lambda _: 0.0)
    left = []
    serve = Inline.serve

    def noted(self, process):
        left.append(serve(self, process))
        return left[-1]

    monkeypatch.setattr(Inline, "serve", noted)
    return left


def test_what_is_left_is_answered_although_nothing_more_comes(make_server, hasty):
    server = make_server(BatchPolicy(inline=True, max_rows=1))
    futures = []
    for value in range(100):
        tensor = to_tensor("series", np.array([[value, 1.0]], np.float32))
        request = PredictRequest(model="regressor", inputs=[tensor])
        futures.append(server.prediction.Predict.future(request, timeout=20))
    sums = [future.result().regression.rows[0].values[0] for future in futures]
    assert sums == [value + 1 for value in range(100)]
    assert True in hasty  # several waited at least once
    assert not hasty[-1]
