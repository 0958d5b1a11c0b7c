import numpy as np
import onnxruntime
import pytest

from neurona_protos.prediction_pb2 import DataType
from neurona_server.batching.ranking import rank_rows
from neurona_server.models.onnx.class_ranker import ClassRanker
from neurona_server.models.onnx.runtime import CPU
from neurona_server.rpc.v1.responses import softmax

CLASSES = 3000
DTYPES = {DataType.DATA_TYPE_FLOAT: np.float32, DataType.DATA_TYPE_FLOAT16: np.float16}


def ranker(dtype=DataType.DATA_TYPE_FLOAT, *, logits=False):
    return ClassRanker(0, dtype, CPU, "cpu", 0, logits=logits)


def rank(one, values, count=5):
    return one.rank(onnxruntime.OrtValue.ortvalue_from_numpy(values), count)


def different_values(dtype=np.float32, rows=4):
    """Values of which no two in a row are equal, of either sign."""
    generator = np.random.default_rng(3)
    order = np.stack([generator.permutation(CLASSES) for _ in range(rows)])
    return ((order - CLASSES // 2) / 2**10).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logits", [False, True])
def test_the_best_classes_are_those_of_the_host(dtype, logits):
    values = different_values(DTYPES[dtype])
    ranked = rank(ranker(dtype, logits=logits), values)
    expected = rank_rows(-values, 5)
    assert (ranked.indices == expected).all()
    assert (ranked.values == np.take_along_axis(values, expected, axis=1)).all()
    assert ranked.values.dtype == values.dtype
    assert ranked.shape == values.shape
    if logits:
        probabilities = np.take_along_axis(softmax(values), expected, axis=1)
        np.testing.assert_allclose(ranked.softmax().values, probabilities, rtol=1e-5)
        np.testing.assert_allclose(ranked[1:3].softmax().values, probabilities[1:3], rtol=1e-5)
    else:
        with pytest.raises(ValueError, match="no totals"):
            ranked.softmax()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("logits", [False, True])
def test_values_that_are_not_finite_are_not_ranked(value, logits):
    values = different_values()
    values[2, 77] = value
    assert rank(ranker(logits=logits), values) is None
    assert rank(ranker(logits=logits), values[:2]) is not None


def test_equal_values_are_in_the_order_of_their_classes():
    values = different_values()
    values[:, [9, 500, 77]] = 7
    assert rank(ranker(), values, 3).indices[0].tolist() == [9, 77, 500]


def test_more_equal_values_than_are_wanted_are_not_ranked():
    """Those that some kernels of CUDA choose among them are not the first ones."""
    values = different_values()
    values[1, [9, 500, 77]] = 7
    assert rank(ranker(), values, 2) is None
    assert rank(ranker(), values, 3) is not None
    assert rank(ranker(), np.zeros((2, 5), np.float32), 4) is None
    assert rank(ranker(), np.zeros((2, 5), np.float32), 5).indices.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_more_classes_than_there_are():
    ranked = rank(ranker(logits=True), np.float32([[1, 3, 2]]), 100)
    assert ranked.indices.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(ranked.softmax().values.sum(), 1, rtol=1e-6)


def test_classes_of_equal_probabilities_are_in_the_order_of_the_host():
    """Logits far below the best one, and those that hardly differ, have equal probabilities."""
    values = np.full((2, CLASSES), -1000, np.float32)
    values[0, [70, 7, 60, 6]] = 0, -200, -150, -300
    values[1, [70, 60, 7, 6]] = 1e-8, 1e-9, 0, -50
    for count in (2, 3, 4):
        expected = rank_rows(-softmax(values), count)
        ranked = rank(ranker(logits=True), values[1:], count)
        if count == 2:  # of three that are equal
            assert ranked is None
        else:
            assert ranked.softmax().indices.tolist() == expected[1:].tolist()
            assert ranked.indices[0, :3].tolist() == [70, 60, 7]  # by the values themselves
        assert rank(ranker(logits=True), values, count) is None  # of all but one


def test_ranked_rows_are_no_array():
    with pytest.raises(TypeError, match="only the best classes"):
        np.asarray(rank(ranker(), different_values()))
