"""Graphs that depend on what runs of short synthetic sequences do not show.

Each has a bound that only long sequences, or values that synthetic inputs do not have, are above.
What is served with lengths or states all the same must not depend on it.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.recurrent_models import CLASSES, FEATURES, HIDDEN, RecurrentModel, make_recurrent

from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.sequence_lengths import find_lengths_inputs
from neurona_server.models.onnx.session import Session
from neurona_server.models.sequence_loading import find_sequences
from neurona_server.models.signature import Signature
from neurona_server.sequences.form import LENGTHS

CONSTANTS = {
    "zero": np.array(0),
    "one": np.array(1),
    "rows_axis": np.array([0]),
    "ones": np.array([1]),
    "bound": np.array(40),
    "high": np.float32(1000),
    "low": np.float32(-1e9),
    "empty": np.float32(0),
    "column_axes": np.array([0, 2]),
    "last_axis": np.array([2]),
    "token": np.array(5),
    "zero32": np.int32(0),
    "one32": np.int32(1),
}

COUNT = [("Shape", "steps", "sizes"), ("Gather", "sizes one", "count")]
POSITIONS = [
    *COUNT,
    ("Range", "zero count one", "flat_positions"),
    ("Unsqueeze", "flat_positions column_axes", "positions"),
]
MASK = [
    ("Shape", "steps", "sizes"),
    ("Gather", "sizes one", "count"),
    ("Cast", "count", "count32", {"to": TensorProto.INT32}),
    ("Range", "zero32 count32 one32", "positions32"),
    ("Unsqueeze", "lengths ones", "column"),
    ("Less", "positions32 column", "flat_mask"),
    ("Unsqueeze", "flat_mask last_axis", "mask"),
]


def extend(model, nodes, output="last"):
    """Return a model with nodes behind its answer, of which "changed" becomes the answer."""
    graph = model.graph
    shape = ["batch", "time", CLASSES] if output == "every" else ["batch", CLASSES]
    for operator, inputs, name, *attributes in nodes:
        options = attributes[0] if attributes else {}
        graph.node.append(helper.make_node(operator, inputs.split(), [name], **options))
    used = {name for node in graph.node for name in node.input}
    for name in used & CONSTANTS.keys():
        graph.initializer.append(numpy_helper.from_array(CONSTANTS[name], name))
    if any(name == "changed" for node in graph.node for name in node.output):
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("changed", TensorProto.FLOAT, shape))
    return model


def layer_of(model):
    return next(node for node in model.graph.node if node.op_type == "LSTM")


def with_steps_bound(*nodes):
    """The answer is another one for sequences of more than 40 steps."""
    nodes = [*COUNT, *nodes, ("Neg", "last", "negative")]
    nodes.append(("Where", "is_long negative last", "changed"))
    return extend(make_recurrent(RecurrentModel()), nodes)


def with_lengths_of_layer(nodes):
    model = make_recurrent(RecurrentModel())
    added = extend(onnx.ModelProto.FromString(model.SerializeToString()), nodes)
    count = len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(added.graph.node[count:])
    model.graph.node.extend(added.graph.node[:count])
    del model.graph.initializer[:]
    model.graph.initializer.extend(added.graph.initializer)
    layer = layer_of(model)
    layer.input.extend(["layer_lengths"] if len(layer.input) == 4 else [])
    return model


def with_bounded_read_out():
    """It reads step 39 of longer sequences, the last one of others."""
    nodes = [
        *COUNT,
        ("Sub", "count one", "last_index"),
        ("Min", "last_index bound", "index"),
        ("Gather", "every index", "changed", {"axis": 1}),
    ]
    return extend(make_recurrent(RecurrentModel(answer="steps")), nodes)


def with_positions_from_the_end():
    nodes = [
        *POSITIONS,
        ("Sub", "count positions", "steps_left"),
        ("Greater", "steps_left bound", "is_early"),
        ("Neg", "every", "negative"),
        ("Where", "is_early negative every", "changed"),
    ]
    return extend(make_recurrent(RecurrentModel(answer="steps")), nodes, "every")


def with_bounded_copies():
    """The last step is added up as often as there are steps, 41 times or more."""
    nodes = [
        *COUNT,
        ("Max", "count bound", "most"),
        ("Unsqueeze", "most rows_axis", "copies"),
        ("Concat", "ones copies ones", "shape", {"axis": 0}),
        ("Unsqueeze", "last ones", "row"),
        ("Expand", "row shape", "repeated"),
        ("ReduceSum", "repeated ones", "changed", {"keepdims": 0}),
    ]
    return extend(make_recurrent(RecurrentModel()), nodes)


def with_count_of_a_token():
    """Behind the end of a row it counts, too; synthetic tokens are 0 and 1."""
    nodes = [
        ("Equal", "tokens token", "is_token"),
        ("Cast", "is_token", "as_float", {"to": TensorProto.FLOAT}),
        ("ReduceSum", "as_float ones", "total", {"keepdims": 1}),
        ("Add", "last total", "changed"),
    ]
    return extend(make_recurrent(RecurrentModel(tokens=True, lengths=True)), nodes)


def with_maximum_of_zeros():
    """Behind the end of a row are zeros, which are the maximum if all values are below."""
    nodes = [("ReduceMax", "every_0", "highest", {"axes": [0, 1], "keepdims": 0})]
    nodes += [("ReduceSum", "highest ones", "total"), ("Add", "last total", "changed")]
    return extend(make_recurrent(RecurrentModel(lengths=True)), nodes)


def with_two_sequences_of_one_name():
    """Layers for two sequences, whose axes some exporters give one name."""
    model, other = (make_recurrent(RecurrentModel(seed=seed)) for seed in (1, 2))
    prefixed = onnx.compose.add_prefix(other, "b_")
    for dim in prefixed.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.dim_param = dim.dim_param.removeprefix("b_")
    model.graph.input.extend(prefixed.graph.input)
    model.graph.initializer.extend(prefixed.graph.initializer)
    model.graph.node.extend(prefixed.graph.node)
    return extend(model, [("Add", "last b_last", "changed")])


def with_function_called_like_an_operator():
    """Its Relu is a maximum of all steps."""
    model = extend(
        make_recurrent(RecurrentModel(answer="steps")), [("Relu", "every", "changed")], "every"
    )
    model.graph.node[-1].domain = "com.microsoft"
    body = [
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Max", ["x", "m"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(
        helper.make_function("com.microsoft", "Relu", ["x"], ["y"], body, opsets)
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.fixture
def find(tmp_path):
    def find(proto):
        path = tmp_path / "model.onnx"
        onnx.save(proto, path)
        session = Session(path, RuntimeOptions())
        signature = Signature(session.inputs, session.outputs, session.optional, batched=True)
        lengths = find_lengths_inputs(path)
        form = find_sequences(
            "m",
            path,
            [session],
            signature,
            lengths,
            is_reshaped=False,
            cancellation=LoadCancellation(),
        )
        return session, form

    return find


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: with_steps_bound(("Greater", "count bound", "is_long")), "its operator Where de"),
        (
            lambda: with_steps_bound(
                ("Max", "count bound", "most"), ("Greater", "most bound", "is_long")
            ),
            "its operator Where depends on the number of steps",
        ),
        (
            lambda: with_lengths_of_layer(
                [
                    ("Shape", "steps", "sizes"),
                    ("Gather", "sizes one", "count"),
                    ("Min", "count bound", "bounded"),
                    ("Gather", "sizes zero", "rows"),
                    ("Unsqueeze", "rows rows_axis", "rows_shape"),
                    ("Expand", "bounded rows_shape", "wide"),
                    ("Cast", "wide", "layer_lengths", {"to": TensorProto.INT32}),
                ]
            ),
            "its operator LSTM 'layer_0' depends on the number of steps",
        ),
        (with_bounded_read_out, "its operator Gather may look across steps"),
        (with_positions_from_the_end, "its operator Where depends on the number of steps"),
        (with_bounded_copies, "its operator Expand depends on the number of steps"),
        (with_count_of_a_token, "its operator ReduceSum may look across steps"),
        (with_maximum_of_zeros, "its operator ReduceMax may look across steps"),
        (with_two_sequences_of_one_name, "its layers read sequences of different inputs"),
        (with_function_called_like_an_operator, "its function Relu is called like an operator"),
    ],
)
def test_lengths_are_not_mixed_if_answers_may_depend_on_them(find, capfd, make, reason):
    session, form = find(make())
    assert capfd.readouterr().err == ""  # of runs that fail since sizes must be equal
    assert form.ragged_reason.startswith(reason), form.ragged_reason
    assert not session.runs_sequences


def with_bounded_positions():
    nodes = [
        *POSITIONS,
        ("Greater", "positions bound", "is_late"),
        ("Neg", "every", "negative"),
        ("Where", "is_late negative every", "changed"),
    ]
    return extend(make_recurrent(RecurrentModel(answer="steps")), nodes, "every")


def with_sign_of_the_first_step():
    nodes = [
        ("Gather", "steps zero", "first", {"axis": 1}),
        ("Gather", "first ones", "feature", {"axis": 1}),
        ("Greater", "feature high", "is_high"),
        ("Neg", "last", "negative"),
        ("Where", "is_high negative last", "changed"),
    ]
    return extend(make_recurrent(RecurrentModel()), nodes)


def with_answers_that_need_the_end():
    nodes = [
        ("Unsqueeze", "last ones", "end"),
        ("Greater", "end high", "is_high"),
        ("Neg", "every", "negative"),
        ("Where", "is_high negative every", "changed"),
    ]
    model = make_recurrent(RecurrentModel(answer="both"))
    del model.graph.output[0]
    return extend(model, nodes, "every")


def with_masked_attention():
    nodes = [
        *MASK,
        ("ReduceSum", "every last_axis", "scores", {"keepdims": 1}),
        ("Where", "mask scores low", "masked"),
        ("Softmax", "masked", "weights", {"axis": 1}),
        ("Transpose", "weights", "turned", {"perm": [0, 2, 1]}),
        ("MatMul", "turned every", "mixed"),
        ("Squeeze", "mixed ones", "changed"),
    ]
    return extend(make_recurrent(RecurrentModel(lengths=True, answer="steps")), nodes)


def test_sequences_that_must_have_equal_lengths_share_them(find, capfd):
    proto = with_two_sequences_of_one_name()
    del proto.graph.output[:]
    nodes = [("Add", "every_0 b_every_0", "sum"), ("Squeeze", "sum ones", "by_step")]
    nodes.append(("Transpose", "by_step", "answers", {"perm": [1, 0, 2]}))
    proto = extend(proto, nodes)
    shape = ["batch", "time", HIDDEN]
    proto.graph.output.append(helper.make_tensor_value_info("answers", TensorProto.FLOAT, shape))
    _, form = find(proto)
    assert (form.ragged_reason, form.time_axes) == ("", {"steps": 1, "b_steps": 1})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_bounded_positions, "its operator Where depends on the position of a step"),
        (
            with_answers_that_need_the_end,
            "its operator Where combines steps with what follows them",
        ),
        (with_sign_of_the_first_step, "its operator Gather reads the first step"),
        (with_masked_attention, "its operator Softmax looks at all steps of a sequence"),
    ],
)
def test_states_are_not_opened_if_answers_may_depend_on_other_pieces(find, make, reason):
    proto = make()
    session, form = find(proto)
    assert (form.ragged_reason, form.stateless_reason, form.has_state) == ("", reason, False)
    lengths = np.array([60, 3, 45], np.int32)
    inputs = {"steps": np.random.default_rng(1).standard_normal((3, 60, FEATURES), np.float32)}
    if form.lengths_input:
        inputs["lengths"] = lengths
    together = session.run({**inputs, LENGTHS: lengths})[0]
    file = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for row, length in enumerate(lengths):
        alone = {"steps": inputs["steps"][row : row + 1, :length]}
        if form.lengths_input:
            alone["lengths"] = lengths[row : row + 1]
        expected = file.run(None, alone)[0][0]
        actual = together[row, :length] if form.output_time_axes else together[row]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_initial_states_may_be_parts_of_zeros_for_all_layers(find):
    """As PyTorch exports several layers."""
    model = make_recurrent(RecurrentModel("GRU", layers=2))
    constants = {"first": [0], "second": [1], "third": [2], "hidden": [4]}
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
    nodes = [
        helper.make_node("Shape", ["steps"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["third", "rows", "hidden"], ["states"], axis=0),
        helper.make_node("ConstantOfShape", ["states"], ["zeros"]),
        helper.make_node("Slice", ["zeros", "first", "second", "first"], ["state_0"]),
        helper.make_node("Slice", ["zeros", "second", "third", "first"], ["state_1"]),
    ]
    layers = [node for node in model.graph.node if node.op_type == "GRU"]
    for number, layer in enumerate(layers):
        layer.input.extend(["", f"state_{number}"])
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    _, form = find(model)
    assert (form.ragged_reason, form.state_size) == ("", 8)
