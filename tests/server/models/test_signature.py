import pytest

from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import InvalidArgumentError
from neurona_server.models.signature import Signature, TensorSpec

FLOAT, DOUBLE = DataType.DATA_TYPE_FLOAT, DataType.DATA_TYPE_DOUBLE
INT64 = DataType.DATA_TYPE_INT64


@pytest.fixture
def signature():
    inputs = [
        TensorSpec("tokens", INT64, ("batch", "time")),
        TensorSpec("mask", FLOAT, ("batch", "time")),
        TensorSpec("table", FLOAT, (None, 3)),
    ]
    return Signature(inputs, [], batched=True)


def inputs(rows=2, time=5, **other):
    return {
        "tokens": (INT64, (rows, time)),
        "mask": (FLOAT, (rows, time)),
        "table": (FLOAT, (rows, 3)),
        **other,
    }


def test_check_returns_the_number_of_rows(signature):
    assert signature.check(inputs(rows=7)) == 7


def test_requests_share_a_group_when_only_their_rows_differ(signature):
    assert signature.group(inputs(rows=1)) == signature.group(inputs(rows=9))
    assert signature.group(inputs(time=5)) != signature.group(inputs(time=6))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"x": (FLOAT, (1,))},
            r"inputs 'tokens', 'mask', 'table', 'x' \(expected 'tokens' \(INT64",
        ),
        ({"mask": (DOUBLE, (2, 5))}, r"'mask' is DOUBLE of shape \[2, 5\] \(expected FLOAT of"),
        ({"mask": (FLOAT, (2,))}, r"'mask' is FLOAT of shape \[2\] \(expected .*\[batch,"),
        ({"table": (FLOAT, (2, 4))}, r"'table' is .*\[2, 4\] \(.*shape \[\?, 3\]"),
        ({"mask": (FLOAT, (2, 6))}, r"its 'time' is 6, that of another input 5"),
        ({"table": (FLOAT, (3, 3))}, r"'table' has 3 rows, input 'tokens' has 2"),
        ({"table": (FLOAT, ())}, r"'table' is FLOAT of shape \[\] \(expected"),
    ],
)
def test_wrong_input_is_rejected_by_name(signature, other, message):
    with pytest.raises(InvalidArgumentError, match=message):
        signature.check(inputs(**other))


def test_missing_input_is_named(signature):
    with pytest.raises(InvalidArgumentError, match=r"inputs none \(expected 'tokens'"):
        signature.check({})


def test_empty_batch_is_rejected(signature):
    with pytest.raises(InvalidArgumentError, match=r"'tokens' is INT64 of shape \[0, 5\]"):
        signature.check(inputs(rows=0))


def test_negative_size_is_rejected(signature):
    with pytest.raises(InvalidArgumentError, match=r"'tokens' is INT64 of shape \[-1, 5\]"):
        signature.check(inputs(rows=-1))


def test_any_name_is_quoted_and_shortened(signature):
    with pytest.raises(InvalidArgumentError) as caught:
        signature.check({"\n" * 100_000: (FLOAT, (1,))})
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_sequence_without_steps_is_rejected(signature):
    with pytest.raises(InvalidArgumentError, match=r"shape \[2, 0\]"):
        signature.check(inputs(time=0))


def test_model_without_a_batch_axis_has_one_row():
    signature = Signature([TensorSpec("x", FLOAT, ())], [], batched=False)
    assert signature.check({"x": (FLOAT, ())}) == 1
