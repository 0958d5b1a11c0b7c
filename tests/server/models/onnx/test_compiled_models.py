"""What is read from a file before TensorRT compiles it: its inputs, its precision, its profile."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.support import onnx_models

from neurona_server.models.onnx.compiled_models import (
    GraphInput,
    make_profile,
    read_traits,
    tensorrt_options,
    without_profile,
)

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def save(folder, nodes, inputs, outputs, initialisers=None):
    return onnx_models.save(folder / "model.onnx", nodes, inputs, outputs, initialisers)


def test_traits_of_a_float32_model(tmp_path):
    path = save(
        tmp_path,
        [helper.make_node("Mul", ["x", "weight"], ["y"])],
        {"x": (FLOAT, ["n", 3, None, 5]), "unused": (TensorProto.INT64, [2])},
        {"y": (FLOAT, ["n", 3, None, 5])},
        {"weight": np.float32([2])},
    )
    traits = read_traits(path)
    assert traits.inputs == (
        GraphInput("x", FLOAT, (None, 3, None, 5)),
        GraphInput("unused", TensorProto.INT64, (2,)),
    )
    assert [traits.has_float16, traits.has_bfloat16, traits.is_quantized] == [False] * 3


def test_a_float16_model_is_compiled_in_float16(tmp_path):
    path = save(
        tmp_path,
        [
            helper.make_node("Cast", ["x"], ["half"], to=FLOAT16),
            helper.make_node("Mul", ["half", "weight"], ["product"]),
            helper.make_node("Cast", ["product"], ["y"], to=FLOAT),
        ],
        {"x": (FLOAT, ["n", 3])},
        {"y": (FLOAT, ["n", 3])},
        {"weight": np.float16([2])},
    )
    assert tensorrt_options(read_traits(path), 0) == {"trt_fp16_enable": "True"}


def test_a_quantised_model_is_compiled_in_int8(tmp_path):
    path = save(
        tmp_path,
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        {"x": (FLOAT, ["n", 3])},
        {"y": (FLOAT, ["n", 3])},
        {"scale": np.float32(0.5), "zero": np.int8(0)},
    )
    assert tensorrt_options(read_traits(path), 32) == {
        "trt_int8_enable": "True",
        "trt_profile_min_shapes": "x:1x3",
        "trt_profile_opt_shapes": "x:32x3",
        "trt_profile_max_shapes": "x:32x3",
    }


X = GraphInput("x", FLOAT, (None, 3, 224, 224))


@pytest.mark.parametrize(
    ("inputs", "max_rows", "profile"),
    [
        ([X], 64, ("x:1x3x224x224", "x:64x3x224x224", "x:64x3x224x224")),
        # The check of batching runs some rows together, whatever the policy is.
        ([X], 1, ("x:1x3x224x224", "x:1x3x224x224", "x:8x3x224x224")),
        (
            [X, GraphInput("fixed", FLOAT, (4,)), GraphInput("a:0", FLOAT, (None,))],
            16,
            ("x:1x3x224x224,a:0:1", "x:16x3x224x224,a:0:16", "x:16x3x224x224,a:0:16"),
        ),
    ],
)
def test_a_profile_has_all_batch_sizes(inputs, max_rows, profile):
    assert make_profile(inputs, max_rows) == dict(zip(("min", "opt", "max"), profile, strict=True))


@pytest.mark.parametrize(
    ("inputs", "max_rows"),
    [
        ([X], 0),  # requests do not share runs: one may have any number of rows
        ([X, GraphInput("steps", FLOAT, (None, None))], 64),
        ([GraphInput("any", FLOAT, None)], 64),
        ([GraphInput("fixed", FLOAT, (1, 3))], 64),
        ([GraphInput("a,b", FLOAT, (None, 3))], 64),
        ([], 64),
    ],
)
def test_no_profile_without_fixed_sizes(inputs, max_rows):
    assert make_profile(inputs, max_rows) == {}


def test_the_profile_can_be_left_out():
    options = {"trt_profile_min_shapes": "x:1", "trt_fp16_enable": "True"}
    assert without_profile(options) == {"trt_fp16_enable": "True"}
