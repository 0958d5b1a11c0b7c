import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.models.onnx import sequence_lengths
from neurona_server.models.onnx.sequence_lengths import LengthsInput, find_lengths_inputs

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
GRU = [("w", (1, 6, 3)), ("r", (1, 6, 2))]


@pytest.fixture
def find(tmp_path):
    """The lengths inputs of a graph of these nodes, whose sequences are x."""

    def find(*nodes, lengths=INT32, x=(FLOAT, ["a", "b", 3])):
        path = onnx_models.save(
            tmp_path / "model.onnx",
            nodes,
            {"x": x, "lengths": (lengths, ["b"])},
            {"y": (FLOAT, ["s"])},
            {
                **{name: np.zeros(shape, np.float32) for name, shape in GRU},
                "table": np.zeros((9, 3), np.float32),
                "matrix": np.zeros((3, 3), np.float32),
                "mean": np.zeros(3, np.float32),
                "cube": np.zeros((1, 1, 3), np.float32),
                "some": np.array([0, 0, 1, 1]),
                "limit": np.array(9, np.int32),
            },
        )
        return [*find_lengths_inputs(path)]

    return find


def gru(sequences, lengths="lengths", **attributes):
    inputs = [sequences, "w", "r", "", lengths]
    return helper.make_node("GRU", inputs, ["", "y"], hidden_size=2, **attributes)


def node(operator, *inputs, to, **attributes):
    return helper.make_node(operator, [*inputs], [to], **attributes)


@pytest.mark.parametrize(
    ("nodes", "axis"),
    [
        ([gru("x")], 0),
        ([gru("x", layout=1)], 1),
        ([node("Transpose", "x", to="t", perm=[1, 0, 2]), gru("t")], 1),
        (
            [
                node("Sub", "x", "mean", to="c"),
                node("MatMul", "c", "matrix", to="m"),
                node("Tanh", "m", to="a"),
                node("Transpose", "a", to="t", perm=[1, 0, 2]),
                gru("t"),
            ],
            1,
        ),
    ],
)
def test_sequences_are_followed_back_to_their_input_and_axis(find, nodes, axis):
    assert find(*nodes) == [LengthsInput("lengths", "x", axis)]


def test_the_lengths_may_be_cast_and_the_steps_looked_up(find):
    nodes = [
        node("Gather", "table", "x", to="rows"),
        node("Transpose", "rows", to="t", perm=[1, 0, 2]),
        helper.make_node("Cast", ["lengths"], ["short"], to=INT32),
        gru("t", "short"),
    ]
    found = find(*nodes, lengths=INT64, x=(INT64, ["a", "b"]))
    assert found == [LengthsInput("lengths", "x", 1)]


def test_reversed_sequences_have_lengths_too(find):
    reverse = node("ReverseSequence", "x", "lengths", to="y", time_axis=1, batch_axis=0)
    assert find(reverse, lengths=INT64) == [LengthsInput("lengths", "x", 1)]


def test_sequences_that_are_computed_otherwise_are_unknown(find):
    assert find(node("Shape", "x", to="s"), gru("s")) == [LengthsInput("lengths", "", 0)]


@pytest.mark.parametrize(
    "changed",
    [
        node("Gather", "x", "some", to="t", axis=0),  # other steps, more than before
        node("Gather", "x", "limit", to="t", axis=0),  # one axis less
        node("MatMul", "matrix", "x", to="t"),
        node("Add", "x", "cube", to="t"),  # one axis more, if x has two
        node("Identity", "x", to="t", domain="mine"),
    ],
)
def test_sequences_with_other_steps_than_the_input_are_unknown(find, changed):
    assert find(changed, gru("t")) == [LengthsInput("lengths", "", 0)]


@pytest.mark.parametrize("operator", ["Min", "Div", "Sub", "Mul"])
def test_lengths_that_the_graph_computes_leave_the_input_any_value(find, operator):
    assert find(node(operator, "lengths", "limit", to="own"), gru("x", "own")) == []


def test_lengths_of_another_shape_are_the_same(find):
    flat = node("Reshape", "lengths", "some", to="flat")
    assert find(flat, gru("x", "flat")) == [LengthsInput("lengths", "x", 0)]


def test_a_function_that_is_called_like_an_operator_is_none(find):
    assert find(gru("x", domain="torch.nn.modules.rnn")) == []


def test_a_quantised_lstm_has_lengths_too(find):
    inputs = ["x", "w", "r", "", "lengths", "", "", "", *["w"] * 4]
    lstm = helper.make_node("DynamicQuantizeLSTM", inputs, ["", "y"], domain="com.microsoft")
    assert find(lstm) == [LengthsInput("lengths", "x", 0)]


def test_other_inputs_of_integers_are_no_lengths(find):
    assert find(node("Add", "x", "lengths", to="y")) == []


def test_a_graph_with_too_many_nodes_is_not_searched(find, monkeypatch):
    monkeypatch.setattr(sequence_lengths, "MAX_NODES", 1)
    assert find(node("Identity", "x", to="t"), gru("t")) == []
