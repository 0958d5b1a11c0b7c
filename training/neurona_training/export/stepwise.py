"""The stepwise form of a recurrent model: `step.onnx`, beside model.onnx in the same folder.

model.onnx reads whole sequences and starts each with a state of zeros. step.onnx is the same
graph with the state as input and output, so that a caller who keeps the state can send a
sequence piece by piece, and a server can let sequences join and leave a batch between pieces:

    inputs   those of model.onnx, and initial_h (batch, hidden), for an LSTM initial_c too:
             the state after the previous steps; zeros for the start of a sequence
    outputs  the prediction as if the sequence ended with this piece, and Y_h (batch, hidden),
             for an LSTM Y_c too: the state to continue from

The names are those of ONNX's operators; rows are along axis 0, as in every other tensor. Of
several layers each has a state of its own, with the layer's number at the end of its names:
initial_h_1, Y_h_1, initial_h_2, ... Each row of a piece has at least one step. The file has its
own copy of the weights.

A bidirectional network needs the end of a sequence before its beginning is read, and a forecast
is made of the latest window as a whole: both have no stepwise form.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from torch import nn

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import InputDescription
from neurona_training.architectures.input_layers import without_wrappers
from neurona_training.architectures.recurrent import LastState
from neurona_training.data import LENGTHS, Dataset
from neurona_training.errors import ExportError
from neurona_training.export.parity import caller_array, differs

STEP_FILE = "step.onnx"
PIECE_LENGTHS = (1, 3, 8)  # steps at once, in the verification
TEST_ROWS = 7

State = tuple[str, str, str]  # names of its input and output, and its meaning

# In the order of ONNX's operators; an LSTM has both.
_STATES: tuple[State, ...] = (
    ("initial_h", "Y_h", "what the network shows"),
    ("initial_c", "Y_c", "its memory"),
)
_STATE_INPUT = 5  # position of initial_h among an operator's inputs
_STATE_COUNTS = {"RNN": 1, "GRU": 1, "LSTM": 2}  # by operator


def has_stepwise_form(network: nn.Module) -> bool:
    """Whether the state of the network's layers is all that it keeps of previous steps."""
    inner = without_wrappers(network)
    return isinstance(inner, LastState) and inner.is_stepwise


def export_stepwise(model: bytes, data: Dataset) -> bytes:
    """Makes step.onnx of a model.onnx and verifies it.

    Args:
        model: has recurrent operators of one direction, and treats each step by itself before
            the first of them.
        data: the test rows that verify the result.

    Returns:
        The ONNX file.

    Raises:
        ExportError: no recurrent operator, one of two directions, or pieces of test rows that
            lead to other predictions than the whole rows.
    """
    steps = _expose_state(model)
    verify_pieces(steps, model, data)
    return steps


def verify_pieces(steps: bytes, model: bytes, data: Dataset) -> None:
    """Compares `steps`, run piece by piece, with `model`, run on whole test rows.

    Rows with different lengths leave the batch at different times.

    Raises:
        ExportError: at the first predictions that differ.
    """
    step_session, session = _open_session(steps), _open_session(model)
    states = [one.name for one in step_session.get_inputs()][len(data.inputs) :]
    rows = np.arange(TEST_ROWS) % len(data.test)
    sequences = caller_array(data.test.inputs[rows], data.input)
    lengths = np.full(TEST_ROWS, sequences.shape[1], np.int32)
    if data.test.lengths is not None:
        lengths = data.test.lengths[rows]
        sequences = sequences[:, : lengths.max()]

    def named_inputs(
        sequences: NDArray[Any], lengths: NDArray[np.int32]
    ) -> dict[str, NDArray[Any]]:
        has_lengths = data.test.lengths is not None
        return {data.input.name: sequences, **({LENGTHS.name: lengths} if has_lengths else {})}

    (expected,) = session.run(None, named_inputs(sequences, lengths))
    for piece_length in PIECE_LENGTHS:
        outputs = np.full_like(expected, np.nan)
        state = _zero_state(step_session, states, TEST_ROWS)
        for start in range(0, int(lengths.max()), piece_length):
            active = np.flatnonzero(lengths > start)
            piece_lengths = np.minimum(lengths[active] - start, piece_length)
            pieces = sequences[active, start : start + piece_length]
            active_state = {name: array[active] for name, array in state.items()}
            inputs = {**named_inputs(pieces, piece_lengths), **active_state}
            outputs[active], *next_state = step_session.run(None, inputs)
            for array, new in zip(state.values(), next_state, strict=True):
                array[active] = new
        if differs(outputs, expected):
            raise ExportError(
                f"{STEP_FILE} in pieces of {piece_length} steps differs from whole sequences by "
                f"up to {np.abs(outputs - expected).max():.3g}"
            )


def _open_session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the runs are short
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _zero_state(
    session: onnxruntime.InferenceSession, names: list[str], rows: int
) -> dict[str, NDArray[np.float32]]:
    hidden = {one.name: one.shape[1] for one in session.get_inputs() if one.name in names}
    return {name: np.zeros((rows, hidden[name]), np.float32) for name in names}


def _expose_state(model: bytes) -> bytes:
    steps = onnx.load_from_string(model)
    graph = steps.graph
    nodes = [node for node in graph.node if node.op_type in _STATE_COUNTS]
    if not nodes:
        raise ExportError("the graph has no recurrent operator (expected at least 1)")
    axis = "state_axis"  # ONNX has an axis of directions first, here of size 1
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), axis))
    exposed: list[State] = []
    for number, node in enumerate(nodes, start=1):
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if attributes.get("direction", b"forward") != b"forward":
            raise ExportError(
                f"{node.op_type} {node.name!r} reads in direction "
                f"{attributes['direction'].decode()!r} (expected 'forward')"
            )
        suffix, meaning_suffix = (f"_{number}", f", layer {number}") if len(nodes) > 1 else ("", "")
        states = [
            (f"{state_input}{suffix}", f"{state_output}{suffix}", meaning + meaning_suffix)
            for state_input, state_output, meaning in _STATES[: _STATE_COUNTS[node.op_type]]
        ]
        _expose_node(graph, node, states, attributes["hidden_size"], axis)
        exposed += states
    _describe_states(steps, exposed)
    onnx.checker.check_model(steps, full_check=True)
    content: bytes = steps.SerializeToString(deterministic=True)
    return content


def _expose_node(
    graph: onnx.GraphProto, node: onnx.NodeProto, states: Sequence[State], hidden: int, axis: str
) -> None:
    """Makes one operator's states inputs and outputs of the graph, in place."""
    node.input.extend([""] * (_STATE_INPUT - len(node.input)))
    node.output.extend([""] * (1 + len(states) - len(node.output)))
    before, after = [], []
    for position, (state_input, state_output, _) in enumerate(states, start=1):
        node.output[position] = node.output[position] or f"{state_output}_directions"
        node.input.append(f"{state_input}_directions")
        before.append(helper.make_node("Unsqueeze", [state_input, axis], [node.input[-1]]))
        after.append(helper.make_node("Squeeze", [node.output[position], axis], [state_output]))
        for tensors, name in ((graph.input, state_input), (graph.output, state_output)):
            shape = ("batch", hidden)
            tensors.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    index = list(graph.node).index(node)
    for one in reversed(after):
        graph.node.insert(index + 1, one)
    for one in reversed(before):
        graph.node.insert(index, one)


def _describe_states(steps: onnx.ModelProto, states: Sequence[State]) -> None:
    """Adds the state inputs to the metadata."""
    (entry,) = [item for item in steps.metadata_props if item.key == metadata.KEY]
    described = metadata.from_json(entry.value)
    for state_input, state_output, meaning in states:
        described.inputs.append(
            InputDescription(
                name=state_input,
                description=f"the state after the previous steps ({meaning}), the output "
                f"{state_output} there; zeros begin a sequence",
                unit="",
                finite=True,
            )
        )
    described.description += "; stepwise form"
    entry.value = metadata.to_json(described)
