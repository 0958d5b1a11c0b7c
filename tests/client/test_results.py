"""Rows of a result: outputs whose first axes agree, and others."""

import numpy as np
import pytest

from neurona_client import Prediction
from neurona_protos.prediction_pb2 import PredictResponse
from neurona_protos.tensors import to_tensor


def result_of(*arrays, **options):
    tensors = [to_tensor(f"o{number}", np.asarray(one)) for number, one in enumerate(arrays)]
    return Prediction(PredictResponse(model="m", version=1, outputs=tensors), **options)


def test_outputs_with_the_same_first_axis_are_split_into_rows():
    result = result_of([[1, 2], [3, 4]], ["a", "b"])
    assert len(result) == 2
    assert [row.outputs["o0"].tolist() for row in result] == [[1, 2], [3, 4]]
    assert [row.outputs["o1"] for row in result] == ["a", "b"]


def test_outputs_whose_first_axes_differ_are_one_row():
    """As of a recurrent network, whose state has the axes layer, batch, unit."""
    answer, state = np.ones((1, 3), np.float32), np.ones((2, 1, 4), np.float32)
    result = result_of(answer, state)
    assert len(result) == 1
    for one in (result, result[0], next(iter(result)), *result[:]):
        assert one.outputs["o0"].shape == (1, 3)
        assert one.outputs["o1"].shape == (2, 1, 4)


def test_of_one_sample_only_the_batch_axis_is_dropped():
    answer, state = np.ones((1, 3), np.float32), np.ones((2, 1, 4), np.float32)
    result = result_of(answer, state, is_sample=True)
    assert len(result) == 1
    for one in (result, result[0]):
        assert one.outputs["o0"].shape == (3,)
        assert one.outputs["o1"].shape == (2, 1, 4)


@pytest.mark.parametrize(("arrays", "rows"), [([], 0), ([3.0], 1), ([np.zeros((0, 2))], 0)])
def test_results_without_rows(arrays, rows):
    result = result_of(*arrays)
    assert len(result) == rows == len(list(result))


def test_a_scalar_belongs_to_each_row():
    result = result_of([[1.0], [2.0]], 7.0)
    assert [row.outputs["o1"].tolist() for row in result] == [7.0, 7.0]
