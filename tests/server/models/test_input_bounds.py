import numpy as np
import pytest

from neurona_protos.prediction_pb2 import DataType, InputDescription, ModelMetadata
from neurona_server.errors import InvalidValueError, LoadError
from neurona_server.models.input_bounds import (
    MAX_DOT_PRODUCT,
    are_finite,
    find_input_bounds,
    set_input_settings,
)
from neurona_server.models.repository.settings import TensorSettings
from neurona_server.models.signature import TensorSpec

X = TensorSpec("x", DataType.DATA_TYPE_FLOAT, (None, 28, 28))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 30, MAX_DOT_PRODUCT, MAX_DOT_PRODUCT + 1])
def test_finite_arrays_are_told_from_others_whatever_their_size_and_values(dtype, size):
    array = np.full(size, np.finfo(dtype).max, dtype)  # their squares and sums are infinite
    assert are_finite(array)
    for value in (np.nan, np.inf, -np.inf):
        if size:
            array[-1] = value
            assert not are_finite(array)


def test_a_pixel_is_named_by_its_position():
    metadata = ModelMetadata(inputs=[InputDescription(name="x", finite=True)])
    images = np.zeros((3, 28, 28), np.float32)
    images[1, 2, 3] = np.nan
    with pytest.raises(InvalidValueError, match=r"input 'x' row 1, position \[2, 3\]: nan"):
        find_input_bounds(metadata, [X], []).check({"x": images})


def test_numbers_of_bfloat16_are_the_upper_halves_of_floats():
    spec = TensorSpec("x", DataType.DATA_TYPE_BFLOAT16, (None, 3))
    described = InputDescription(name="x")
    set_input_settings(described, spec, TensorSettings(allow_nan=False))
    bounds = find_input_bounds(ModelMetadata(inputs=[described]), [spec], [])
    bits = np.array([[0x3F80, 0xFF7F, 0x0001], [0x3F80, 0xFF80, 0]], np.uint16)
    bounds.check({"x": bits[:1]})  # 1, the lowest number and the smallest
    with pytest.raises(InvalidValueError, match=r"row 1, position \[1\]: -inf"):
        bounds.check({"x": bits})


def test_missing_texts_do_not_make_the_numbers_of_a_model_finite():
    spec = TensorSpec("town", DataType.DATA_TYPE_STRING, (None,))
    described = InputDescription(name="town", categories=["Bern"], only_categories=True)
    set_input_settings(described, spec, TensorSettings(allow_nan=False))
    assert not described.finite


def test_a_model_that_says_nothing_has_no_bounds():
    assert not find_input_bounds(ModelMetadata(inputs=[InputDescription(name="x")]), [X], [])


@pytest.mark.parametrize(("of", "axis"), [("y", 1), ("x", 3)])
def test_metadata_about_lengths_of_nothing_are_an_error(of, axis):
    described = InputDescription(name="x", lengths_of=of, lengths_axis=axis)
    with pytest.raises(LoadError, match=f"axis {axis} of '{of}'"):
        find_input_bounds(ModelMetadata(inputs=[described]), [X], [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TensorSettings(allow_nan=True), "allow_nan for input 'n', which is INT64"),
        (TensorSettings(allow_unknown=False), "allow_unknown for input 'n', whose categories"),
    ],
)
def test_settings_of_values_that_an_input_does_not_have_are_an_error(settings, message):
    spec = TensorSpec("n", DataType.DATA_TYPE_INT64, (None,))
    with pytest.raises(LoadError, match=message):
        set_input_settings(InputDescription(name="n"), spec, settings)
