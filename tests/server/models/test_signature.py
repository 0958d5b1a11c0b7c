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


def test_only_the_batch_axis_needs_a_row(signature):
    assert signature.check(inputs(time=0)) == 2
    with pytest.raises(InvalidArgumentError, match=r"\[0, 5\]: it has no row \(expected 1 row"):
        signature.check(inputs(rows=0))
    specs = [TensorSpec("x", FLOAT, ("time", 2)), TensorSpec("z", FLOAT, (None, 0))]
    unbatched = Signature(specs, [], batched=False)
    assert unbatched.check({"x": (FLOAT, (0, 2)), "z": (FLOAT, (3, 0))}) == 1
    with pytest.raises(InvalidArgumentError, match=r"\[3, 1\] \(expected FLOAT of .*\[\?, 0\]"):
        unbatched.check({"x": (FLOAT, (0, 2)), "z": (FLOAT, (3, 1))})


@pytest.mark.parametrize("batched", [False, True])
def test_input_without_a_shape_has_any(batched):
    signature = Signature([TensorSpec("x", FLOAT, (), any_shape=True)], [], batched=batched)
    assert signature.check({"x": (FLOAT, (2, 0, 3))}) == (2 if batched else 1)
    with pytest.raises(InvalidArgumentError, match=r"INT64 of .* \(expected FLOAT of any shape\)"):
        signature.check({"x": (INT64, (2,))})
    with pytest.raises(InvalidArgumentError, match=r"\[-2\] \(expected"):
        signature.check({"x": (FLOAT, (-2,))})
    if batched:
        with pytest.raises(InvalidArgumentError, match=r"\[\]: it has no batch axis"):
            signature.check({"x": (FLOAT, ())})
    else:
        assert signature.check({"x": (FLOAT, ())}) == 1


def test_model_without_a_batch_axis_has_one_row():
    signature = Signature([TensorSpec("x", FLOAT, ())], [], batched=False)
    assert signature.check({"x": (FLOAT, ())}) == 1
