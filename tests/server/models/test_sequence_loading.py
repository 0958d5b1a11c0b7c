"""Recurrent models as they are loaded: what is proved of them, and what their sessions run then."""

import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.recurrent_models import (
    CLASSES,
    FEATURES,
    HIDDEN,
    RecurrentModel,
    make_recurrent,
    run_alone,
    save_recurrent,
)

from neurona_server.errors import LoadError, UnavailableError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.sequence_loading import find_sequences
from neurona_server.models.signature import Signature
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm
from neurona_server.telemetry.metrics import Metrics

SHARED = os.environ.get("NEURONA_SHARED")
LENGTHS_OF_ROWS = (3, 11, 1, 7)

RAGGED = {
    "lstm": RecurrentModel(),
    "gru": RecurrentModel("GRU", layers=2, answer="both"),
    "rnn": RecurrentModel("RNN", answer="steps"),
    "bidirectional": RecurrentModel(direction="bidirectional", layers=2, answer="both"),
    "reverse": RecurrentModel("GRU", direction="reverse", read_out="gather"),
    "gather": RecurrentModel(read_out="gather", direction="bidirectional"),
    "shape": RecurrentModel("GRU", read_out="shape"),
    "slice": RecurrentModel(read_out="slice", layers=2),
    "old slice": RecurrentModel(read_out="slice", opset=9),
    "old gather": RecurrentModel("RNN", read_out="gather", opset=7),
    "lengths": RecurrentModel(lengths=True, answer="both"),
    "lengths and gather": RecurrentModel("GRU", lengths=True, read_out="gather"),
    "tokens": RecurrentModel(tokens=True, answer="both"),
    "zeros": RecurrentModel(initial="zeros", layers=2),
    "learned": RecurrentModel("GRU", initial="learned"),
    "learned by an lstm": RecurrentModel(initial="learned", layers=2, answer="both"),
    "input": RecurrentModel(initial="input"),
    "float16": RecurrentModel(dtype=np.float16),
}


@pytest.fixture
def load(tmp_path):
    def load(model, cancellation=None, settings=None) -> Model:
        path = tmp_path / "model.onnx"
        if isinstance(model, Path):
            path = model
        elif isinstance(model, RecurrentModel):
            save_recurrent(path, model)
        else:
            onnx.save(model, path)
        source = ModelSource("m", 1, path, settings or ModelSettings())
        metrics = Metrics(CollectorRegistry())
        return Model(source, ModelOptions(), metrics, cancellation=cancellation)

    return load


def open_file(model: RecurrentModel) -> onnxruntime.InferenceSession:
    return open_proto(make_recurrent(model))


def assert_close(actual, expected, dtype=np.float32):
    tolerance = 1e-5 if dtype == np.float32 else 1e-2
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", RAGGED)
def test_rows_of_different_lengths_have_the_answers_that_they_have_alone(load, name):
    description = RAGGED[name]
    model = load(description)
    form = model.sequences
    assert (form.is_ragged, form.ragged_reason) == (True, "")
    assert form.time_axes == {"tokens" if description.tokens else "steps": 1}
    assert form.lengths_input == ("lengths" if description.lengths else "")
    rows, width = len(LENGTHS_OF_ROWS), max(LENGTHS_OF_ROWS) + 2
    inputs = description.make_inputs(rows, width, seed=5)
    padded = {**inputs, LENGTHS: np.array(LENGTHS_OF_ROWS, np.int32)}
    if description.lengths:
        padded["lengths"] = padded[LENGTHS]
    together = model.sessions[0].run(padded)
    alone = run_alone(open_file(description), inputs, LENGTHS_OF_ROWS)
    for index, output in enumerate(together):
        for row, length in enumerate(LENGTHS_OF_ROWS):
            steps = slice(length) if index in form.output_time_axes else slice(None)
            assert_close(output[row : row + 1, steps], alone[row][index], description.dtype)


@pytest.mark.parametrize("name", [name for name, one in RAGGED.items() if "input" not in name])
@pytest.mark.parametrize("piece", [1, 4])
def test_pieces_with_the_state_have_the_answers_of_whole_sequences(load, name, piece):
    description = RAGGED[name]
    model = load(description)
    form = model.sequences
    if description.direction != "forward":
        assert (form.has_state, form.state_size) == (False, 0)
        assert "reads sequences from their end" in form.stateless_reason
        return
    assert (form.state_size, form.stateless_reason) == (description.state_size, "")
    inputs = description.make_inputs(2, 9, seed=6)
    state = np.zeros((2, form.state_size), np.float32)
    pieces = []
    for start in range(0, 9, piece):
        part = {
            key: array[:, start : start + piece] if key in form.time_axes else array
            for key, array in inputs.items()
        }
        if description.lengths:
            part["lengths"] = np.full(2, min(piece, 9 - start), np.int32)
        *outputs, state = model.sessions[0].run({**part, STATE: state})
        pieces.append(outputs)
    expected = open_file(description).run(None, inputs)
    for index, whole in enumerate(expected):
        parts = [outputs[index] for outputs in pieces]
        actual = np.concatenate(parts, 1) if index in form.output_time_axes else parts[-1]
        assert_close(actual, whole, description.dtype)


@pytest.mark.parametrize("name", ["lstm", "bidirectional", "lengths and gather"])
def test_without_lengths_and_state_the_session_runs_as_that_of_the_file(load, name):
    description = RAGGED[name]
    session = load(description).sessions[0]
    for rows, steps in [(1, 1), (5, 3), (2, 30), (5, 3)]:
        inputs = description.make_inputs(rows, steps, seed=rows)
        expected = open_file(description).run(None, inputs)
        outputs = session.run(inputs)
        assert len(outputs) == len(expected)
        for actual, one in zip(outputs, expected, strict=True):
            assert_close(actual, one)


def test_a_state_that_begins_with_an_input_is_closed(load):
    form = load(RAGGED["input"]).sequences
    assert (
        form.stateless_reason == "the state of its layer LSTM 'layer_0' begins with values of 'h0'"
    )


def test_the_session_of_the_file_is_freed(tmp_path):
    path = save_recurrent(tmp_path / "model.onnx")
    session = Session(path, RuntimeOptions())
    before = weakref.ref(session._session)
    signature = Signature(session.inputs, session.outputs, batched=True)
    cancellation = LoadCancellation()
    form = find_sequences(
        "m", path, [session], signature, (), is_reshaped=False, cancellation=cancellation
    )
    assert (form.is_ragged, session.runs_sequences) == (True, True)
    assert before() is None
    session.close()
    with pytest.raises(UnavailableError):
        session.use_sequence_graph(b"", form)


def test_the_content_of_the_graph_is_not_kept_beside_its_session(tmp_path):
    path = save_recurrent(tmp_path / "model.onnx")
    session = Session(path, RuntimeOptions())
    content = make_recurrent(RecurrentModel()).SerializeToString()
    graph = session.open_sequence_graph(content, SequenceForm({"steps": 1}), LoadCancellation())
    assert content not in vars(graph.session).values()


def test_all_instances_run_the_rewritten_graph(tmp_path):
    path = save_recurrent(tmp_path / "model.onnx")
    metrics = Metrics(CollectorRegistry())
    model = Model(ModelSource("m", 1, path), ModelOptions(instances=3), metrics)
    assert [session.runs_sequences for session in model.sessions] == [True] * 3


def test_the_graph_for_another_device_is_proved_on_the_cpu(tmp_path):
    """What a session on a GPU does first, whose own runs round too differently for it."""
    description = RecurrentModel(layers=2, answer="both")
    path = save_recurrent(tmp_path / "model.onnx", description)
    session = Session(path, RuntimeOptions())
    cancellation = LoadCancellation()
    inputs = description.make_inputs(3, 5)
    run = session.open_trace(path.read_bytes(), cancellation)
    for actual, expected in zip(run(inputs), session.run(inputs), strict=True):
        assert_close(actual, expected)
    form = SequenceForm({"steps": 1}, {1: 1})
    lengths = helper.make_tensor_value_info(LENGTHS, TensorProto.INT32, ["rows"])
    proto = make_recurrent(description)
    proto.graph.input.append(lengths)
    content = proto.SerializeToString()
    graph = session.open_sequence_graph(content, form, cancellation, on_cpu=True)
    for actual, expected in zip(graph.run(inputs), session.run(inputs), strict=True):
        assert_close(actual, expected)


def with_nodes(model, nodes, constants=None, output="last", shape=("batch", CLASSES)):
    """Return a model with nodes behind its answer, which become the answer: "changed"."""
    graph = model.graph
    graph.node.extend(nodes)
    for name, array in (constants or {}).items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    kept = [one for one in graph.output if one.name != output]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("changed", TensorProto.FLOAT, shape))
    graph.output.extend(kept)
    return model


def gated_by_any_step():
    """The answer is another one if any step is above 1000, which no synthetic input is."""
    return with_nodes(
        make_recurrent(RecurrentModel()),
        [
            helper.make_node("ReduceMax", ["steps"], ["highest"], axes=[1, 2], keepdims=0),
            helper.make_node("Unsqueeze", ["highest", "one"], ["column"]),
            helper.make_node("Greater", ["column", "bound"], ["is_high"]),
            helper.make_node("Neg", ["last"], ["negative"]),
            helper.make_node("Where", ["is_high", "negative", "last"], ["changed"]),
        ],
        {"one": np.array([1]), "bound": np.float32(1000)},
    )


def with_attention():
    return with_nodes(
        make_recurrent(RecurrentModel(answer="steps")),
        [
            helper.make_node("Transpose", ["every"], ["keys"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["every", "keys"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
            helper.make_node("MatMul", ["weights", "every"], ["changed"]),
        ],
        output="every",
        shape=("batch", "time", CLASSES),
    )


def with_convolution():
    return with_nodes(
        make_recurrent(RecurrentModel(answer="steps")),
        [
            helper.make_node("Transpose", ["every"], ["channels"], perm=[0, 2, 1]),
            helper.make_node("Conv", ["channels", "kernel"], ["mixed"], pads=[1, 1]),
            helper.make_node("Transpose", ["mixed"], ["changed"], perm=[0, 2, 1]),
        ],
        {"kernel": np.ones((CLASSES, CLASSES, 3), np.float32)},
        output="every",
        shape=("batch", "time", CLASSES),
    )


def flattened():
    return with_nodes(
        make_recurrent(RecurrentModel(answer="steps")),
        [helper.make_node("Flatten", ["every"], ["changed"])],
        output="every",
        shape=("batch", "all"),
    )


def divided_by_the_steps():
    return with_nodes(
        make_recurrent(RecurrentModel()),
        [
            helper.make_node("Shape", ["steps"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "one"], ["count"]),
            helper.make_node("Cast", ["count"], ["divisor"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["last", "divisor"], ["changed"]),
        ],
        {"one": np.array([1])},
    )


def with_condition():
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["last"], [operator])],
            operator,
            [],
            [helper.make_tensor_value_info(operator, TensorProto.FLOAT, ("batch", CLASSES))],
        )
        for operator in ("Neg", "Identity")
    ]
    return with_nodes(
        make_recurrent(RecurrentModel()),
        [
            helper.make_node("ReduceMax", ["last"], ["highest"], keepdims=0),
            helper.make_node("Greater", ["highest", "bound"], ["is_high"]),
            helper.make_node(
                "If", ["is_high"], ["changed"], then_branch=branches[0], else_branch=branches[1]
            ),
        ],
        {"bound": np.float32(1000)},
    )


def joined_inputs(first_time, second_time):
    """A layer that reads the steps of two inputs beside each other, and a row without steps."""
    proto = make_recurrent(RecurrentModel(answer="both"))
    graph = proto.graph
    del graph.input[:]
    for name, size, time in (("a", 1, first_time), ("b", FEATURES - 1, second_time)):
        graph.input.append(helper.make_tensor_value_info(name, 1, ["batch", time, size]))
    graph.input.append(helper.make_tensor_value_info("bias", 1, ["batch", 1, FEATURES]))
    graph.node.insert(0, helper.make_node("Add", ["joined", "bias"], ["steps"]))
    graph.node.insert(0, helper.make_node("Concat", ["a", "b"], ["joined"], axis=2))
    return proto


@pytest.mark.parametrize("names", [("time", "time"), (None, None), ("length_a", "length_b")])
def test_several_inputs_may_have_steps(load, names):
    proto = joined_inputs(*names)
    model = load(proto)
    assert model.sequences.time_axes == {"a": 1, "b": 1}
    random = np.random.default_rng(2)
    inputs = {
        name: random.standard_normal((4, steps, size)).astype(np.float32)
        for name, steps, size in (("a", 12, 1), ("b", 12, FEATURES - 1), ("bias", 1, FEATURES))
    }
    together = model.sessions[0].run({**inputs, LENGTHS: np.array(LENGTHS_OF_ROWS, np.int32)})
    file = open_proto(proto)
    for row, length in enumerate(LENGTHS_OF_ROWS):
        alone = {name: array[row : row + 1, :length] for name, array in inputs.items()}
        last, every = file.run(None, alone)
        assert_close(together[0][row], last[0])
        assert_close(together[1][row, :length], every[0])


def test_the_steps_may_be_along_any_axis_but_the_first(load):
    proto = make_recurrent(RecurrentModel("GRU", answer="steps"))
    graph = proto.graph
    graph.node[0].attribute[0].CopyFrom(helper.make_attribute("perm", [2, 0, 1]))
    shape = ["batch", FEATURES, "time"]
    graph.input[0].CopyFrom(helper.make_tensor_value_info("steps", 1, shape))
    back = helper.make_node("Transpose", ["every"], ["changed"], perm=[0, 2, 1])
    proto = with_nodes(proto, [back], output="every", shape=("batch", CLASSES, "time"))
    model = load(proto)
    form = model.sequences
    assert (form.time_axes, form.output_time_axes, form.has_state) == ({"steps": 2}, {0: 2}, True)
    inputs = RecurrentModel().make_inputs(4, 12)["steps"].transpose(0, 2, 1)
    lengths = np.array(LENGTHS_OF_ROWS, np.int32)
    (together,) = model.sessions[0].run({"steps": inputs, LENGTHS: lengths})
    for row, length in enumerate(lengths):
        (alone,) = open_proto(proto).run(None, {"steps": inputs[row : row + 1, :, :length]})
        assert_close(together[row, :, :length], alone[0])


def open_proto(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    content = proto.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def with_two_sequences():
    """A recurrent layer for a source, one for a target, of different lengths."""
    model, other = (make_recurrent(RecurrentModel(seed=seed)) for seed in (1, 2))
    prefixed = onnx.compose.add_prefix(other, "b_")
    prefixed.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "other_time"
    model.graph.input.extend(prefixed.graph.input)
    model.graph.initializer.extend(prefixed.graph.initializer)
    model.graph.node.extend(prefixed.graph.node)
    return with_nodes(model, [helper.make_node("Add", ["last", "b_last"], ["changed"])])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (gated_by_any_step, "its operator ReduceMax may look across steps"),
        (with_attention, "its operator MatMul may look across steps"),
        (with_convolution, "its operator Conv may look across steps"),
        (flattened, "the shape of output 'changed' depends on the steps in an unknown way"),
        (divided_by_the_steps, "its operator Div depends on the number of steps"),
        (with_condition, "axis 0 is not that of independent rows|its operator If may look"),
        (with_two_sequences, "its layers read sequences of different inputs"),
        (lambda: make_recurrent(RecurrentModel(pooling="ReduceMean")), "its operator ReduceMean"),
        (lambda: make_recurrent(RecurrentModel(time=6)), "no input has a number of steps that is"),
    ],
)
def test_what_may_look_across_steps_is_served_one_length_at_a_time(load, make, reason):
    proto = make()
    model = load(proto)
    form = model.sequences
    assert (form.is_ragged, form.has_state, model.sessions[0].runs_sequences) == (False,) * 3
    assert re.search(reason, form.ragged_reason), form.ragged_reason
    inputs = {
        spec.name: np.random.default_rng(1)
        .standard_normal((2, 6, *spec.shape[2:]))
        .astype(np.float32)
        for spec in model.signature.inputs
    }
    file = open_proto(proto)
    expected = file.run(None, inputs)
    for actual, one in zip(model.sessions[0].run(inputs), expected, strict=True):
        assert_close(actual, one)


def assert_ragged(model: Model, proto: onnx.ModelProto, inputs, lengths=LENGTHS_OF_ROWS):
    """Check that rows together have the answers that the file gives them alone."""
    assert model.sequences.ragged_reason == ""
    session = model.sessions[0]
    together = session.run({**inputs, LENGTHS: np.array(lengths, np.int32)})
    file = open_proto(proto)
    for row, alone in enumerate(run_alone(file, inputs, lengths)):
        for index, output in enumerate(together):
            steps = model.sequences.output_time_axes.get(index)
            part = output[row : row + 1]
            assert_close(part if steps is None else part[:, : lengths[row]], alone[index])


def with_positions(bound: int) -> onnx.ModelProto:
    """The answer to a step is another one from a position on."""
    return with_nodes(
        make_recurrent(RecurrentModel(answer="steps")),
        [
            helper.make_node("Shape", ["steps"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "one"], ["count"]),
            helper.make_node("Range", ["zero", "count", "one"], ["positions"]),
            helper.make_node("Unsqueeze", ["positions", "axes"], ["column"]),
            helper.make_node("Less", ["column", "bound"], ["is_early"]),
            helper.make_node("Neg", ["every"], ["negative"]),
            helper.make_node("Where", ["is_early", "every", "negative"], ["changed"]),
        ],
        {
            "one": np.array(1),
            "zero": np.array(0),
            "axes": np.array([0, 2]),
            "bound": np.array(bound),
        },
        output="every",
        shape=("batch", "time", CLASSES),
    )


def test_positions_of_steps_are_right_for_whole_sequences_only(load):
    proto = with_positions(3)
    model = load(proto)
    assert_ragged(model, proto, RecurrentModel().make_inputs(4, 12))
    assert model.sequences.stateless_reason == (
        "its operator Where depends on the position of a step"
    )


def reversed_by(operator: str) -> onnx.ModelProto:
    """A layer that reads from the end since its input is reversed before it."""
    model = make_recurrent(RecurrentModel("GRU"))
    graph = model.graph
    transpose = graph.node[0]
    time_first, transpose.output[0] = transpose.output[0], "time_first"
    if operator == "Slice":
        values = {"first": [-1], "end": [-(1 << 62)], "axis": [0], "by": [-1]}
        for name, value in values.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        nodes = [helper.make_node("Slice", ["time_first", *values], [time_first])]
    else:
        for name, value in {"zero": 0, "one": [1]}.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        nodes = [
            helper.make_node("Shape", ["time_first"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "zero"], ["count"]),
            helper.make_node("Gather", ["sizes", "one"], ["rows"]),
            helper.make_node("Expand", ["count", "rows"], ["counts"]),
            helper.make_node(
                "ReverseSequence", ["time_first", "counts"], [time_first], time_axis=0, batch_axis=1
            ),
        ]
    for index, node in enumerate(nodes, start=1):
        graph.node.insert(index, node)
    return model


@pytest.mark.parametrize("operator", ["Slice", "ReverseSequence"])
def test_each_row_is_reversed_by_itself(load, operator):
    proto = reversed_by(operator)
    model = load(proto)
    assert_ragged(model, proto, RecurrentModel().make_inputs(4, 12))
    reason = f"its operator {operator} reads sequences from their end"
    assert model.sequences.stateless_reason == reason
    assert not model.sequences.has_state


def test_lengths_that_are_cast_are_those_of_the_caller(load):
    proto = make_recurrent(RecurrentModel(lengths=True))
    (layer,) = [node for node in proto.graph.node if node.op_type == "LSTM"]
    layer.input[4] = "cast_lengths"
    proto.graph.node.insert(0, helper.make_node("Cast", ["lengths"], ["cast_lengths"], to=6))
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    model = load(proto)
    form = model.sequences
    assert (form.lengths_input, form.ragged_reason, form.has_state) == ("lengths", "", True)
    inputs = {**RecurrentModel().make_inputs(2, 9), "lengths": np.array([4, 9])}
    padded = {name: np.concatenate([a, a[:, -1:]], 1) if a.ndim > 1 else a
              for name, a in inputs.items()}  # fmt: skip
    together = model.sessions[0].run({**padded, LENGTHS: np.array([9, 9], np.int32)})
    file = open_proto(proto)
    assert_close(together[0], file.run(None, inputs)[0])


def test_a_masked_mean_is_served_with_the_lengths_of_the_caller(load):
    """ReduceSum looks at all steps, of which the nodes before it leave out the padding."""
    proto = make_recurrent(RecurrentModel(lengths=True, answer="steps"))
    proto = with_nodes(
        proto,
        [
            helper.make_node("Shape", ["steps"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "one"], ["count"]),
            helper.make_node("Cast", ["count"], ["count32"], to=TensorProto.INT32),
            helper.make_node("Range", ["zero", "count32", "one32"], ["positions"]),
            helper.make_node("Unsqueeze", ["lengths", "axis"], ["column"]),
            helper.make_node("Less", ["positions", "column"], ["is_step"]),
            helper.make_node("Cast", ["is_step"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask3"]),
            helper.make_node("Mul", ["every", "mask3"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "axis"], ["sums"], keepdims=0),
            helper.make_node("Cast", ["column"], ["divisor"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["sums", "divisor"], ["changed"]),
        ],
        {
            "one": np.array(1),
            "zero": np.int32(0),
            "one32": np.int32(1),
            "axis": np.array([1]),
            "last_axis": np.array([2]),
        },
        output="every",
    )
    model = load(proto)
    assert model.sequences.is_ragged
    assert not model.sequences.has_state  # the mean of a piece is not that of the sequence
    inputs = RecurrentModel(lengths=True).make_inputs(4, 12)
    assert_ragged(model, proto, {**inputs, "lengths": np.array(LENGTHS_OF_ROWS, np.int32)})


def overridable(*names: str, model: RecurrentModel) -> onnx.ModelProto:
    """A model whose initialisers with these roles callers may override."""
    proto = make_recurrent(model)
    layer = next(node for node in proto.graph.node if node.op_type == model.operator)
    roles = dict(zip(("X", "W", "R", "B", "lengths", "h"), layer.input, strict=False))
    for name in names:
        (array,) = [one for one in proto.graph.initializer if one.name == roles[name]]
        info = helper.make_tensor_value_info(array.name, array.data_type, list(array.dims))
        proto.graph.input.append(info)
    return proto


def test_weights_that_callers_may_override_stay_so(load):
    proto = overridable("W", "B", model=RecurrentModel())
    model = load(proto)
    assert model.sequences.has_state
    weights = model.signature.optional[0]
    inputs = RecurrentModel().make_inputs(2, 5)
    inputs[weights.name] = np.full(weights.shape, 0.25, np.float32)
    file = open_proto(proto)
    assert_close(model.sessions[0].run(inputs)[0], file.run(None, inputs)[0])


def test_a_first_state_that_callers_may_override_is_closed(load):
    proto = make_recurrent(RecurrentModel("GRU"))
    (layer,) = [node for node in proto.graph.node if node.op_type == "GRU"]
    layer.input.extend(["", "all_rows"])
    first = numpy_helper.from_array(np.full((1, 1, HIDDEN), 0.5, np.float32), "first")
    proto.graph.initializer.append(first)
    proto.graph.input.append(helper.make_tensor_value_info("first", 1, [1, 1, HIDDEN]))
    shape = numpy_helper.from_array(np.array([1]), "row_axis")
    proto.graph.initializer.append(shape)
    for index, node in enumerate(
        [
            helper.make_node("Shape", ["steps"], ["sizes"]),
            helper.make_node("Slice", ["sizes", "begin", "row_axis"], ["rows"]),
            helper.make_node("Concat", ["row_axis", "rows", "row_axis"], ["whole"], axis=0),
            helper.make_node("Expand", ["first", "whole"], ["all_rows"]),
        ]
    ):
        proto.graph.node.insert(index, node)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "begin"))
    form = load(proto).sequences
    assert form.is_ragged
    assert form.stateless_reason == (
        "the state of its layer GRU 'layer_0' begins with values of 'first'"
    )


def test_external_data_are_put_into_the_rewritten_graph(load, tmp_path):
    proto = make_recurrent(RecurrentModel(layers=2))
    path = tmp_path / "model.onnx"
    onnx.save_model(
        onnx.ModelProto.FromString(proto.SerializeToString()),
        path,
        save_as_external_data=True,
        size_threshold=64,  # not those of shapes
    )
    assert (tmp_path / path).stat().st_size < len(proto.SerializeToString())
    assert_ragged(load(path), proto, RecurrentModel().make_inputs(4, 12))


def test_a_quantised_layer_is_served_one_length_at_a_time(load, tmp_path):
    """It quantises all rows and steps with one scale."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    before = save_recurrent(tmp_path / "float.onnx")
    quantization.quantize_dynamic(before, tmp_path / "model.onnx", op_types_to_quantize=["LSTM"])
    model = load(tmp_path / "model.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "DynamicQuantizeLSTM" in operators
    assert not model.sequences.is_ragged
    assert model.sequences.ragged_reason


class StepCounter:
    """Cancels a load at its step of a number, never if that is 0."""

    def __init__(self, stop_at: int = 0):
        self.count, self.stop_at = 0, stop_at
        self.cancellation = LoadCancellation(self.count_step)

    def count_step(self):
        self.count += 1
        if self.count == self.stop_at:
            self.cancellation.cancel("no longer wanted")


def test_the_analysis_of_a_model_can_be_cancelled(load):
    description = RecurrentModel(read_out="gather")
    whole = StepCounter()
    load(description, whole.cancellation)
    assert whole.count > 50
    for stop_at in range(2, whole.count, 9):
        with pytest.raises(LoadError, match="no longer wanted"):
            load(description, StepCounter(stop_at).cancellation)


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tract_byte_sb_bidi_lstm", ""),
        ("ort_lstm_bidirectional_cntk", "axis 0 is not that of independent rows"),
        ("onnx_node_rnn_seq_length", "axis 0 is not that of independent rows"),
        ("onnx_node_gru_seq_length", "axis 0 is not that of independent rows"),
        ("onnx_node_lstm_with_peepholes", "axis 0 is not that of independent rows"),
        ("ort_scan_1", "axis 0 is not that of independent rows"),
    ],
)
def test_third_party_models_share_runs_or_say_why_not(load, name, reason):
    model = load(Path(SHARED) / "onnx" / name / "model.onnx")
    assert reason in model.sequences.ragged_reason
    assert model.sequences.is_ragged is (reason == "")


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
def test_bytes_of_different_lengths_share_a_run_of_a_third_party_model(load):
    """Stacked layers of two directions, whose states are made of the shape."""
    path = Path(SHARED) / "onnx" / "tract_byte_sb_bidi_lstm" / "model.onnx"
    model = load(path)
    assert model.sequences.time_axes == {"input": 1}
    text = np.random.default_rng(3).integers(0, 256, (5, 40)).astype(np.uint8)
    lengths = np.array([40, 1, 17, 33, 8], np.int32)
    (together,) = model.sessions[0].run({"input": text, LENGTHS: lengths})
    file = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for row, length in enumerate(lengths):
        (alone,) = file.run(None, {"input": text[row : row + 1, :length]})
        assert_close(together[row, :length], alone[0])


def test_a_model_without_recurrent_layers_needs_no_onnx(tmp_path):
    path = onnx_models.save_classifier(tmp_path / "model.onnx")
    code = f"""
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics
source = ModelSource("m", 1, Path({str(path)!r}))
model = Model(source, ModelOptions(), Metrics(CollectorRegistry()))
assert model.sequences is None
assert "onnx" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
