"""What a model file says about itself: the ModelMetadata of neurona.v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor, nn

from neurona_client.files.image_inputs import describe_images, find_levels
from neurona_protos.prediction_pb2 import (
    TASK_CLASSIFICATION,
    TASK_REGRESSION,
    ImageDescription,
    InputDescription,
    ModelMetadata,
    ValueDescription,
)
from neurona_training.architectures.columns import EncodeColumns
from neurona_training.architectures.forecast import Forecast
from neurona_training.architectures.input_layers import (
    Denormalise,
    Normalise,
    StandardiseColumns,
    Temperature,
)
from neurona_training.architectures.published_weights import PublishedInput
from neurona_training.architectures.table_features import TableFeatures
from neurona_training.data import LENGTHS, Dataset, Input, Value
from neurona_training.export.examples import example_of

PROBABILITIES = "probabilities"  # the output of a classification, (rows, classes)
VALUE = "value"  # the output of a regression, (rows, values)


def output_name(data: Dataset) -> str:
    """Name of the exported file's output."""
    return PROBABILITIES if data.is_classification else VALUE


def tool_versions() -> dict[str, str]:
    """The packages that make and verify a file, for its provenance."""
    return {
        "torch": _package_version("torch"),
        "exporter": f"torch.onnx (dynamo), onnxscript {_package_version('onnxscript')}",
        "onnx": _package_version("onnx"),
        "onnxruntime": _runtime_version(),
        "neurona": _package_version("neurona"),
    }


def model_metadata(
    data: Dataset,
    description: str,
    figures: Mapping[str, float],
    provenance: Mapping[str, object],
    bounds: Sequence[Value] = (),
) -> ModelMetadata:
    """Describes a network trained on `data`, with the versions of the tools that made it.

    Args:
        data: gives inputs, labels or values, and the numbers of rows.
        description: one line for readers.
        figures: metrics by name, as `learning.evaluation.evaluate` returns them.
        provenance: how the network was trained.
        bounds: of prediction intervals, the outputs that follow the values.
    """
    splits = {
        "data_set": data.name,
        "data": data.source,
        **({"target": data.target} if data.target else {}),
        "train_rows": len(data.train),
        "validation_rows": len(data.validation),
        "test_rows": len(data.test),
    }
    entries = {**provenance, **splits, **tool_versions()}
    return ModelMetadata(
        task=TASK_CLASSIFICATION if data.is_classification else TASK_REGRESSION,
        description=description,
        inputs=[_describe_input(described, data) for described in data.inputs],
        answer=output_name(data),
        labels=data.labels,
        values=[
            ValueDescription(name=value.name, unit=value.unit, quantile=value.quantile)
            for value in (*data.values, *bounds)
        ],
        figures=figures,
        provenance={name: str(value) for name, value in entries.items()},
    )


def _describe_input(described: Input, data: Dataset) -> InputDescription:
    """What a caller sends for an input, and which values the network takes."""
    is_lengths = described.name == LENGTHS.name
    return InputDescription(
        name=described.name,
        description=described.description,
        unit=described.unit,
        columns=described.columns,
        categories=described.categories,
        window=described.window,
        decimal_mark=described.decimal_mark,
        finite=not (described.categories or is_lengths),
        allow_nan=described.allow_nan,
        lengths_of=data.input.name if is_lengths else "",
        lengths_axis=data.input.axes.index("time") if is_lengths else 0,
        # Not of characters: those unknown have a code, and what pads a text may be any string.
        only_categories=bool(described.categories)
        and described.axes == ("batch",)
        and not described.open_categories,
        sample_rate=described.sample_rate,
        date_columns=described.date_columns,
        date_order=described.date_order,
        time_column=described.time_column,
        image=_describe_image(described, data),
        example=example_of(described, data),
    )


def _describe_image(described: Input, data: Dataset) -> ImageDescription | None:
    """How a picture becomes a row of the input; None if it holds no images or no known levels."""
    levels = find_levels(described.unit)
    if data.kind != "images" or described != data.input or levels is None:
        return None
    return describe_images(data.test.inputs.shape[1:], levels, described.description)


def _package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # neurona itself, run from its sources


def _runtime_version() -> str:
    import onnxruntime  # its package has one of several names, so the module is asked

    return str(onnxruntime.__version__)


def describe_scaling(network: nn.Module) -> str:
    """Formulas between a caller's units and the network's own, which are inside the file."""
    formulas = []
    for module in network.modules():
        if isinstance(module, Normalise):
            offset, factor = _format_numbers(module.offset), _format_numbers(module.factor)
            formulas.append(f"(input - {offset}) * {factor}")
        elif isinstance(module, PublishedInput):
            mean, factor = _format_numbers(module.mean), _format_numbers(module.factor)
            formulas.append(f"(input - {mean}) * {factor}, by colour")
        elif isinstance(module, EncodeColumns) and module.encoding.medians:
            formulas.append(f"missing numbers are {_format_numbers(module.medians)}")
        elif isinstance(module, StandardiseColumns):
            mean, factor = _format_numbers(module.mean), _format_numbers(module.factor)
            formulas.append(f"(input - {mean}) * {factor}")
        elif isinstance(module, TableFeatures) and len(module.column):
            formulas.append(f"{len(module.column)} pieces of columns between their quantiles")
        elif isinstance(module, Denormalise):
            spread, mean = _format_numbers(module.spread), _format_numbers(module.mean)
            formulas.append(f"answer * {spread} + {mean}")
        elif isinstance(module, Forecast):
            formulas.append(module.describe())
        elif isinstance(module, Temperature):
            formulas.append(f"logits * {_format_numbers(module.factor)}")
    return "; ".join(formulas)


def _format_numbers(numbers: Tensor) -> str:
    texts = [f"{number:.6g}" for number in numbers.flatten().tolist()]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
