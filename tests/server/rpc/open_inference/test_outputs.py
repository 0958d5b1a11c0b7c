import numpy as np
import pytest
from support.triton_requests import arrays, request

from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import InvalidArgumentError
from neurona_server.rpc.open_inference.outputs import rank_classes

FLOAT = DataType.DATA_TYPE_FLOAT


def rank(server, message, name, count):
    message.outputs.add(name=name).parameters["classification"].int64_param = count
    (tensor,) = (response := server.triton.ModelInfer(message, timeout=10)).outputs
    assert tensor.datatype == "BYTES"
    return arrays(response)[name]


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (2, 2), (1000, 3)])
def test_the_best_classes_of_each_row_have_labels_and_exact_values(server, count, classes):
    rows = [[1, 2, 3, 4], [-4, -3, -2, -1]]
    (probabilities,) = arrays(
        server.triton.ModelInfer(request("classifier", "1", x=("FP32", rows)), timeout=10)
    ).values()
    texts = rank(server, request("classifier", "1", x=("FP32", rows)), "probabilities", count)
    assert texts.shape == (2, classes)
    for row, row_texts in zip(probabilities, texts, strict=True):
        order = np.argsort(-row, kind="stable")[:classes]
        for index, text in zip(order, row_texts, strict=True):
            value, number, label = text.decode().split(":")
            assert np.float32(value) == row[index]  # exactly
            assert int(number) == index
            assert label == ("ant", "bee", "cat")[index]


def test_outputs_without_labels_and_with_one_class(server, echo_server):
    texts = rank(server, request("picker", index=("INT64", [3, 1])), "picked", 5)
    assert texts.tolist() == [[b"30.0:0"], [b"10.0:0"]]
    texts = rank(echo_server, request("echo_UINT8", x=("UINT8", [[0, 255, 7, 255]])), "echo", 3)
    assert texts.tolist() == [[b"255:1", b"255:3", b"7:2"]]


def test_a_model_without_a_batch_axis_has_one_row_of_classes(server):
    texts = rank(server, request("fixed", x=("FP32", [[1, 2]])), "twice", 2)
    assert texts.tolist() == [b"4.0:1", b"2.0:0"]


@pytest.mark.parametrize("kind", ["BYTES", "BOOL"])
def test_outputs_that_cannot_be_ranked_are_rejected(echo_server, rejection, kind):
    message = request(f"echo_{kind}", x=(kind, [[b"a" if kind == "BYTES" else True]]))
    message.outputs.add(name="echo").parameters["classification"].int64_param = 1
    code, text = rejection(echo_server.triton.ModelInfer, message)
    assert code == "INVALID_ARGUMENT"
    assert f"unsupported type {kind!r}: output 'echo' (expected numbers for parameter" in text


@pytest.mark.parametrize(
    ("array", "dtype", "expected"),
    [
        (np.array([[1, np.nan, 3, -np.inf]], "f4"), FLOAT, ["3.0:2", "1.0:0", "-inf:3", "nan:1"]),
        (np.array([[-128, 127, 0]], "i1"), DataType.DATA_TYPE_INT8, ["127:1", "0:2", "-128:0"]),
        (np.array([[0, 2**64 - 1]], "u8"), DataType.DATA_TYPE_UINT64, [f"{2**64 - 1}:1", "0:0"]),
        (np.array([[0x3F80, 0x4000]], "u2"), DataType.DATA_TYPE_BFLOAT16, ["2.0:1", "1.0:0"]),
        (np.array([[0.1, 0.2]], "f2"), DataType.DATA_TYPE_FLOAT16, ["0.2:1", "0.1:0"]),
        (np.array([[[1, 2], [3, 0]]], "f4"), FLOAT, ["3.0:2", "2.0:1", "1.0:0", "0.0:3"]),
        (np.zeros((1, 0), "f4"), FLOAT, []),
    ],
)
def test_numbers_of_every_dtype_are_ranked(array, dtype, expected):
    ranked = rank_classes("y", array, dtype, 10, (), has_batch_axis=True)
    assert ranked.tolist() == [expected]


def test_too_many_results_are_rejected():
    with pytest.raises(
        InvalidArgumentError, match=r"1001 rows of 100 classes \(expected at most 100000"
    ):
        rank_classes("y", np.zeros((1001, 2000), "f4"), FLOAT, 100, (), has_batch_axis=True)
