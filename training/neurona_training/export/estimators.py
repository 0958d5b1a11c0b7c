"""A baseline as an ONNX file that takes and answers what the network's file does.

Torch exports the columns, skl2onnx the estimator; both become one graph, with the network's
inputs, output, labels and units, so that callers change nothing but the model's name.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.architectures.input_layers import PredictionInterval
from neurona_training.baselines.model import BaselineModel
from neurona_training.data import Dataset
from neurona_training.errors import ExportError
from neurona_training.export.metadata import output_name
from neurona_training.export.onnx_export import OPSET, add_string_lookups, export_graph, serialise
from neurona_training.export.parity import verify_parity
from neurona_training.export.quantization import run_model
from neurona_training.learning.evaluation import measure_predictions
from neurona_training.learning.intervals import add_intervals

_ML_DOMAIN, _ML_VERSION = "ai.onnx.ml", 3  # whose operators skl2onnx uses
_COLUMNS, _OFFSET = "columns", "offset"
_PREFIX = "estimator/"  # of all names that skl2onnx chose


class _Parts(nn.Module):
    """What torch computes: the columns of an estimator, the offset of its values, or both."""

    def __init__(self, model: BaselineModel) -> None:
        super().__init__()
        parts = {_COLUMNS: model.columns, _OFFSET: model.offset}
        self.parts = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(*inputs) for part in self.parts.values())


class _Bounded(PredictionInterval):
    """A baseline with the bounds of its values, some of which rounding may decide."""

    def undecided_rows(self, *inputs: Tensor) -> NDArray[np.bool_]:
        """See `BaselineModel.undecided_rows`."""
        return cast(BaselineModel, self.network).undecided_rows(*inputs)


def export_baseline(
    model: BaselineModel, data: Dataset, described: ModelMetadata, level: float = 0.0
) -> tuple[bytes, ModelMetadata]:
    """Exports a baseline to ONNX and verifies it on ONNX Runtime against scikit-learn.

    Args:
        model: takes the arrays of `data`.
        data: describes inputs and outputs; its test rows verify the graph.
        described: what the file says about itself, but for the test metrics and the tools.
        level: of the prediction intervals that a regression answers too; 0 for none.

    Returns:
        An ONNX file with the inputs and the output that a network's has, and its metadata, with
        the metrics of the file itself on the test rows.

    Raises:
        ExportError: skl2onnx is not installed or cannot convert the estimator, or the graph
            differs from it.
    """
    parts = _Parts(model).eval()
    graph = export_graph(parts, data, list(parts.parts))
    add_string_lookups(graph, data.inputs)
    width = 0
    if model.columns is not None:
        width = graph.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    output = _OFFSET
    if model.estimator is not None:
        output = _append(graph, _convert(model.estimator, width))
        if model.classes:
            output = _place_classes(graph, output, model.estimator.classes_, model.classes)
        if model.offset is not None:
            graph.graph.node.append(helper.make_node("Add", [output, _OFFSET], [f"{output}_sum"]))
            output = f"{output}_sum"
    complete_model: nn.Module = model
    name, values = output_name(data), model.classes or len(data.values)
    if level:
        interval = add_intervals(model, data, level)
        complete_model = _Bounded(interval.network, interval.scale, interval.distances)
        output = _append_bounds(graph, output, interval.distances.numpy())
        values *= 3
    graph.graph.node.append(helper.make_node("Identity", [output], [name]))
    del graph.graph.output[:]
    graph.graph.output.append(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", values])
    )
    _remove_unused_nodes(graph.graph)
    verify_parity(serialise(graph, described), complete_model, data)
    complete = ModelMetadata()
    complete.CopyFrom(described)
    complete.provenance.update(_tool_versions(model))
    # Where rounding decides, the file may answer otherwise than scikit-learn.
    outputs = run_model(serialise(graph, described), data)
    complete.figures.update(measure_predictions(outputs, data))
    return serialise(graph, complete), complete


def _tool_versions(model: BaselineModel) -> Mapping[str, str]:
    """The packages that made an estimator's file, for its provenance."""
    if model.estimator is None:
        return {}
    return {name: version(name) for name in ("scikit-learn", "skl2onnx")}


def require_converter() -> None:
    """Checks that what converts estimators is installed.

    Raises:
        ExportError: it is not.
    """
    if importlib.util.find_spec("skl2onnx") is None:
        raise ExportError(
            "package not installed: skl2onnx (expected the packages of 'neurona[estimators]')"
        )


def _convert(estimator: BaseEstimator, width: int) -> onnx.ModelProto:
    """Converts an estimator of float32 (rows, width)."""
    require_converter()
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "classes_") else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it reads attributes that scikit-learn deprecates
            model: onnx.ModelProto = to_onnx(
                estimator,
                initial_types=[(_COLUMNS, FloatTensorType([None, width]))],
                target_opset={"": OPSET, _ML_DOMAIN: _ML_VERSION},
                options=options,
            )
            return model
    except Exception as error:  # whatever a converter raises
        reason = " ".join(str(error).split())[:500]
        raise ExportError(f"skl2onnx cannot convert the estimator: {reason}") from error


def _append(model: onnx.ModelProto, estimator: onnx.ModelProto) -> str:
    """Puts an estimator's graph behind the columns; returns the name of its last output."""
    graph = estimator.graph
    _rename(graph, {})
    model.graph.node.append(helper.make_node("Identity", [_COLUMNS], [graph.input[0].name]))
    model.graph.node.extend(graph.node)
    model.graph.initializer.extend(graph.initializer)
    versions = {imported.domain: imported.version for imported in model.opset_import}
    for imported in estimator.opset_import:
        versions[imported.domain] = max(imported.version, versions.get(imported.domain, 0))
    del model.opset_import[:]
    model.opset_import.extend(
        helper.make_opsetid(domain, number) for domain, number in versions.items()
    )
    return str(graph.output[-1].name)  # the probabilities, after the class


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Numbers all names in the order of their appearance, in place, also in bodies of loops.

    skl2onnx's own ones depend on what the process converted before.

    Args:
        graph: an estimator's.
        names: the new name of each old one, extended here.
    """

    def rename(name: str) -> str:
        return names.setdefault(name, f"{_PREFIX}{len(names)}") if name else ""

    for values in (graph.input, graph.output):
        for value in values:
            value.name = rename(value.name)
    for initializer in graph.initializer:
        initializer.name = rename(initializer.name)
    del graph.value_info[:]
    for node in graph.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        node.name = node.output[0]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, names)


def _place_classes(
    model: onnx.ModelProto,
    output: str,
    codes: NDArray[np.int64],
    classes: int,
) -> str:
    """Gives classes without a training row, which the estimator does not know, a probability 0."""
    if len(codes) == classes:
        return output
    places = numpy_helper.from_array(np.eye(classes, dtype=np.float32)[codes], f"{output}_places")
    model.graph.initializer.append(places)
    model.graph.node.append(helper.make_node("MatMul", [output, places.name], [f"{output}_all"]))
    return f"{output}_all"


def _append_bounds(model: onnx.ModelProto, output: str, distances: NDArray[Any]) -> str:
    """Puts a lower and an upper bound behind each value."""
    constant = numpy_helper.from_array(distances.astype(np.float32), "interval/distances")
    model.graph.initializer.append(constant)
    bounds = {"Sub": "interval/lower", "Add": "interval/upper"}
    for operator, bound in bounds.items():
        model.graph.node.append(helper.make_node(operator, [output, constant.name], [bound]))
    outputs = [output, *bounds.values()]
    model.graph.node.append(helper.make_node("Concat", outputs, ["interval/all"], axis=1))
    return "interval/all"


def _remove_unused_nodes(graph: onnx.GraphProto) -> None:
    """Removes what no output needs, such as the class beside the probabilities."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
            for attribute in node.attribute:  # a body reads names from outside it
                needed |= {name for inner in attribute.g.node for name in inner.input}
    initializers = [one for one in graph.initializer if one.name in needed]
    kept.reverse()
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
