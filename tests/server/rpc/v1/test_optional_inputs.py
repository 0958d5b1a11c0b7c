"""An optional input is not by rows: every run of its request gets all of it."""

import numpy as np
import pytest

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy


@pytest.fixture
def ask(make_server, echoes):
    server = make_server(BatchPolicy(max_rows=16), root=echoes)
    # As where a device is quicker on the rows that it knows.
    server.registry.resolve("adjustable").batcher.padding._padded_sizes.update((4, 16))

    def ask(rows):
        values = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        inputs = [to_tensor("x", values), to_tensor("scale", np.array([10], np.float32))]
        request = PredictRequest(model="adjustable", inputs=inputs)
        response = server.prediction.Predict(request, timeout=20)
        return to_array(response.outputs[0]), values * 10

    return ask


# Alone, padded, as large as a batch, in several parts, of which the last is padded or not.
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 31, 100])
def test_rows_are_padded_and_sliced_but_an_optional_input_is_not(ask, rows):
    actual, expected = ask(rows)
    np.testing.assert_array_equal(actual, expected)
