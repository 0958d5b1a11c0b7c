"""A trained network as one ONNX file, everything inside the graph and verified.

`export_trained_network` exports a recipe's network, `module_export.export` any module; both by
`to_onnx`.
"""

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import onnx
import torch
from torch import Tensor, nn

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.data import Dataset, Input
from neurona_training.errors import ExportError
from neurona_training.export.metadata import output_name
from neurona_training.export.parity import (
    DifferenceError,
    caller_inputs,
    find_differing_layer,
    read_module_scopes,
    verify_parity,
)

OPSET = 20

_SHAPES = "torch.fx.experimental.symbolic_shapes"
_DYNAMIC_AXES = ("batch", "time")  # of any size
_ML_DOMAIN, _ML_VERSION = "ai.onnx.ml", 4  # LabelEncoder is of ONNX's classic machine learning


@runtime_checkable
class _Exportable(Protocol):
    """A module that has a simpler equivalent once its weights are fixed."""

    def for_export(self) -> nn.Module: ...


class _WithLastStep(nn.Module):
    """A network followed by the softmax of a classification, or by nothing."""

    def __init__(self, network: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.last = last

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.last(self.network(*inputs))
        return output


def export_trained_network(network: nn.Module, data: Dataset, described: ModelMetadata) -> bytes:
    """Exports a network to ONNX and verifies it on ONNX Runtime.

    Axes called "batch" and "time" are of any size, the same in every input. An input with
    categories takes strings.

    Args:
        network: trained; its inputs are the arrays of `data`.
        data: describes inputs and outputs; its test rows verify the graph.
        described: the metadata to be put into the file.

    Returns:
        An ONNX file of opset 20 with the inputs `data.inputs` and one output: "probabilities",
        float32 of shape (batch, classes), or "value", float32 of shape (batch, values).

    Raises:
        ExportError: the graph cannot be made, or its outputs differ from the network's; then
            the message names the first layer that differs.
    """
    last = nn.Softmax(dim=1) if data.is_classification else nn.Identity()
    complete = _WithLastStep(network, last).eval()
    try:
        return _export_verified(complete, data, described)
    except DifferenceError:
        # The optimiser takes tiny constants for 0, which they are not beside tiny values.
        return _export_verified(complete, data, described, optimise=False)


def _export_verified(
    complete: nn.Module, data: Dataset, described: ModelMetadata, *, optimise: bool = True
) -> bytes:
    """Exports and verifies a network.

    Raises:
        DifferenceError: only with `optimise`: outputs differ from the network's.
        ExportError: see `export_trained_network`.
    """
    model = export_graph(simplify(complete), data, [output_name(data)], optimise=optimise)
    add_string_lookups(model, data.inputs)
    scopes = read_module_scopes(model)
    content = serialise(model, described)
    try:
        verify_parity(content, complete, data)
    except DifferenceError as error:
        if optimise:
            raise
        inputs = caller_inputs(error.arrays, data)
        layer = find_differing_layer(model, scopes, complete, error.arrays, inputs)
        raise ExportError(f"{error}; {layer or 'no single layer differs'}") from error
    return content


def serialise(model: onnx.ModelProto, described: ModelMetadata) -> bytes:
    """Makes a file of a graph: with its metadata, without the exporter's notes, and checked."""
    for node in model.graph.node:
        del node.metadata_props[:]  # source lines and their folders
    onnx.helper.set_model_props(model, {metadata.KEY: metadata.to_json(described)})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def add_string_lookups(model: onnx.ModelProto, inputs: Sequence[Input]) -> None:
    """Puts a look-up of codes before each input with categories, in place.

    The int64 input of codes becomes an input of strings of the same shape; an unknown string
    gets the code after the last category's.
    """
    for described in inputs:
        if not described.categories:
            continue
        (graph_input,) = [one for one in model.graph.input if one.name == described.name]
        codes = f"{described.name}_codes"
        for node in model.graph.node:
            node.input[:] = [codes if name == described.name else name for name in node.input]
        look_up = onnx.helper.make_node(
            "LabelEncoder",
            [described.name],
            [codes],
            domain=_ML_DOMAIN,
            keys_strings=list(described.categories),
            values_int64s=range(len(described.categories)),
            default_int64=len(described.categories),
        )
        model.graph.node.insert(0, look_up)
        graph_input.type.tensor_type.elem_type = onnx.TensorProto.STRING
    if any(described.categories for described in inputs) and not any(
        imported.domain == _ML_DOMAIN for imported in model.opset_import
    ):
        model.opset_import.append(onnx.helper.make_opsetid(_ML_DOMAIN, _ML_VERSION))


def simplify(network: nn.Module) -> nn.Module:
    """Copies the network, with each module that has a simpler equivalent replaced by it."""
    simple = copy.deepcopy(network)
    for name, module in list(simple.named_modules()):
        if isinstance(module, _Exportable):
            simple.set_submodule(name, module.for_export())
    return simple.eval()


def export_graph(
    network: nn.Module, data: Dataset, output_names: Sequence[str], *, optimise: bool = True
) -> onnx.ModelProto:
    """Exports a torch module as an ONNX graph.

    Args:
        network: takes the arrays of the data set's splits.
        data: describes them; two of its test rows are the example.
        output_names: a name for each output.
        optimise: whether constants are folded, and nodes left out that change nothing.

    Raises:
        ExportError: torch cannot export the module.
    """
    sizes = {name: torch.export.Dim(name) for name in _DYNAMIC_AXES}
    dynamic = tuple(
        {axis: sizes[name] for axis, name in enumerate(described.axes) if name in _DYNAMIC_AXES}
        for described in data.inputs
    )
    # Two rows: torch takes a size of 1 in the example for a size that is always 1.
    example = tuple(torch.from_numpy(array[[0, -1]]) for array in data.test.arrays)
    axes = {
        described.name: [axis if axis in _DYNAMIC_AXES else "" for axis in described.axes]
        for described in data.inputs
    }
    return to_onnx(
        network,
        axes,
        output_names,
        example=example,
        dynamic_shapes=(dynamic,),  # of the one parameter *inputs
        optimise=optimise,
    )


def torch_program(
    network: nn.Module, example: tuple[Tensor, ...], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """Traces a module.

    Args:
        network: in evaluation mode.
        example: its arguments.
        dynamic_shapes: which axes are of any size, as `torch.export.export` takes them.

    Raises:
        ExportError: torch cannot trace the module.
    """
    try:
        with _quiet_exporter():
            return torch.export.export(
                network, example, dynamic_shapes=dynamic_shapes, strict=False
            )
    except ExportError:
        raise
    except Exception as error:  # it raises whatever its passes raise
        raise ExportError(f"torch cannot export the network: {_explain(error)}") from error


def to_onnx(
    network: nn.Module | torch.export.ExportedProgram,
    axes: Mapping[str, Sequence[str]],
    output_names: Sequence[str],
    *,
    example: tuple[Tensor, ...] = (),
    dynamic_shapes: Any = None,
    opset: int = OPSET,
    optimise: bool = True,
) -> onnx.ModelProto:
    """Converts a module to an ONNX graph.

    Args:
        network: in evaluation mode, or a program that `torch_program` traced.
        axes: by input, in order: the name of each axis of any size, "" of an axis of one size.
        output_names: a name for each output.
        example: the module's arguments; none for a program.
        dynamic_shapes: which axes are of any size; none for a program.
        opset: version of ONNX's operators.
        optimise: whether constants are folded, and nodes left out that change nothing.

    Raises:
        ExportError: an operator has no ONNX form, or the conversion fails otherwise.
    """
    try:
        with _quiet_exporter():
            exported = torch.onnx.export(
                network,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=list(axes),
                output_names=list(output_names),
                dynamic_shapes=dynamic_shapes,
                verbose=False,
                optimize=optimise,
            )
    except Exception as error:  # see above
        raise ExportError(f"torch cannot export the network: {_explain(error)}") from error
    # None is what the older exporter returns, without dynamo=True.
    model = cast(torch.onnx.ONNXProgram, exported).model_proto
    _name_axes(model, axes)
    return model


def _name_axes(model: onnx.ModelProto, axes: Mapping[str, Sequence[str]]) -> None:
    """Gives axes of any size their names instead of torch's symbols, in place."""
    names: dict[str, str] = {}
    for graph_input in model.graph.input:
        dimensions = graph_input.type.tensor_type.shape.dim
        for dimension, name in zip(dimensions, axes[graph_input.name], strict=True):
            if dimension.dim_param and name:
                names[dimension.dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:  # perhaps a formula, such as s16//2 + 1
                dimension.dim_param = re.sub(
                    r"\w+", lambda word: names.get(word[0], word[0]), dimension.dim_param
                )


def _explain(error: Exception) -> str:
    """The reason on one line, with what to do where the exporter's errors are known."""
    text = " ".join(str(error).split())
    operators = sorted(
        set(re.findall(r"No ONNX function found for <OpOverload\(op='([^']+)'", text))
    )
    if operators:
        return f"operator without an ONNX form: {', '.join(operators)} (expected other operators)"
    if "data-dependent" in text:
        place = re.search(r'File "[^"]*?([^"/\\]+)", line (\d+), in (\w+) (.{0,120})', text)
        where = f" at {place[1]}:{place[2]} in {place[3]}" if place else ""
        return (
            f"forward branches or takes a size on the values of a tensor{where} "
            "(expected torch.where or torch.cond, and sizes from shapes alone)"
        )
    return text[:500]


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppresses the exporter's messages that do not concern the network."""
    # torch.onnx reports that torchvision's operators, which are not used, are absent, and
    # onnxscript which constants it does not fold, and torch.fx what an error says too.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", _SHAPES)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export uses a class of torch's own that torch 2.13 has deprecated.
            warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
            # nn.RNN, GRU and LSTM set their weights anew where they are moved.
            warnings.filterwarnings("ignore", r"(?s).*assigned during export", UserWarning)
            # An axis of the same size in two inputs has the same name in both, as intended.
            warnings.filterwarnings("ignore", r".*The axis name: \w+ will not be used", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
