"""Verifies that an ONNX graph gives the outputs of the network that it was made from.

`verify_parity` compares outputs for many batch sizes and lengths; where they differ,
`find_differing_layer` compares layer by layer.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurona_training.data import LENGTHS, Dataset, Input
from neurona_training.errors import ExportError
from neurona_training.export.tensor_comparison import Tolerance

BATCH_SIZES = (1, 2, 7, 32)
SEQUENCE_LENGTHS = (1, 5, 8, 13, 40)  # steps

Arrays = tuple[NDArray[Any], ...]  # one for each input, in the order of Dataset.inputs
ModuleScopes = Mapping[str, frozenset[str]]  # by tensor, the modules around its node

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"  # of a node: the modules around it, outermost first


class DifferenceError(ExportError):
    """Outputs that differ from torch's.

    arrays: the inputs for which they differ.
    """

    def __init__(self, message: str, arrays: Arrays) -> None:
        super().__init__(message)
        self.arrays = arrays


@runtime_checkable
class Undecided(Protocol):
    """A network whose outputs for some rows jump where rounding differs, as among equals."""

    def undecided_rows(self, *inputs: Tensor) -> NDArray[np.bool_]:
        """Whether each row is one of them, (rows,)."""


def verify_parity(model: bytes, network: nn.Module, data: Dataset) -> None:
    """Compares ONNX Runtime with `network` for every batch size and sequence length.

    The inputs are test rows, in the form in which callers send them; sequences with lengths
    get a different length for each row.

    Args:
        model: an ONNX file with the inputs of `data` and one output.
        network: gives the expected outputs.
        data: the test rows.

    Raises:
        DifferenceError: at the first outputs that differ, with inputs' shapes and the
            difference.
        ExportError: ONNX Runtime cannot load the graph or run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the runs are short
    options.log_severity_level = 3  # errors are raised as exceptions
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ExportError(f"ONNX Runtime cannot load the graph: {_one_line(error)}") from error
    names = [one.name for one in session.get_inputs()]
    expected_names = [described.name for described in data.inputs]
    if names != expected_names:
        raise ExportError(f"the graph has inputs {names} (expected {expected_names})")
    output = session.get_outputs()[0].name
    network.eval()
    for arrays in _test_inputs(data):
        with torch.inference_mode():
            expected = network(*(torch.from_numpy(array) for array in arrays)).numpy()
        shapes = [
            f"input {described.name!r} of shape {list(array.shape)}"
            for described, array in zip(data.inputs, arrays, strict=True)
        ]
        subject = f"output {output!r} for {', '.join(shapes)}"
        try:
            actual = session.run([output], caller_inputs(arrays, data))[0]
        except Exception as error:  # see above
            raise ExportError(f"ONNX Runtime gives no {subject}: {_one_line(error)}") from error
        if isinstance(network, Undecided) and actual.shape == expected.shape:
            rows = network.undecided_rows(*(torch.from_numpy(array) for array in arrays))
            actual = np.where(rows[:, None], expected, actual)
        if difference := _describe_difference(actual, expected):
            raise DifferenceError(f"{subject} {difference}", arrays)


def differs(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether outputs of the same shape differ by more than float32 explains."""
    # not: any(>), which would let NaN pass
    return not bool((np.abs(actual - expected) <= Tolerance().allowed(expected)).all())


def caller_inputs(arrays: Arrays, data: Dataset) -> dict[str, NDArray[Any]]:
    """By input, what a caller sends for the network's inputs `arrays`."""
    return {
        described.name: caller_array(array, described)
        for described, array in zip(data.inputs, arrays, strict=True)
    }


def caller_array(array: NDArray[Any], described: Input) -> NDArray[Any]:
    """What a caller sends for one input of the network: strings for codes of categories."""
    if not described.categories:
        return array
    unknown = max(described.categories, key=len) + "?"  # differs from all of them
    strings: NDArray[Any] = np.array([*described.categories, unknown], object)
    converted: NDArray[Any] = strings[array]
    return converted


def _test_inputs(data: Dataset) -> Iterator[Arrays]:
    """Test rows, repeated or cut to each batch size and, for sequences, each length."""
    arrays = data.test.arrays
    own_lengths = [
        array.shape[described.axes.index("time")]
        for described, array in zip(data.inputs, arrays, strict=True)
        if "time" in described.axes
    ]
    # The data's own lengths too: 40 samples of sound are less than one frame.
    lengths = list(dict.fromkeys((*SEQUENCE_LENGTHS, *own_lengths))) if own_lengths else [0]
    for rows in BATCH_SIZES:
        indices = np.arange(rows) % len(data.test)
        for length in lengths:
            yield tuple(
                _test_input(array[indices], described, length)
                for described, array in zip(data.inputs, arrays, strict=True)
            )


def _test_input(array: NDArray[Any], described: Input, length: int) -> NDArray[Any]:
    if described.name == LENGTHS.name:
        return _ragged_lengths(len(array), length)
    if "time" in described.axes:
        axis = described.axes.index("time")
        array = array.take(np.arange(length) % array.shape[axis], axis=axis)
    if described.allow_nan:  # the first row has no value at all
        array = array.copy()
        array[0] = described.categories.index("") if described.categories else np.nan
    if described.categories:  # the last row has a string that is unknown in training
        array = array.copy()
        array[-1] = len(described.categories)
    return np.ascontiguousarray(array)


def _ragged_lengths(rows: int, longest: int) -> NDArray[np.int32]:
    """A length for each row, from the longest down to 1 and again: longest, ..., 1, longest."""
    return (longest - np.arange(rows) * max(longest // 3, 1) % longest).astype(np.int32)


def _describe_difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
    """Describes the difference; empty if there is none."""
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)} (expected {list(expected.shape)} as in torch)"
    if not differs(actual, expected):
        return ""
    return (
        f"differs from torch by up to {np.abs(actual - expected).max():.3g} "
        f"(torch's largest is {np.abs(expected).max():.3g})"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_module_scopes(model: onnx.ModelProto) -> ModuleScopes:
    """Reads the exporter's notes on modules, before they are removed from the file."""
    scopes: dict[str, frozenset[str]] = {}
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        modules = ast.literal_eval(notes[_SCOPES_KEY])[1:-1] if _SCOPES_KEY in notes else []
        scopes.update(dict.fromkeys(node.output, frozenset(modules)))
    return scopes


def find_differing_layer(
    model: onnx.ModelProto,
    scopes: ModuleScopes,
    network: nn.Module,
    arrays: Arrays,
    inputs: Mapping[str, object],
) -> str | None:
    """Describes the first layer whose output differs; None if no single one does.

    Args:
        model: the exported graph.
        scopes: of `read_module_scopes`.
        network: gives the expected outputs.
        arrays: the inputs for torch.
        inputs: the same by name, for ONNX Runtime.
    """
    graph_outputs = _module_outputs_in_graph(model, scopes)
    torch_outputs = _module_outputs_in_torch(network, arrays)  # innermost modules first
    modules = [name for name in torch_outputs if name in graph_outputs]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    existing = {output.name for output in exposed.graph.output}
    for tensor in dict.fromkeys(graph_outputs[name] for name in modules):
        if tensor not in existing:
            exposed.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs = session.run([graph_outputs[name] for name in modules], dict(inputs))
    for name, actual in zip(modules, outputs, strict=True):
        # The graph may keep only one of a state's two tensors: it has to be either.
        candidates = [one.numpy() for one in torch_outputs[name] if one.shape == actual.shape]
        if candidates and all(differs(actual, one) for one in candidates):
            smallest = min(np.abs(actual - one).max() for one in candidates)
            tensor = graph_outputs[name]
            node = next(node for node in model.graph.node if tensor in node.output)
            layer = name.removeprefix("network.")
            return (
                f"the first layer that differs is {layer!r} "
                f"({type(network.get_submodule(name)).__name__}; ONNX node {node.name!r}, "
                f"{node.op_type}), by up to {smallest:.3g}"
            )
    return None


def _module_outputs_in_graph(model: onnx.ModelProto, scopes: ModuleScopes) -> dict[str, str]:
    """By module, the tensor that leaves it, if it is a single one."""
    leaving: dict[str, set[str]] = {}
    readers = [(node.input, scopes[node.output[0]]) for node in model.graph.node]
    readers.append(([output.name for output in model.graph.output], frozenset()))  # type: ignore[arg-type]
    for tensors, reader_modules in readers:
        for tensor in tensors:
            for module in scopes.get(tensor, frozenset()) - reader_modules:
                leaving.setdefault(module, set()).add(tensor)
    return {module: next(iter(names)) for module, names in leaving.items() if len(names) == 1}


def _module_outputs_in_torch(network: nn.Module, arrays: Arrays) -> dict[str, list[Tensor]]:
    """By module, its float outputs, in the order in which the modules finish."""
    outputs: dict[str, list[Tensor]] = {}

    def recorder(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            several = output if isinstance(output, tuple) else (output,)
            floats = [one for one in several if isinstance(one, Tensor) and one.is_floating_point()]
            outputs.setdefault(name, floats)

        return hook

    hooks = [
        module.register_forward_hook(recorder(name))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            network(*(torch.from_numpy(array) for array in arrays))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
