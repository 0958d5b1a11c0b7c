"""The stepwise form of a recurrent model: `step.onnx`, beside model.onnx in the same folder.

model.onnx reads whole sequences and begins each with a state of zeros. step.onnx is the same
graph with the state open, so that a caller who keeps it can send a sequence piece by piece,
as its steps come, and a server can let sequences join and leave a batch between pieces:

    inputs   those of model.onnx, and initial_h (batch, hidden), for an LSTM initial_c too:
             the state after the steps before; zeros begin a sequence
    outputs  the answer, as if the sequence ended with this piece, and Y_h (batch, hidden),
             for an LSTM Y_c too: the state to go on from

The names are those of ONNX's operators; rows are along axis 0, as in every other tensor.
Each row of a piece has at least one step of its own. Its weights are copies: it stands alone.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import InputDescription
from neurona_training.data import LENGTHS, Dataset
from neurona_training.errors import ExportError
from neurona_training.export.parity import as_sent, differs

STEPS = "step.onnx"  # the file's name
PIECES = (1, 3, 8)  # steps at once, in the proof
ROWS = 7

# What goes in and what comes out, in the order of ONNX's operators; an LSTM has both.
_STATES = (("initial_h", "Y_h", "what the network shows"), ("initial_c", "Y_c", "its memory"))
_FIRST_STATE = 5  # the place of initial_h among an operator's inputs
_OPERATORS = {"RNN": 1, "GRU": 1, "LSTM": 2}  # how many of _STATES it has


def stepwise(model: bytes, data: Dataset) -> bytes:
    """step.onnx of a model.onnx that has one recurrent operator, and reads each step by itself.

    Raises ExportError when there is none or several, or when pieces of test rows do not lead
    to the answers of the whole rows.
    """
    steps = _opened(model)
    prove_pieces(steps, model, data)
    return steps


def prove_pieces(steps: bytes, model: bytes, data: Dataset) -> None:
    """Asks `steps` for test rows piece by piece, and `model` for the whole.

    Rows end at different times where the data have lengths, and then leave the batch.
    Raises ExportError at the first answer that differs.
    """
    by_piece, whole = _session(steps), _session(model)
    states = [given.name for given in by_piece.get_inputs()][len(data.inputs) :]
    rows = np.arange(ROWS) % len(data.test)
    sequences = as_sent(data.test.inputs[rows], data.input)
    lengths = np.full(ROWS, sequences.shape[1], np.int32)
    if data.test.lengths is not None:
        lengths = data.test.lengths[rows]
        sequences = sequences[:, : lengths.max()]

    def sent(sequences: NDArray[Any], lengths: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        has_lengths = data.test.lengths is not None
        return {data.input.name: sequences, **({LENGTHS.name: lengths} if has_lengths else {})}

    (expected,) = whole.run(None, sent(sequences, lengths))
    for piece in PIECES:
        answers = np.full_like(expected, np.nan)
        state = _zeros(by_piece, states, ROWS)
        for first in range(0, int(lengths.max()), piece):
            alive = np.flatnonzero(lengths > first)
            own = np.minimum(lengths[alive] - first, piece)
            pieces = sequences[alive, first : first + piece]
            known = {name: array[alive] for name, array in state.items()}
            answers[alive], *after = by_piece.run(None, {**sent(pieces, own), **known})
            for array, new in zip(state.values(), after, strict=True):
                array[alive] = new
        if differs(answers, expected):
            raise ExportError(
                f"{STEPS} in pieces of {piece} steps differs from the whole sequences by up to "
                f"{np.abs(answers - expected).max():.3g}"
            )


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the runs are short
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _zeros(
    session: onnxruntime.InferenceSession, names: list[str], rows: int
) -> dict[str, NDArray[np.float32]]:
    hidden = {given.name: given.shape[1] for given in session.get_inputs() if given.name in names}
    return {name: np.zeros((rows, hidden[name]), np.float32) for name in names}


def _opened(model: bytes) -> bytes:
    steps = onnx.load_from_string(model)
    graph = steps.graph
    found = [node for node in graph.node if node.op_type in _OPERATORS]
    if len(found) != 1:
        raise ExportError(f"the graph has {len(found)} recurrent operators, not one")
    (node,) = found
    hidden = next(item.i for item in node.attribute if item.name == "hidden_size")
    states = _STATES[: _OPERATORS[node.op_type]]
    node.input.extend([""] * (_FIRST_STATE - len(node.input)))
    node.output.extend([""] * (1 + len(states) - len(node.output)))

    axis = "state_axis"  # ONNX has directions first: one
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), axis))
    before, after = [], []
    for place, (given, left, _) in enumerate(states, start=1):
        node.output[place] = node.output[place] or f"{left}_directions"
        node.input.append(f"{given}_directions")
        before.append(helper.make_node("Unsqueeze", [given, axis], [node.input[-1]]))
        after.append(helper.make_node("Squeeze", [node.output[place], axis], [left]))
        shape = ("batch", hidden)
        graph.input.append(helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, shape))
        graph.output.append(helper.make_tensor_value_info(left, onnx.TensorProto.FLOAT, shape))
    place = list(graph.node).index(node)
    sorted_nodes = [*graph.node[:place], *before, node, *after, *graph.node[place + 1 :]]
    del graph.node[:]
    graph.node.extend(sorted_nodes)
    _describe(steps, states)
    onnx.checker.check_model(steps, full_check=True)
    written: bytes = steps.SerializeToString(deterministic=True)
    return written


def _describe(steps: onnx.ModelProto, states: tuple[tuple[str, str, str], ...]) -> None:
    """Says in the metadata what the new inputs are; an answer has no unit for them."""
    (entry,) = [item for item in steps.metadata_props if item.key == metadata.KEY]
    described = metadata.from_json(entry.value)
    for given, left, what in states:
        described.inputs.append(
            InputDescription(
                name=given,
                description=f"the state after the steps before ({what}), which was {left} "
                "there; zeros begin a sequence",
                unit="",
            )
        )
    described.description += "; stepwise form"
    entry.value = metadata.to_json(described)
