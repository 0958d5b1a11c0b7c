"""What servers report about their models, as small dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from neurona_protos.prediction_pb2 import (
    DATA_TYPE_UNDEFINED,
    DataType,
    DescribeModelResponse,
    ImageDescription,
    InputDescription,
    ListModelsResponse,
    State,
    Task,
    TensorDescription,
    VersionState,
)
from neurona_protos.tensors import dtype_name

_TASK_NAMES: Mapping[Task, str] = {
    Task.TASK_TENSORS: "tensors",
    Task.TASK_CLASSIFICATION: "classification",
    Task.TASK_REGRESSION: "regression",
}


@dataclass(frozen=True)
class ServedVersion:
    """One version of a model, as `Client.models` lists it.

    Attributes:
        version: its number; 0 for something in the repository that is not a version, which
            `reason` names.
        state: "loading", "ready", "draining", "failed" or "unloaded".
        labels: names that currently point to this version, such as "latest".
        provider: ONNX Runtime execution provider, such as "CUDAExecutionProvider".
        share: percentage (0 to 100) of the requests that name neither a version nor a label.
        shadow: whether it receives copies of requests, whose responses are dropped.
        reason: why it failed; empty otherwise.
        degraded: what an operator should look at; empty otherwise.
        devices: what it is loaded on, as "cpu" or "cuda:0"; empty for servers that do not say.
    """

    version: int
    state: str
    labels: tuple[str, ...]
    provider: str
    share: float
    shadow: bool
    reason: str
    degraded: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServedModel:
    """One model, as `Client.models` lists it.

    Attributes:
        name: what calls name it by.
        task: "classification", "regression" or "tensors".
        versions: all that the server knows of.
    """

    name: str
    task: str
    versions: tuple[ServedVersion, ...]

    @property
    def ready(self) -> bool:
        """Whether at least one version answers requests."""
        return any(version.state == "ready" for version in self.versions)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: what requests name it by.
        dtype: such as "FLOAT", "INT64" or "STRING".
        shape: sizes of its axes; -1 where any size is allowed.
        axes: names of its axes, "" for one without a name.
        optional: whether a request may leave it out.
        unit: unit of an input; empty if the model has none.
        description: what an input means; empty if the model has no text for it.
        data_type: number of its dtype, as in `neurona_client.DataType`.
        columns: of an input: the name of each index on its last axis, or its one name if the
            batch axis is its only one; empty if they have none.
        categories: of an input: the strings that the model knows; empty if it takes any.
        window: of an input: how many successive steps the model was trained on; 0 if any.
        decimal_mark: of an input: "." or ",", as the file had it that the model was trained on;
            empty if it did not say.
        any_shape: whether the model declares no shape, not even a number of axes; `shape` is ()
            then.
        finite: of an input: whether all numbers must be finite.
        allow_nan: of an input: whether a missing value is taken: NaN, or an empty string.
        lengths_of: of an input with lengths of sequences: the input with the sequences.
        only_categories: of an input: whether it takes no string that is not in `categories`.
        sample_rate: of an input of sound: samples a second; 0 if it is no sound, or any.
        date_columns: of an input: those of its columns that are dates, in days since 1970-01-01
            00:00 UTC.
        date_order: of an input: "day-month-year" or "month-day-year", as the dates were written
            in the file that the model was trained on; empty if it did not say.
        time_column: of an input of sequences: the column of a table by which its rows follow each
            other in time; empty if they are in that order.
        image: of an input of images: how an encoded one becomes a row; None if there is none.
        example: of an input: one sample as JSON; empty if there is none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    optional: bool = False
    unit: str = ""
    description: str = ""
    data_type: DataType = field(default=DATA_TYPE_UNDEFINED, repr=False)
    columns: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    window: int = 0
    decimal_mark: str = ""
    any_shape: bool = False
    finite: bool = False
    allow_nan: bool = False
    lengths_of: str = ""
    only_categories: bool = False
    sample_rate: int = 0
    date_columns: tuple[str, ...] = ()
    date_order: str = ""
    time_column: str = ""
    image: ImageDescription | None = field(default=None, repr=False, compare=False)
    example: str = field(default="", repr=False)


@dataclass(frozen=True)
class ValueSpec:
    """One value of a regression.

    Attributes:
        name: what the value is.
        unit: its unit; empty if the model has none.
        quantile: of a bound of a prediction interval, the probability of a true value below it;
            0 for the prediction itself.
    """

    name: str
    unit: str
    quantile: float = 0.0


@dataclass(frozen=True)
class ModelDescription:
    """What one version of a model takes, returns and records about itself.

    Attributes:
        name: the model.
        version: the version that is described.
        task: "classification", "regression" or "tensors".
        description: one sentence; empty if the model has none.
        inputs: what a request sends.
        outputs: tensors that `raw_outputs` returns.
        labels: names of the classes, in the order of their indices.
        values: what a regression returns for each row.
        batched: whether the server may run rows of several requests together. False for a model
            without a batch axis, and for one whose rows affect each other.
        figures: measured quality by name, such as "accuracy".
        provenance: how the model was made, such as its data and seed.
        message: the protobuf message with everything above and more.
    """

    name: str
    version: int
    task: str
    description: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    values: tuple[ValueSpec, ...]
    batched: bool
    figures: Mapping[str, float]
    provenance: Mapping[str, str]
    message: DescribeModelResponse = field(repr=False, compare=False)


def models_from_response(response: ListModelsResponse) -> list[ServedModel]:
    """Convert the response of Models.List."""
    return [
        ServedModel(
            model.model,
            _TASK_NAMES.get(model.task, "tensors"),
            tuple(map(_served_version, model.versions)),
        )
        for model in response.models
    ]


def description_from_response(response: DescribeModelResponse) -> ModelDescription:
    """Convert the response of Models.Describe."""
    metadata = response.metadata
    words_by_input = {one.name: one for one in metadata.inputs}
    return ModelDescription(
        response.model,
        response.version.version,
        _TASK_NAMES.get(metadata.task, "tensors"),
        metadata.description,
        tuple(_tensor_spec(one, words_by_input.get(one.name)) for one in response.inputs),
        tuple(_tensor_spec(one) for one in response.outputs),
        tuple(metadata.labels),
        tuple(ValueSpec(value.name, value.unit, value.quantile) for value in metadata.values),
        response.batched,
        dict(metadata.figures),
        dict(metadata.provenance),
        response,
    )


def _served_version(message: VersionState) -> ServedVersion:
    known_state = message.state in State.values()
    state = State.Name(message.state) if known_state else str(message.state)
    return ServedVersion(
        message.version,
        state.removeprefix("STATE_").lower(),
        tuple(message.labels),
        message.provider,
        message.share,
        message.shadow,
        message.reason,
        message.degraded,
        tuple(device.label for device in message.devices),
    )


def _tensor_spec(message: TensorDescription, words: InputDescription | None = None) -> TensorSpec:
    words = words or InputDescription()
    return TensorSpec(
        message.name,
        dtype_name(message.dtype),
        tuple(message.shape),
        tuple(message.axes),
        message.optional,
        words.unit,
        words.description,
        message.dtype,
        tuple(words.columns),
        tuple(words.categories),
        words.window,
        words.decimal_mark,
        message.any_shape,
        words.finite,
        words.allow_nan,
        words.lengths_of,
        words.only_categories,
        words.sample_rate,
        tuple(words.date_columns),
        words.date_order,
        words.time_column,
        words.image if words.HasField("image") else None,
        words.example,
    )
