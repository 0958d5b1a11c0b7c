"""float16 and int8 models on a GPU: the answers of the CPU, within what their type can hold."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
ROWS, WIDTH = 16, 64


def random(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def both(device, tmp_path):
    """Save a model; return its outputs on the tested provider and on the CPU, and the session."""

    def both(nodes, outputs, constants, *, types=(FLOAT, FLOAT), **options):
        path = onnx_models.save(
            tmp_path / "model.onnx",
            nodes,
            {"x": (types[0], ["n", WIDTH])},
            {"y": (types[1], ["n", outputs])},
            constants,
        )
        inputs = {"x": random(ROWS, WIDTH).astype(np.float16 if types[0] == FLOAT16 else "f4")}
        tested = Session(path, RuntimeOptions(providers=(device, "cpu"), **options))
        reference = Session(path, RuntimeOptions(providers=("cpu",)))
        return tested.run(inputs)[0], reference.run(inputs)[0], tested

    return both


def check_close(tested, reference, tolerance):
    assert tested.dtype == reference.dtype
    assert np.isfinite(tested).all()
    largest = np.abs(reference.astype(np.float64)).max()
    difference = np.abs(tested.astype(np.float64) - reference).max() / largest
    assert difference < tolerance, f"differs by {difference:.2g} of the largest value"


def matmul(weights):
    return [helper.make_node("MatMul", ["x", "w"], ["y"])], WIDTH, {"w": weights}


def test_float32_without_tf32_is_exact_to_its_type(both):
    options = {"provider_options": {"cuda": {"use_tf32": "0"}}}
    tested, reference, _ = both(*matmul(random(WIDTH, WIDTH, seed=2)), **options)
    check_close(tested, reference, 1e-5)


def test_float32_with_tf32(both):
    tested, reference, _ = both(*matmul(random(WIDTH, WIDTH, seed=2)))
    check_close(tested, reference, 2e-3)


def test_float16_inputs_and_outputs(both, device):
    weights = random(WIDTH, WIDTH, seed=2).astype(np.float16)
    tested, reference, session = both(*matmul(weights), types=(FLOAT16, FLOAT16))
    check_close(tested, reference, 5e-3)
    assert session.degraded == "", session.degraded
    assert session.provider.lower().startswith(device)


def test_float16_inside_of_float32_inputs_and_outputs(both):
    """As `neurona-train --variants float16` exports it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["y"], to=FLOAT),
    ]
    weights = random(WIDTH, WIDTH, seed=2).astype(np.float16)
    tested, reference, session = both(nodes, WIDTH, {"w": weights})
    check_close(tested, reference, 5e-3)
    assert session.degraded == "", session.degraded


def quantised(weights):
    scale = np.float32(np.abs(weights).max() / 127)
    return np.rint(weights / scale).astype(np.int8), scale


def test_a_qdq_graph(both):
    weights, scale = quantised(random(WIDTH, WIDTH, seed=2))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "zero"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["y"]),
    ]
    constants = {"w": weights, "ws": scale, "xs": np.float32(0.05), "zero": np.int8(0)}
    tested, reference, _ = both(nodes, WIDTH, constants)
    check_close(tested, reference, 2e-2)


def test_dynamic_quantisation_is_right_and_says_that_parts_run_on_the_cpu(both, device):
    """As `neurona-train --variants int8` exports it; CUDA has no kernels for it."""
    weights, scale = quantised(random(WIDTH, WIDTH, seed=2))
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=FLOAT),
        helper.make_node("Mul", ["xs", "ws"], ["scale"]),
        helper.make_node("Mul", ["floats", "scale"], ["y"]),
    ]
    tested, reference, session = both(nodes, WIDTH, {"w": weights, "ws": scale})
    check_close(tested, reference, 2e-2)
    if device == "cuda" and "CPUExecutionProvider" in session.placement:
        assert "run on the CPU (" in session.degraded


@pytest.mark.parametrize(
    "options",
    [
        {"prefer_nhwc": "1"},
        {"fuse_conv_bias": "1"},
        {"cudnn_conv_algo_search": "EXHAUSTIVE"},
        {"cudnn_conv_algo_search": "DEFAULT"},
        {"cudnn_conv_use_max_workspace": "0"},
        {"cudnn_conv1d_pad_to_nc1d": "1"},
        {"arena_extend_strategy": "kNextPowerOfTwo"},
        {"use_ep_level_unified_stream": "1"},
    ],
    ids=lambda options: "=".join(*options.items()),
)
def test_every_option_leaves_the_answers_as_they_are(device, tmp_path, options):
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["y"]),
        ],
        {"x": (FLOAT, ["n", 8, 14, 14])},
        {"y": (FLOAT, ["n", 16, 1, 1])},
        {"w": random(16, 8, 3, 3, seed=2), "b": random(16, seed=3)},
    )
    inputs = {"x": random(8, 8, 14, 14)}
    reference = Session(path, RuntimeOptions(providers=("cpu",))).run(inputs)[0]
    off = {"prefer_nhwc": "0", "fuse_conv_bias": "0"}  # without measuring
    chosen = {"provider_options": {"cuda": off | options}}
    session = Session(path, RuntimeOptions(providers=(device, "cpu"), **chosen))
    if device == "cuda":
        assert session.provider == "CUDAExecutionProvider", session.degraded
    for _ in range(3):
        check_close(session.run(inputs)[0], reference, 5e-3)


@pytest.mark.usefixtures("cuda")
def test_options_for_convolutions_are_measured_once(tmp_path, caplog):
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        {"x": (FLOAT16, ["n", 64, 28, 28])},
        {"y": (FLOAT16, ["n", 64, 28, 28])},
        {"w": (random(64, 64, 3, 3, seed=2) / 24).astype(np.float16)},
    )
    inputs = {"x": random(4, 64, 28, 28).astype(np.float16)}
    reference = Session(path, RuntimeOptions(providers=("cpu",))).run(inputs)[0]
    with caplog.at_level("DEBUG"):
        sessions = [Session(path, RuntimeOptions(providers=("cuda", "cpu"))) for _ in range(2)]
    measured = [record.getMessage() for record in caplog.records if "cuda." in record.getMessage()]
    print(*measured, sep="\n")
    assert 1 <= len(measured) <= 2, "each option is measured once, for the first session"
    first, second = [session.run(inputs)[0] for session in sessions]
    check_close(first, reference, 1e-2)
    np.testing.assert_array_equal(first, second)
