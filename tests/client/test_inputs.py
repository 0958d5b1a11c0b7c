"""Inputs of callers: conversion to the model's dtypes, and what reaches the server."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurona_client import Client, InvalidInputError, ModelDescription, TensorSpec
from neurona_client.inputs import as_array, prepare_steps
from neurona_client.results import bfloat16_to_float32
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_FLOAT,
    DATA_TYPE_INT32,
    DATA_TYPE_INT64,
    DATA_TYPE_STRING,
    DescribeModelResponse,
    SequenceServing,
)
from neurona_protos.tensors import NUMPY_DTYPES, data_type, dtype_name

NUMERIC_TYPES = [number for number, dtype in NUMPY_DTYPES.items() if dtype.kind in "biuf"]
PLAIN_TYPES = [number for number in NUMERIC_TYPES if dtype_name(number) != "BFLOAT16"]


def make_spec(data_type, shape=(-1,), name="x"):
    return TensorSpec(name, dtype_name(data_type), shape, data_type=data_type)


@given(st.sampled_from(PLAIN_TYPES), st.data())
def test_an_array_of_the_right_dtype_is_not_copied(number, data):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[number], hnp.array_shapes()))
    assert as_array(array, make_spec(number)) is array


@given(st.sampled_from(PLAIN_TYPES), st.sampled_from(PLAIN_TYPES), st.data())
def test_converted_values_are_equal_or_rejected(source, target, data):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[source], hnp.array_shapes(max_side=4)))
    try:
        converted = as_array(array, make_spec(target))
    except InvalidInputError:
        return
    assert converted.dtype == NUMPY_DTYPES[target]
    for original, kept in zip(array.ravel().tolist(), converted.ravel().tolist(), strict=True):
        if array.dtype.kind == "f" and converted.dtype.kind == "f":
            limit = abs(original) * float(np.finfo(converted.dtype).eps)
            tiny = float(np.finfo(converted.dtype).tiny)
            assert kept == original or kept != kept or abs(kept - original) <= limit + tiny
        else:
            assert kept == original


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ([1.5], "INT64"),
        ([float("nan")], "INT32"),
        ([300], "UINT8"),
        ([-1], "UINT64"),
        ([2**53 + 1], "DOUBLE"),
        ([2**24 + 1], "FLOAT"),
        ([1e39], "FLOAT"),
        ([70000.0], "FLOAT16"),
        ([2], "BOOL"),
        ([2.0**63], "INT64"),
        ([None], "FLOAT"),
        ([1j], "FLOAT"),
        ([1], "STRING"),
        ([1e39], "BFLOAT16"),
    ],
)
def test_a_conversion_that_loses_information_is_rejected(value, number):
    with pytest.raises(InvalidInputError, match="input 'x' has"):
        as_array(value, make_spec(type_named(number)))


def type_named(name):
    return next(number for number in NUMPY_DTYPES if dtype_name(number) == name)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_side=5), elements=st.floats(width=32)))
def test_bfloat16_is_rounded_to_nearest_and_nan_stays_nan(array):
    if np.any(np.abs(array[np.isfinite(array)]) > 3.3e38):
        return
    bits = as_array(array, make_spec(type_named("BFLOAT16")))
    back = bfloat16_to_float32(bits)
    assert np.array_equal(np.isnan(back), np.isnan(array))
    finite = np.isfinite(array)
    tolerance = np.abs(array[finite]) / 256 + 1e-38
    assert np.all(np.abs(back[finite] - array[finite]) <= tolerance)
    assert as_array(bits, make_spec(type_named("BFLOAT16"))) is bits


VALUES = {
    "BOOL": [True, False],
    "BYTES": ["Wort", "", "ß"],
    "BF16": [1.0, -2.5],
    "FP16": [1.0, 0.1],
    "UINT64": [2**64 - 1, 0],
    "INT64": [-(2**63), 2**63 - 1],
    "FP64": [0.1, 1e300],
}


@pytest.fixture(scope="module")
def echoes(tmp_path_factory):
    from support import onnx_models
    from support.in_process_server import InProcessServer

    root = onnx_models.save_echoes(tmp_path_factory.mktemp("echoes"))
    onnx_models.save_adjustable(root / "adjustable" / "1" / "model.onnx")
    server = InProcessServer(root)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("kind", [*VALUES, "INT8", "UINT8", "INT16", "UINT16", "FP32"])
def test_every_dtype_survives_a_round_trip(echoes, kind, coalesce):
    values = VALUES.get(kind, [1, 2])
    with Client(echoes, coalesce=coalesce, timeout=20) as client:
        dtype = np.uint64 if kind == "UINT64" else None  # numpy alone would make them floats
        for inputs in (values, [values, values], np.array([values] * 3, dtype)):
            result = client.predict(f"echo_{kind}", inputs)
            echo = result.outputs["echo"]
            assert echo.shape == np.shape(inputs)
            assert (
                np.allclose(echo, inputs, rtol=1e-3)
                if kind != "BYTES"
                else (echo.tolist() == np.array(inputs).tolist())
            )


def test_an_optional_input_may_be_omitted(echoes):
    with Client(echoes, timeout=20) as client:
        assert client.predict("adjustable", [1, 2]).outputs["y"].tolist() == [2, 4]
        result = client.predict("adjustable", {"x": [1, 2], "scale": [3]})
        assert result.outputs["y"].tolist() == [3, 6]
        with pytest.raises(InvalidInputError, match=r"'scale' \(FLOAT \[1\], optional\)"):
            client.predict("adjustable", {"scale": [3]})


def test_numpy_dtypes_have_data_types():
    assert data_type(np.dtype("f4")) == type_named("FLOAT")


def test_text_is_not_changed():
    spec = TensorSpec("words", "STRING", (-1,), data_type=DATA_TYPE_STRING)
    assert as_array([b"a\0", "b\0", b"\xff"], spec).tolist() == [b"a\0", "b\0", b"\xff"]
    assert as_array(b"a\0", spec).tolist() == b"a\0"
    for value in (["a", 1], [["a"], ["b", "c"]], [None]):
        with pytest.raises(InvalidInputError, match="expected text"):
            as_array(value, spec)


def test_masked_values_are_rejected():
    spec = TensorSpec("x", "FLOAT", (-1,), data_type=DATA_TYPE_FLOAT)
    values = np.ma.masked_array(np.ones(3, np.float32), mask=[0, 1, 0])
    with pytest.raises(InvalidInputError, match="masked"):
        as_array(values, spec)
    assert as_array(values[:1], spec).tolist() == [1.0]


def steps_of(inputs, *specs, **time_axes):
    """Shape or lengths of each tensor, and whether the inputs are one sequence."""
    message = DescribeModelResponse(sequences=SequenceServing(time_axes=time_axes))
    description = ModelDescription(
        *("m", 1, "tensors", "", specs, (), (), (), True, {}, {}), message
    )
    tensors, is_sample = prepare_steps(description, inputs)
    return {name: array.tolist() if "len" in name else array.shape for name, _, array in tensors}, (
        is_sample
    )


@pytest.mark.parametrize(
    ("shape", "steps", "is_sample"),
    [((2,), 1, True), ((5, 2), 5, True), ((1, 5, 2), 5, False)],
)
def test_a_step_of_a_sequence_may_be_without_batch_and_time(shape, steps, is_sample):
    values = np.zeros(shape, np.float32)
    spec = make_spec(DATA_TYPE_FLOAT, (-1, -1, 2))
    expected = {"x": (1, steps, 2)}, is_sample
    assert steps_of(values, spec, x=1) == steps_of(values.tolist(), spec, x=1) == expected
    assert steps_of({"x": values}, spec, x=1) == expected
    last = np.moveaxis(values, -2, -1) if len(shape) > 1 else values
    transposed = make_spec(DATA_TYPE_FLOAT, (-1, 2, -1))
    assert steps_of(last, transposed, x=2) == ({"x": (1, 2, steps)}, is_sample)


def test_lengths_that_are_left_out_are_all_steps():
    specs = (
        make_spec(DATA_TYPE_FLOAT, (-1, -1, 2)),
        make_spec(DATA_TYPE_INT32, (-1,), "sequence_lens"),
    )
    one_step = {"x": (1, 1, 2), "sequence_lens": [1]}, True
    assert steps_of([1.0, 2.0], *specs, x=1) == one_step
    assert steps_of({"x": np.zeros((4, 2))}, *specs, x=1) == (
        {"x": (1, 4, 2), "sequence_lens": [4]},
        True,
    )
    batch = {"x": np.zeros((3, 4, 2), np.float32)}
    assert steps_of(batch, *specs, x=1)[0]["sequence_lens"] == [4, 4, 4]
    lengths = np.array([4, 2, 1], np.int32)
    assert steps_of(batch | {"sequence_lens": lengths}, *specs, x=1)[0]["sequence_lens"] == [
        4,
        2,
        1,
    ]


@pytest.mark.parametrize("text", ["a", ["a"], [["a"]]])
def test_a_step_of_text_or_of_a_number_is_one_element(text):
    strings = make_spec(DATA_TYPE_STRING, (-1, -1))
    assert steps_of(text, strings, x=1)[0] == {"x": (1, 1)}
    assert steps_of(7, make_spec(DATA_TYPE_INT64, (-1, -1)), x=1) == ({"x": (1, 1)}, True)


def test_steps_of_another_shape_are_an_error():
    spec = make_spec(DATA_TYPE_FLOAT, (-1, -1, 2))
    for values in (np.zeros(3), np.zeros((2, 3)), np.zeros((1, 1, 1, 2)), 1.0):
        with pytest.raises(InvalidInputError, match="input 'x' has shape"):
            steps_of(values, spec, x=1)
