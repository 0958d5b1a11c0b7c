"""Which layer of an exported graph is the first that does not compute what torch computes.

The exporter notes at each node in which module it stands. The tensor by which a module's nodes
reach the rest of the graph is its output, and is compared with what the module gives in torch.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from neurona_training.parity import Arrays, differs

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
