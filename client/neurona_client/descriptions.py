"""What servers say about their models, as small dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from neurona_protos.prediction_pb2 import (
    DATA_TYPE_UNDEFINED,
    DataType,
    DescribeModelResponse,
    ListModelsResponse,
    State,
    Task,
    TensorDescription,
    VersionState,
)
from neurona_protos.tensors import dtype_name

TASKS: Mapping[Task, str] = {
    Task.TASK_TENSORS: "tensors",
    Task.TASK_CLASSIFICATION: "classification",
    Task.TASK_REGRESSION: "regression",
}


@dataclass(frozen=True)
class ServedVersion:
    """state: loading, ready, draining, failed or unloaded.  share: percentage of the requests
    naming neither version nor label.  reason: why it failed, or what to look at."""

    version: int
    state: str
    labels: tuple[str, ...]
    provider: str
    share: float
    shadow: bool
    reason: str
    degraded: str


@dataclass(frozen=True)
class ServedModel:
    """task: classification, regression or tensors."""

    name: str
    task: str
    versions: tuple[ServedVersion, ...]

    @property
    def ready(self) -> bool:
        """Whether any version answers."""
        return any(version.state == "ready" for version in self.versions)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.  shape: -1 where the size is free.  axes: their names, or "".

    unit, description: of an input, in words; empty where the model does not say.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    optional: bool = False
    unit: str = ""
    description: str = ""
    number: DataType = field(default=DATA_TYPE_UNDEFINED, repr=False)
    """Of its dtype, as in `neurona_client.DataType`."""


@dataclass(frozen=True)
class Value:
    """One of a regression's values."""

    name: str
    unit: str


@dataclass(frozen=True)
class Description:
    """labels: of the classes.  figures: how well it did.  provenance: how it was made.

    batched: False for a model whose rows cannot be run together, or that has no batch axis.
    message: all of it, as the server said it.
    """

    name: str
    version: int
    task: str
    description: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    values: tuple[Value, ...]
    batched: bool
    figures: Mapping[str, float]
    provenance: Mapping[str, str]
    message: DescribeModelResponse = field(repr=False, compare=False)


def models(response: ListModelsResponse) -> list[ServedModel]:
    return [
        ServedModel(one.model, TASKS.get(one.task, "tensors"), tuple(map(_version, one.versions)))
        for one in response.models
    ]


def description(response: DescribeModelResponse) -> Description:
    metadata = response.metadata
    said = {one.name: (one.unit, one.description) for one in metadata.inputs}
    return Description(
        response.model,
        response.version.version,
        TASKS.get(metadata.task, "tensors"),
        metadata.description,
        tuple(_spec(one, *said.get(one.name, ("", ""))) for one in response.inputs),
        tuple(_spec(one) for one in response.outputs),
        tuple(metadata.labels),
        tuple(Value(one.name, one.unit) for one in metadata.values),
        response.batched,
        dict(metadata.figures),
        dict(metadata.provenance),
        response,
    )


def _version(one: VersionState) -> ServedVersion:
    state = State.Name(one.state) if one.state in State.values() else str(one.state)
    return ServedVersion(
        one.version,
        state.removeprefix("STATE_").lower(),
        tuple(one.labels),
        one.provider,
        one.share,
        one.shadow,
        one.reason,
        one.degraded,
    )


def _spec(one: TensorDescription, unit: str = "", text: str = "") -> TensorSpec:
    return TensorSpec(
        one.name,
        dtype_name(one.dtype),
        tuple(one.shape),
        tuple(one.axes),
        one.optional,
        unit,
        text,
        one.dtype,
    )
