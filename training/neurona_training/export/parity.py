"""The proof that an ONNX graph answers as the network that it was made from."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neurona_training.data import LENGTHS, Dataset, Input
from neurona_training.errors import ExportError

Notes = Mapping[str, frozenset[str]]  # by tensor, the modules around the node that makes it

_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules around it, outermost first


def notes(model: onnx.ModelProto) -> Notes:
    """What the exporter has noted, before it is removed from the file."""
    noted: dict[str, frozenset[str]] = {}
    for node in model.graph.node:
        said = {note.key: note.value for note in node.metadata_props}
        inside = ast.literal_eval(said[_SCOPES])[1:-1] if _SCOPES in said else []
        noted.update(dict.fromkeys(node.output, frozenset(inside)))
    return noted


def first_difference(
    model: onnx.ModelProto,
    noted: Notes,
    network: nn.Module,
    arrays: Arrays,
    sent: Mapping[str, object],
) -> str | None:
    """What to tell of the first layer that differs; None when no single one does.

    arrays: the inputs, for torch; sent: the same by name, for ONNX Runtime.
    """
    outputs = _outputs(model, noted)
    in_torch = _in_torch(network, arrays)  # the innermost modules first, as they are run
    wanted = [name for name in in_torch if name in outputs]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    already = {output.name for output in exposed.graph.output}
    for tensor in dict.fromkeys(outputs[name] for name in wanted):
        if tensor not in already:
            exposed.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    actual = session.run([outputs[name] for name in wanted], dict(sent))
    for name, found in zip(wanted, actual, strict=True):
        # Of a state's two tensors the graph may hand on just one: then it has to be either.
        could_be = [one.numpy() for one in in_torch[name] if one.shape == found.shape]
        if could_be and all(differs(found, one) for one in could_be):
            least = min(np.abs(found - one).max() for one in could_be)
            node = next(node for node in model.graph.node if outputs[name] in node.output)
            layer = name.removeprefix("network.")
            return (
                f"the first layer that differs is {layer!r} "
                f"({type(network.get_submodule(name)).__name__}; ONNX node {node.name!r}, "
                f"{node.op_type}), by up to {least:.3g}"
            )
    return None


def _outputs(model: onnx.ModelProto, noted: Notes) -> dict[str, str]:
    """By module, the tensor that its nodes give to others; only where it is a single one."""
    leaving: dict[str, set[str]] = {}
    taken = [(node.input, noted[node.output[0]]) for node in model.graph.node]
    taken.append(([output.name for output in model.graph.output], frozenset()))  # type: ignore[arg-type]
    for tensors, inside in taken:
        for tensor in tensors:
            for module in noted.get(tensor, frozenset()) - inside:
                leaving.setdefault(module, set()).add(tensor)
    return {module: next(iter(some)) for module, some in leaving.items() if len(some) == 1}


def _in_torch(network: nn.Module, arrays: Arrays) -> dict[str, list[Tensor]]:
    """What each module gives, by its name, in the order in which they finish."""
    given: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            several = output if isinstance(output, tuple) else (output,)
            floats = [one for one in several if isinstance(one, Tensor) and one.is_floating_point()]
            given.setdefault(name, floats)

        return hook

    hooks = [
        module.register_forward_hook(note(name)) for name, module in network.named_modules() if name
    ]
    try:
        with torch.inference_mode():
            network(*(torch.from_numpy(array) for array in arrays))
    finally:
        for hook in hooks:
            hook.remove()
    return given


BATCH_SIZES = (1, 2, 7, 32)
TIMES = (1, 5, 8, 13, 40)  # steps

RELATIVE = 1e-4  # the largest difference, as a part of the answer ...
FLOOR = 1e-5  # ... and for answers near 0, as a part of the largest answer

Arrays = tuple[NDArray[Any], ...]  # one for each input, in the order of Dataset.inputs


class DifferenceError(ExportError):
    """Another answer than torch's.  arrays: to which inputs."""

    def __init__(self, message: str, arrays: Arrays) -> None:
        super().__init__(message)
        self.arrays = arrays


def prove(model: bytes, network: nn.Module, data: Dataset) -> None:
    """Asks ONNX Runtime and `network` the same for every batch size and number of steps.

    model: an ONNX file with the inputs of `data` and one output.
    The questions are test rows, as callers send them; sequences with lengths get ragged ones.

    Raises ExportError, with the inputs' shapes and the output, where there is no answer, and
    DifferenceError, with the size of the difference too, at the first answer that differs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the runs are short
    options.log_severity_level = 3  # what goes wrong comes back as an exception
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ExportError(f"ONNX Runtime cannot load the graph: {_line(error)}") from error
    wanted, taken = [given.name for given in data.inputs], [i.name for i in session.get_inputs()]
    if wanted != taken:
        raise ExportError(f"the graph takes {taken}; the data describe {wanted}")
    answer = session.get_outputs()[0].name
    network.eval()
    for arrays in _cases(data):
        with torch.inference_mode():
            expected = network(*(torch.from_numpy(array) for array in arrays)).numpy()
        shapes = [
            f"input {given.name!r} of shape {list(array.shape)}"
            for given, array in zip(data.inputs, arrays, strict=True)
        ]
        where = f"output {answer!r} for {', '.join(shapes)}"
        try:
            actual = session.run([answer], sent(arrays, data))[0]
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime gives no {where}: {_line(error)}") from error
        if difference := _difference(actual, expected):
            raise DifferenceError(f"{where} {difference}", arrays)


def sent(arrays: Arrays, data: Dataset) -> dict[str, NDArray[Any]]:
    """By the inputs' names: what a caller sends where the network is given `arrays`."""
    return {
        given.name: as_sent(array, given) for given, array in zip(data.inputs, arrays, strict=True)
    }


def as_sent(array: NDArray[Any], given: Input) -> NDArray[Any]:
    """What a caller sends where the network is given `array`: strings for codes of categories."""
    if not given.categories:
        return array
    unknown = max(given.categories, key=len) + "?"  # is none of them
    strings: NDArray[Any] = np.array([*given.categories, unknown], object)
    sent: NDArray[Any] = strings[array]
    return sent


def _cases(data: Dataset) -> Iterator[Arrays]:
    """The test rows repeated or cut to each batch size and, where there is one, each time."""
    arrays = data.test.arrays
    sizes = [
        array.shape[given.axes.index("time")]
        for given, array in zip(data.inputs, arrays, strict=True)
        if "time" in given.axes
    ]
    # The data's own too: 40 samples of sound are less than one frame of it.
    times = list(dict.fromkeys((*TIMES, *sizes))) if sizes else [0]
    for rows in BATCH_SIZES:
        chosen = np.arange(rows) % len(data.test)
        for time in times:
            yield tuple(
                _case(array[chosen], given, time)
                for given, array in zip(data.inputs, arrays, strict=True)
            )


def _case(array: NDArray[Any], given: Input, time: int) -> NDArray[Any]:
    if given.name == LENGTHS.name:
        return _ragged(len(array), time)
    if "time" in given.axes:
        axis = given.axes.index("time")
        array = array.take(np.arange(time) % array.shape[axis], axis=axis)
    if given.categories:  # the last row has a string that training has never seen
        array = array.copy()
        array[-1] = len(given.categories)
    return np.ascontiguousarray(array)


def _ragged(rows: int, time: int) -> NDArray[np.int32]:
    """A length for each row, from all steps down to 1 and again: time, ..., 1, time, ..."""
    return (time - np.arange(rows) * max(time // 3, 1) % time).astype(np.int32)


def differs(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether an answer of the same shape is farther from torch's than float32 explains."""
    allowed = RELATIVE * np.abs(expected) + FLOOR * np.abs(expected).max()
    # not: any(>), which would let NaN pass
    return not bool((np.abs(actual - expected) <= allowed).all())


def _difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
    """What to tell of it; nothing when there is none."""
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}; torch gives {list(expected.shape)}"
    if not differs(actual, expected):
        return ""
    return (
        f"differs from torch by up to {np.abs(actual - expected).max():.3g} "
        f"where torch's largest is {np.abs(expected).max():.3g}"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
