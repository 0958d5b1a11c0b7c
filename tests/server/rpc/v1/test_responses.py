"""The bytes of a response are those that protobuf would have written."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurona_protos.prediction_pb2 import (
    Classification,
    ClassificationRow,
    DataType,
    ModelMetadata,
    PredictResponse,
    Regression,
    RegressionRow,
    Task,
    ValueDescription,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_protos.wire_format import header, varint
from neurona_server.batching.batch import BatchOutputs, RowSlice
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.v1 import responses
from neurona_server.rpc.v1.responses import ResponseEncoder, softmax

LABELS = ["ant", "bee", "", "Zürich", "x" * 200]
FLOATS = [np.float16, np.float32, np.float64]


class FakeModel(SimpleNamespace):
    """One that caches can hold weakly."""

    __hash__ = object.__hash__


def model_of(task, *outputs, softmax=False, labels=LABELS, units=()):
    values = [ValueDescription(name=unit, unit=unit) for unit in units]
    return FakeModel(
        name="m",
        version=7,
        softmax=softmax,
        answer=0,
        metadata=ModelMetadata(task=task, labels=labels, values=values),
        signature=SimpleNamespace(outputs=[TensorSpec(n, d, ()) for n, d in outputs]),
    )


def parts(outputs, sizes):
    batch, start = BatchOutputs(outputs), 0
    for size in sizes:
        yield slice(start, start + size), RowSlice(batch, start, size)
        start += size


def classified(probabilities, top_k):
    """By protobuf, row by row."""
    rows = []
    for row in probabilities:
        ranked = np.where(np.isnan(row), -np.inf, row)
        best = np.argsort(-ranked, kind="stable")[:top_k].tolist()
        names = [LABELS[i] if i < len(LABELS) else str(i) for i in best]
        values = [np.float32(row[i]) for i in best]
        rows.append(ClassificationRow(labels=names, indices=best, probabilities=values))
    return PredictResponse(model="m", version=7, classification=Classification(rows=rows))


def arrays(columns):
    return st.sampled_from(FLOATS).flatmap(
        lambda dtype: hnp.arrays(dtype, st.tuples(st.integers(1, 9), columns))
    )


SIZES = st.lists(st.integers(1, 3), min_size=9, max_size=9)


@settings(max_examples=100, deadline=None)
@given(arrays(st.integers(1, 7)), SIZES, st.integers(1, 9))
def test_a_classification_of_a_batch_is_written_by_row(probabilities, sizes, top_k):
    writer = ResponseEncoder(model_of(Task.TASK_CLASSIFICATION, ("p", DataType.DATA_TYPE_FLOAT)))
    with np.errstate(over="ignore"):
        for rows, part in parts([probabilities], sizes):
            if rows.stop > len(probabilities):
                break
            encoded = writer.write(part, top_k, raw_outputs=False)
            assert encoded == classified(probabilities[rows], top_k).SerializeToString()
        encoded_batch = writer.write([probabilities], top_k, raw_outputs=False)
        assert encoded_batch == classified(probabilities, top_k).SerializeToString()


@pytest.mark.parametrize(
    ("wishes", "most"),
    [(range(2, 22), 20), ([2] * 20, 21), ([2, 3] * 10, 2 + 20 + 10)],
    ids=["all differ", "all alike", "half and half"],
)
def test_different_options_do_not_each_cost_a_whole_batch(monkeypatch, wishes, most):
    sorted_rows = []
    write = responses.class_rows

    def counted(probabilities, labels, top_k):
        sorted_rows.extend(probabilities)
        return write(probabilities, labels, top_k)

    monkeypatch.setattr(responses, "class_rows", counted)
    writer = ResponseEncoder(model_of(Task.TASK_CLASSIFICATION, ("p", DataType.DATA_TYPE_FLOAT)))
    probabilities = np.arange(20 * 5, dtype=np.float32).reshape(20, 5) % 7
    for (rows, part), top_k in zip(parts([probabilities], [1] * 20), wishes, strict=True):
        encoded = writer.write(part, top_k, raw_outputs=False)
        assert encoded == classified(probabilities[rows], top_k).SerializeToString()
    assert len(sorted_rows) <= most


@settings(max_examples=100, deadline=None)
@given(arrays(st.integers(1, 3)), SIZES)
def test_a_regression_of_a_batch_is_written_by_row(values, sizes):
    units = ["kg", "m"]
    writer = ResponseEncoder(
        model_of(Task.TASK_REGRESSION, ("v", DataType.DATA_TYPE_FLOAT), units=units)
    )
    described = [ValueDescription(name=unit, unit=unit) for unit in units]
    for rows, part in parts([values], sizes):
        if rows.stop > len(values):
            break
        regression = Regression(
            values=described, rows=[RegressionRow(values=row) for row in values[rows].tolist()]
        )
        expected = PredictResponse(model="m", version=7, regression=regression).SerializeToString()
        assert writer.write(part, 1, raw_outputs=False) == expected
    flat = writer.write([values[:, 0]], 1, raw_outputs=False)
    assert len(PredictResponse.FromString(flat).regression.rows) == len(values)


def test_raw_outputs_follow_the_answer_and_are_alone_without_a_task():
    outputs = [
        np.array([[0.25, 0.75]], np.float32),
        np.array([["a", "é"]], object),
        np.array(3.0),
        np.zeros((0, 2), np.int64),
    ]
    specs = [
        ("p", DataType.DATA_TYPE_FLOAT),
        ("s", DataType.DATA_TYPE_STRING),
        ("scalar", DataType.DATA_TYPE_DOUBLE),
        ("empty", DataType.DATA_TYPE_INT64),
    ]
    tensors = [to_tensor(n, a, d) for (n, d), a in zip(specs, outputs, strict=True)]
    classification = classified(outputs[0], 1).classification
    for task, expected in (
        (Task.TASK_CLASSIFICATION, PredictResponse(classification=classification, outputs=tensors)),
        (Task.TASK_TENSORS, PredictResponse(outputs=tensors)),
    ):
        expected.model, expected.version = "m", 7
        encoded = ResponseEncoder(model_of(task, *specs)).write(outputs, 1, raw_outputs=True)
        assert encoded == expected.SerializeToString()
    assert to_array(PredictResponse.FromString(encoded).outputs[1]).tolist() == [["a", "é"]]


def test_logits_become_probabilities_in_any_batch():
    logits = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    specs = ("p", DataType.DATA_TYPE_FLOAT)
    writer = ResponseEncoder(model_of(Task.TASK_CLASSIFICATION, specs, softmax=True))
    expected = classified(softmax(logits), 1)
    ((_, first), (_, second)) = parts([logits], [1, 1])
    rows = [writer.write(part, 1, raw_outputs=False) for part in (first, second)]
    for row, expected_row in zip(rows, expected.classification.rows, strict=True):
        assert PredictResponse.FromString(row).classification.rows[0] == expected_row


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**32, 2**64 - 1])
def test_varints_are_those_of_protobuf(number):
    from neurona_protos.prediction_pb2 import StreamedRequest

    encoded = StreamedRequest(id=number).SerializeToString()
    assert encoded == (b"\x08" + varint(number) if number else b"")


def test_a_prefix_is_tag_and_length():
    assert header(1, 5) == b"\x0a\x05"
    assert header(16, 5) == b"\x82\x01\x05"
    assert header(1, 300) == b"\x0a\xac\x02"
