"""What a model file says about itself: the ModelMetadata of neurona.v1."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from neurona_protos.prediction_pb2 import (
    TASK_CLASSIFICATION,
    TASK_REGRESSION,
    InputDescription,
    ModelMetadata,
    ValueDescription,
)
from neurona_training.data import Dataset

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBABILITIES = "probabilities"  # the output of a classification, (rows, classes)
VALUE = "value"  # the output of a regression, (rows, values)


def answer_name(data: Dataset) -> str:
    return PROBABILITIES if data.is_classification else VALUE


def describe(
    data: Dataset,
    description: str,
    figures: Mapping[str, float],
    provenance: Mapping[str, object],
) -> ModelMetadata:
    """The metadata of a network trained on `data`, with the versions of what made it."""
    tools = {
        "torch": _version("torch"),
        "exporter": f"torch.onnx (dynamo), onnxscript {_version('onnxscript')}",
        "onnx": _version("onnx"),
        "onnxruntime": _runtime_version(),
        "neurona": _version("neurona"),
    }
    splits = {
        "data_set": data.name,
        "data": data.source,
        "train_rows": len(data.train),
        "validation_rows": len(data.validation),
        "test_rows": len(data.test),
    }
    said = {**provenance, **splits, **tools}
    return ModelMetadata(
        task=TASK_CLASSIFICATION if data.is_classification else TASK_REGRESSION,
        description=description,
        inputs=[
            InputDescription(name=given.name, description=given.description, unit=given.unit)
            for given in data.inputs
        ],
        answer=answer_name(data),
        labels=data.labels,
        values=[ValueDescription(name=value.name, unit=value.unit) for value in data.values],
        figures=figures,
        provenance={name: str(value) for name, value in said.items()},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # neurona itself, run from its sources


def _runtime_version() -> str:
    import onnxruntime  # asked itself: its package has one of several names

    return str(onnxruntime.__version__)


def scaling(network: nn.Module) -> str:
    """The steps between a caller's units and the network's, which are inside the file."""
    from neurona_training.architectures.input_layers import Columns, Denormalise, Normalise

    said = []
    for module in network.modules():
        if isinstance(module, Normalise):
            said.append(f"(input - {_text(module.offset)}) * {_text(module.factor)}")
        elif isinstance(module, Columns):
            said.append(f"(input - {_text(module.mean)}) * {_text(module.factor)}")
        elif isinstance(module, Denormalise):
            said.append(f"answer * {_text(module.spread)} + {_text(module.mean)}")
    return "; ".join(said)


def _text(numbers: Tensor) -> str:
    some = [f"{number:.6g}" for number in numbers.flatten().tolist()]
    return some[0] if len(some) == 1 else f"[{', '.join(some)}]"
