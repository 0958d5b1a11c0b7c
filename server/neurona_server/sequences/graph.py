"""Recurrent graphs as onnx has them: their nodes, and what prevents a rewrite of them.

The operators: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html and,
of ONNX Runtime, com.microsoft.DynamicQuantizeLSTM (docs/ContribOperators.md).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neurona_server.batching.request import Array

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

READ_OUT_OPSET = 13
"""Version of the operators that the reading of a row's own last step is written in."""

STATE_COUNTS = {"RNN": 1, "GRU": 1, "LSTM": 2, "DynamicQuantizeLSTM": 2}
_DOMAINS = ("", "ai.onnx", "com.microsoft")
KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Of the operators whose meaning is known."""

LENGTHS_INPUT = 4  # of a recurrent node; its states follow
_BRANCHES = ("Scan", "Loop", "If")


class NotRewrittenError(Exception):
    """The graph cannot be rewritten; the text says why."""


class OldOperatorsError(NotRewrittenError):
    """The graph must be converted to READ_OUT_OPSET first."""


def read_model(content: bytes) -> "ModelProto":
    """Return a model.

    Raises:
        NotRewrittenError: It is no model of onnx's version of the format.
    """
    import onnx

    try:
        return onnx.ModelProto.FromString(content)
    except Exception as error:  # of protobuf, of several classes
        raise NotRewrittenError("its file cannot be read by onnx") from error


def with_external_data(content: bytes, external: Mapping[str, bytes]) -> bytes:
    """Return a model with its external data inside.

    Args:
        content: The ONNX file.
        external: The contents of the files with its external data, by location.
    """
    if not external:
        return content
    import onnx

    model = onnx.ModelProto.FromString(content)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        start = int(entries.get("offset", 0))
        stop = start + int(entries["length"]) if "length" in entries else None
        tensor.raw_data = external[entries["location"]][start:stop]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return model.SerializeToString()


def recurrent_nodes(graph: "GraphProto") -> list["NodeProto"]:
    """Return the recurrent nodes of a graph, without those of graphs inside nodes."""
    return [node for node in graph.node if _is_recurrent(node)]


def find_obstacle(model: "ModelProto") -> str:
    """Return what prevents any rewrite, "" if nothing that can be seen without a run does."""
    for node in model.graph.node:
        if node.op_type in _BRANCHES and node.domain in _DOMAINS:
            return f"its operator {node.op_type} may look across steps"
    if any(_is_recurrent(node) for function in model.functions for node in function.node):
        return "its recurrent layers are inside functions"
    if names := sorted({one.name for one in model.functions if one.domain in KNOWN_DOMAINS}):
        return f"its function {names[0]} is called like an operator"
    return ""


def with_all_tensors(model: "ModelProto") -> tuple[bytes, Sequence[str]]:
    """Return the model with the outputs of all nodes as outputs, and their names."""
    import onnx

    outputs = model.graph.output
    count = len(outputs)
    present = {output.name for output in outputs}
    names = [name for node in model.graph.node for name in node.output if name]
    outputs.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    content, names = model.SerializeToString(), [output.name for output in outputs]
    del outputs[count:]  # so that large weights are not copied
    return content, names


def constants(model: "ModelProto") -> dict[str, Array]:
    """Return the initialisers of a model by name."""
    from onnx import numpy_helper

    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def to_newer_operators(model: "ModelProto") -> "ModelProto":
    """Return the model with operators of READ_OUT_OPSET or later.

    Raises:
        NotRewrittenError: There is no conversion of one of its operators.
    """
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, READ_OUT_OPSET)
    except Exception as error:  # of C++, of many classes
        raise NotRewrittenError(
            f"its operators of version {find_opset(model)} cannot be converted to those of version "
            f"{READ_OUT_OPSET}"
        ) from error


def _is_recurrent(node: "NodeProto") -> bool:
    return node.op_type in STATE_COUNTS and node.domain in _DOMAINS


def find_opset(model: "ModelProto") -> int:
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    return max(versions, default=1)


def node_title(node: "NodeProto") -> str:
    """Return what a node is called in reasons."""
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def find_attribute(node: "NodeProto", name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
