"""Files of any exporter are compared with what they were made from; known faults are named."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.export import Dim

from neurona_training.cli.main import main
from neurona_training.errors import DataError, ExportError, OptionError
from neurona_training.export import verify
from neurona_training.export.fault_diagnosis import unrolled_steps

_GATES = (1, 0, 2)  # of torch's GRU in ONNX's order


class Reader(nn.Module):
    """A GRU; `seed` decides its weights."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer
        for weight in layer.parameters():
            nn.init.normal_(weight)

    def forward(self, x):
        return self.layer(x)[0]


def _program(module, example, shapes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on its own recurrent layers
        return torch.export.export(module.eval(), example, dynamic_shapes=shapes, strict=False)


def _model(nodes, inputs, outputs, constants):
    """An ONNX model, as another exporter might write it."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    return model


def _save(tmp_path, *arguments):
    path = tmp_path / "x.onnx"
    onnx.save(_model(*arguments), path)
    return path


@pytest.fixture(scope="module")
def gru():
    """A GRU of two directions."""
    return Reader(nn.GRU(4, 3, batch_first=True, bidirectional=True))


def _gru_cases(module, *lengths):
    arrays = {}
    for steps in lengths:
        x = torch.randn(8, steps, 4)
        arrays |= {f"x/{steps} steps": x.numpy(), f"y/{steps} steps": module(x).detach().numpy()}
    return arrays


def _gru_nodes(module, linear_before_reset, steps="time"):
    def stack(name):
        weights = [module.layer.get_parameter(f"{name}_l0{suffix}") for suffix in ("", "_reverse")]
        parts = [[weight.detach().chunk(3)[gate] for gate in _GATES] for weight in weights]
        return torch.stack([torch.cat(part) for part in parts])

    bias = torch.cat([stack("bias_ih"), stack("bias_hh")], dim=1)
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU",
            ["steps", "w", "r", "b"],
            ["states"],
            name="gru",
            hidden_size=3,
            direction="bidirectional",
            linear_before_reset=linear_before_reset,
        ),
        helper.make_node("Transpose", ["states"], ["rows"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["rows", "shape"], ["y"], name="join"),
    ]
    constants = {
        "w": stack("weight_ih").numpy(),
        "r": stack("weight_hh").numpy(),
        "b": bias.numpy(),
        "shape": np.array([0, steps if isinstance(steps, int) else 0, 6]),
    }
    axes = ["batch", "time"]
    return (
        nodes,
        [("x", TensorProto.FLOAT, [*axes, 4])],
        [("y", TensorProto.FLOAT, [*axes, 6])],
        constants,
    )


def test_a_right_file_passes_at_every_size(tmp_path, gru):
    outcome = verify(_save(tmp_path, *_gru_nodes(gru, 1)), _gru_cases(gru, 5, 1, 9))
    assert outcome.passed
    assert outcome.cause == ""
    assert outcome.largest_difference < 1e-5
    cases = [str(result.case) for result in outcome.results]
    assert {"batch 8, 5 steps", "batch 7, 1 steps", "batch 1, 9 steps"} <= set(cases)
    assert list(outcome.lines())[-1].startswith(f"equal in {len(cases)} checks, largest")


def test_the_reset_gate_of_a_gru_is_found(tmp_path, gru):
    """pytorch #189225: an exported GRU without linear_before_reset."""
    outcome = verify(_save(tmp_path, *_gru_nodes(gru, 0)), _gru_cases(gru, 5))
    assert not outcome.passed
    assert "GRU node 'gru' has linear_before_reset = 0" in outcome.cause
    assert "189225" in outcome.cause
    assert outcome.results[0].fault.startswith("output 'y'[")


@pytest.mark.slow  # torch.export takes seconds for a GRU
def test_the_reset_gate_of_a_gru_is_found_by_its_program(tmp_path, gru):
    program = _program(gru, (torch.randn(3, 2, 4),), ({0: Dim.AUTO},))
    outcome = verify(_save(tmp_path, *_gru_nodes(gru, 0)), program)
    assert "189225" in outcome.cause
    assert "axis 'time' of input 'x' is compared in size 2 alone" in outcome.notes[0]


def test_a_frozen_time_axis_is_found(tmp_path, gru):
    """pytorch #191855: layers of two directions got the steps of the example."""
    outcome = verify(_save(tmp_path, *_gru_nodes(gru, 1, steps=5)), _gru_cases(gru, 5, 8))
    assert [bool(result.fault) for result in outcome.results] == [False] * 5 + [True] * 5
    assert "the file takes 5 in axis 1 of input 'x' and not 8" in outcome.cause
    assert "Reshape node 'join'" in outcome.cause


class Sums(nn.Module):
    """Adds the steps up; of any length."""

    def forward(self, x, scale):
        return x.cumsum(1) * scale, x.sum(1).argmax(1)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """A program of any size, in a file."""
    free = {0: Dim.AUTO, 1: Dim.AUTO}
    program = _program(Sums(), (torch.randn(3, 5, 2), torch.ones(1)), (free, {}))
    path = tmp_path_factory.mktemp("sums") / "x.pt2"
    torch.export.save(program, path)
    return path


def _sums_model(steps="time", rows=0):
    nodes = [
        helper.make_node("CumSum", ["a", "one"], ["sums"], name="sum"),
        helper.make_node("Mul", ["sums", "b"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["y"], name="keep"),
        helper.make_node("ReduceSum", ["a", "one"], ["total"], keepdims=0),
        helper.make_node("ArgMax", ["total"], ["best"], axis=1, keepdims=0),
    ]
    return (
        nodes,
        [("a", TensorProto.FLOAT, ["batch", steps, 2]), ("b", TensorProto.FLOAT, [1])],
        [("y", TensorProto.FLOAT, ["batch", steps, 2]), ("best", TensorProto.INT64, ["batch"])],
        {"one": [1], "shape": [rows, 0, 2]},
    )


def test_a_program_is_run_at_the_sizes_that_it_allows(tmp_path, sums, capsys):
    path = _save(tmp_path, *_sums_model())
    assert main(["verify", str(path), "--against", str(sums)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("batch 3, time 5, example: equal, largest difference ")
    for sizes in ("batch 7, time 5, random", "batch 3, time 1, example", "batch 3, time 15"):
        assert any(line.startswith(sizes) for line in lines)
    assert lines[-1].startswith("equal in ")


def test_an_axis_of_one_size_in_the_file_is_found(tmp_path, sums):
    path = _save(tmp_path, *_sums_model(steps=5))
    outcome = verify(path, sums)
    assert not outcome.passed
    assert "axis 'a.1' is frozen at 5" in outcome.cause
    assert verify(path, sums, fixed=["a.1"]).passed


def test_a_batch_axis_of_one_size_is_found(tmp_path, sums):
    path = _save(tmp_path, *_sums_model(rows=3))
    outcome = verify(path, sums)
    assert "axis 'batch' is frozen at 3" in outcome.cause
    assert "Reshape node 'keep' has the constant shape [3, 0, 2]" in outcome.cause
    assert verify(path, sums, fixed=["batch"]).passed


def test_an_unrolled_graph_is_found(tmp_path):
    """nn.RNN as torch's exporter writes it: the example's three steps one after the other."""
    module = Reader(nn.RNN(2, 2, batch_first=True, bias=False))
    weights = [weight.detach().numpy().T for weight in module.layer.parameters()]
    nodes, states = [], []
    for step in range(3):
        nodes.append(helper.make_node("Gather", ["x", f"at{step}"], [f"x{step}"], axis=1))
        nodes.append(helper.make_node("MatMul", [f"x{step}", "w"], [f"s{step}"]))
        if step:
            nodes.append(helper.make_node("MatMul", [states[-1], "r"], [f"m{step}"]))
            nodes.append(helper.make_node("Add", [f"m{step}", f"s{step}"], [f"a{step}"]))
        nodes.append(helper.make_node("Tanh", [f"{'a' if step else 's'}{step}"], [f"h{step}"]))
        nodes.append(helper.make_node("Unsqueeze", [f"h{step}", "at1"], [f"u{step}"]))
        states.append(f"h{step}")
    nodes.append(helper.make_node("Concat", ["u0", "u1", "u2"], ["y"], axis=1))
    constants = {"w": weights[0], "r": weights[1], "at0": 0, "at1": [1], "at2": 2}
    nodes[4].input[1] = "one"
    constants["one"] = 1
    model = _model(
        nodes,
        [("x", TensorProto.FLOAT, ["batch", "time", 2])],
        [("y", TensorProto.FLOAT, ["batch", "steps", 2])],
        constants,
    )
    assert unrolled_steps(model) == 3
    onnx.save(model, tmp_path / "x.onnx")
    arrays = {}
    for name, steps in (("example", 3), ("long", 4)):
        x = torch.randn(2, steps, 2)
        arrays |= {f"x/{name}": x.numpy(), f"y/{name}": module(x).detach().numpy()}
    outcome = verify(tmp_path / "x.onnx", arrays)
    assert [bool(result.fault) for result in outcome.results] == [False, False, True, True]
    assert "the graph is unrolled, with the 3 steps" in outcome.cause


def _rows_model(nodes, constants, output=TensorProto.FLOAT, shape=("batch", 3)):
    inputs = [("x", TensorProto.FLOAT, ["batch", 3])]
    return nodes, inputs, [("y", output, shape)], constants


_X = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
_ONES = np.ones(3, np.float32)
_NORMALISED = (_X / np.sqrt(1 + 1e-5)).astype(np.float32)


@pytest.mark.parametrize(
    ("node", "constants", "expected", "cause"),
    [
        (
            helper.make_node("Dropout", ["x", "ratio", "training"], ["y"], name="drop"),
            {"ratio": np.float32(0.5), "training": True},
            _X,
            "Dropout node 'drop' draws random numbers",
        ),
        (
            helper.make_node(
                "BatchNormalization",
                ["x", "scale", "bias", "mean", "variance"],
                ["y", "mean2", "variance2"],
                name="normalise",
                training_mode=1,
            ),
            {"scale": _ONES, "bias": 0 * _ONES, "mean": 0 * _ONES, "variance": _ONES},
            _NORMALISED,
            "BatchNormalization node 'normalise' is in training mode",
        ),
        (
            helper.make_node("Add", ["x", "half"], ["y"], name="add"),
            {"half": np.float32([[0.5] * 3] * 9)},
            _X + np.float32(0.5),
            "axis 'batch' is frozen at 9",
        ),
    ],
)
def test_known_faults_of_rows_are_named(tmp_path, node, constants, expected, cause):
    path = _save(tmp_path, *_rows_model([node], constants))
    outcome = verify(path, {"x": _X, "y": expected})
    assert not outcome.passed
    assert cause in outcome.cause


def test_a_batch_normalisation_of_many_nodes_is_named(tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["x", "rows"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    path = _save(tmp_path, *_rows_model(nodes, {"rows": [0]}))
    outcome = verify(path, {"x": _X, "y": _X})
    assert "rows of a batch change each other" in outcome.cause


def test_a_batch_in_a_reshape_is_named(tmp_path):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="flatten")]
    model = _rows_model(nodes, {"shape": [9, 3]}, shape=(9, 3))
    outcome = verify(_save(tmp_path, *model), {"x": _X, "y": _X})
    assert "Reshape node 'flatten' has the constant shape [9, 3]" in outcome.cause
    assert verify(tmp_path / "x.onnx", {"x": _X, "y": _X}, fixed=["batch"]).passed


def test_constants_of_double_precision_are_named(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["wide", "half"], ["y"]),
    ]
    path = _save(tmp_path, *_rows_model(nodes, {"half": np.float64(0.5)}, TensorProto.DOUBLE))

    class Halves(nn.Module):
        def forward(self, x):
            return x * 0.5

    program = _program(Halves(), (torch.from_numpy(_X),), ({0: Dim.AUTO},))
    outcome = verify(path, program)
    assert outcome.results[0].fault == "output 'y' is float64 (expected float32)"
    assert "float64 constants in a float32 graph: 'half'" in outcome.cause
    assert verify(path, {"x": _X, "y": _X * 0.5}).passed  # arrays may be of another precision
    nodes = [helper.make_node("Mul", ["x", "half"], ["y"])]
    model = _rows_model(nodes, {"half": np.float32(0.5)})
    model[3]["half"] = np.float64(0.5)
    graph = _unchecked(*model)
    (tmp_path / "y.onnx").write_bytes(graph.SerializeToString())
    assert "float64 constants" in verify(tmp_path / "y.onnx", program).cause


def _unchecked(nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_equal_scores_are_named(tmp_path):
    def model(last):
        node = helper.make_node(
            "ArgMax", ["x"], ["y"], axis=1, keepdims=0, select_last_index=last, name="best"
        )
        return _rows_model([node], {}, TensorProto.INT64, ["batch"])

    scores = np.float32([[1, 1, 0], [0, 2, 2], [3, 0, 0]])
    best = scores.argmax(axis=1)
    assert verify(_save(tmp_path, *model(0)), {"x": scores, "y": best}).passed
    outcome = verify(tmp_path / "x.onnx", {"x": scores, "y": np.int64([1, 2, 0])})
    assert outcome.passed  # another choice among equals, which the next rounding decides
    assert outcome.results[0].undecided == 2
    whole = np.int64(scores)
    node = helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0, select_last_index=1)
    parts = _rows_model([node], {}, TensorProto.INT64, ["batch"])
    integers = ("x", TensorProto.INT64, ["batch", 3])
    outcome = verify(_save(tmp_path, parts[0], [integers], *parts[2:]), {"x": whole, "y": best})
    assert not outcome.passed
    assert "equal scores" in outcome.cause


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """An estimator of scikit-learn with its float64 outputs, and an ONNX file of it."""
    estimator = LogisticRegression().fit(_X, _X[:, 0] > 0)
    folder = tmp_path_factory.mktemp("classifier")
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["y"]),
    ]
    weights = {
        "w": estimator.coef_.T.astype(np.float32),
        "b": estimator.intercept_.astype(np.float32),
    }
    onnx.save(_model(*_rows_model(nodes, weights, shape=["batch", 1])), folder / "x.onnx")
    expected = estimator.predict_proba(_X)[:, 1:]
    np.savez(folder / "right.npz", x=_X.astype(np.float64), y=expected)
    expected = expected.copy()
    expected[4, 0] += 0.125
    np.savez(folder / "wrong.npz", x=_X, y=expected)
    return folder


def test_the_command_prints_each_check_and_the_verdict(classifier, capsys):
    command = ["verify", str(classifier / "x.onnx"), "--against"]
    assert main([*command, str(classifier / "right.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # 9, 1, 2, 3 and 7 rows, and the verdict
    assert lines[0].startswith("batch 9, reference: equal, largest difference ")
    assert lines[-1].startswith("equal in 5 checks, largest difference ")


def test_the_command_says_where_outputs_differ(classifier, capsys):
    command = ["verify", str(classifier / "x.onnx"), "--against", str(classifier / "wrong.npz")]
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("batch 9, reference: different: output 'y'[4, 0] is ")
    assert "1 of 9 elements differ, by up to 0.125" in lines[0]
    assert lines[-2:] == ["different in 2 of 5 checks", "likely cause: none of the known kinds"]
    assert main([*command, "--atol", "0.2"]) == 0
    assert main([*command, "--rtol", "0.9"]) == 0


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"z": _X}, r"array 'z' is neither input nor output of the file \(expected inputs \['x'\]"),
        ({"x": _X}, r"without an output"),
        ({"y": _X}, r"without input 'x'"),
        ({"x/a": _X, "y/b": _X}, r"case 'a' without an output"),
        ({}, r"without arrays"),
        ({"x": _X[:0], "y": _X[:0]}, r"'x' of shape \[0, \d+\] is empty"),
    ],
)
def test_a_reference_for_another_file_is_an_error(classifier, arrays, expected):
    with pytest.raises(ExportError, match=expected):
        verify(classifier / "x.onnx", arrays)


def test_files_that_cannot_be_read_are_errors(tmp_path, classifier, capfd):
    (tmp_path / "x.npz").write_bytes(b"text")
    (tmp_path / "x.pt2").write_bytes(b"text")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    model = classifier / "x.onnx"
    for name in ("x.npz", "x.pt2", "objects.npz", "absent.npz", "absent.pt2", "x.txt"):
        with pytest.raises(DataError, match=rf"cannot read .*{name}"):
            verify(model, tmp_path / name)
    for path in (tmp_path / "x.npz", tmp_path / "absent.onnx"):
        with pytest.raises(DataError, match="cannot read"):
            verify(path, classifier / "right.npz")
    assert capfd.readouterr().err == ""


def test_wrong_options_are_errors(classifier, capsys):
    with pytest.raises(OptionError, match=r"unknown axis 'time' \(available: batch\)"):
        verify(classifier / "x.onnx", classifier / "right.npz", fixed=["time"])
    with pytest.raises(OptionError, match="rtol -1"):
        verify(classifier / "x.onnx", classifier / "right.npz", rtol=-1)
    with pytest.raises(SystemExit) as stop:
        main(["verify", "x.onnx", "--against", "x.npz", "--rtol", "nan"])
    assert stop.value.code == 2
    assert "--rtol: 'nan' is not a number from 0" in capsys.readouterr().err
