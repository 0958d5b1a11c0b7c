"""Reads model.toml, in which every key is optional and an unknown key is an error."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from neurona_protos.prediction_pb2 import Task
from neurona_server.errors import LoadError, close_match, printable
from neurona_server.models.onnx.provider_options import (
    ProviderOptionError,
    ProviderOptions,
    check_model_options,
)
from neurona_server.models.repository.folder_files import read_labels, read_text
from neurona_server.models.repository.settings import (
    LATEST,
    MODEL_TOML,
    ImageSettings,
    ModelSettings,
    TensorSettings,
    Traffic,
    ValueSettings,
    VersionOrLabel,
    VersionPolicy,
    parse_devices,
)
from neurona_server.models.repository.validation import convert, invalid_value, join_path

MAX_VERSION = 10**18 - 1
"""The highest version that a folder can be named after."""

_MAX_INT32 = 2**31 - 1
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) *%?")
_TASKS = {
    "classification": Task.TASK_CLASSIFICATION,
    "regression": Task.TASK_REGRESSION,
    "tensors": Task.TASK_TENSORS,
}


class _Percent(float):
    """A percentage as a number or as a string like "2.5 %"."""

    @classmethod
    def parse(cls, value: object) -> "_Percent":
        if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
            value = float(match[1])
        if type(value) not in (int, float) or not 0 <= value <= 100:  # type: ignore[operator]
            raise ValueError("expected a percentage from 0 to 100")
        return cls(value)  # type: ignore[arg-type]


class _Devices(str):
    """CUDA devices: "all", a number, a UUID, or a list of numbers and UUIDs."""

    @classmethod
    def parse(cls, value: object) -> "_Devices":
        names = value if isinstance(value, list) else [value]
        if names and all(isinstance(name, str) or type(name) is int for name in names):
            return cls(parse_devices(",".join(map(str, names))))
        raise ValueError('expected "all", or numbers or UUIDs, like [0, 1]')


_Provider = Literal["cuda", "cpu", "tensorrt", "nvtensorrtrtx", "openvino"]
_Text = Annotated[str, Meta(min_length=1)]
_Milliseconds = Annotated[float, Meta(ge=0, le=1e8, description="milliseconds from 0 to 100000000")]
_Seconds = Annotated[float, Meta(ge=0, le=1e6, description="seconds from 0 to 1000000")]
_Pixels = Annotated[int, Meta(ge=1, le=2**16)]
_ChannelNumbers = Annotated[
    tuple[float, ...],
    Meta(
        min_length=1,
        max_length=3,
        description="a list of one number, or one for each of 3 channels",
    ),
]
_PositiveInt = Annotated[int, Meta(ge=1, le=_MAX_INT32)]
_AxisName = Annotated[str, Meta(description='a name, or "" for an axis without one')]
_AxisNames = Annotated[
    tuple[_AxisName, ...], Meta(description="a list of names, one for each axis")
]
_Label = Annotated[
    str,
    Meta(
        pattern=rf"^(?!{LATEST}\Z){_LABEL.pattern}\Z",
        description="a letter, then up to 63 letters, digits, dots, dashes or underscores, "
        f"and not the built-in label {LATEST!r}",
    ),
]


class _Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A table of model.toml; None and "" stand for keys that are not set."""


class _ValueTable(_Table, frozen=True):
    name: _Text = ""
    unit: _Text = ""


class _ImageTable(_Table, frozen=True):
    layout: Literal["hw", "chw", "hwc"] | None = None
    colours: Literal["grey", "rgb", "bgr"] | None = None
    width: _Pixels = 0
    height: _Pixels = 0
    resize: Literal["fit", "stretch", "shorter-side"] | None = None
    filter: Literal["box", "bilinear", "bicubic"] | None = None
    shorter_side: _Pixels = 0
    inversion: Literal["never", "always", "bright-border"] | None = None
    range: Annotated[
        tuple[float, ...],
        Meta(
            min_length=2,
            max_length=2,
            description="two numbers: the values of black and of white, like [0, 1]",
        ),
    ] = (0.0, 255.0)
    mean: _ChannelNumbers = ()
    std: _ChannelNumbers = ()


class _InputTable(_Table, frozen=True):
    axes: _AxisNames = ()
    description: _Text = ""
    unit: _Text = ""
    allow_nan: bool | None = None
    allow_unknown: bool | None = None
    image: _ImageTable | None = None


class _OutputTable(_Table, frozen=True):
    # Labels, values and description say what an output means.
    axes: _AxisNames = ()


class _ShadowTable(_Table, frozen=True):
    to: Any
    share: _Percent = _Percent(100)


class ModelToml(_Table, frozen=True):
    """The keys of model.toml."""

    task: Literal["classification", "regression", "tensors"] | None = None
    answer: _Text = ""
    labels: Annotated[tuple[_Text, ...], Meta(min_length=1)] = ()
    labels_file: _Text = ""
    softmax: bool = False
    values: Annotated[
        tuple[_ValueTable, ...],
        Meta(min_length=1, description="a non-empty list of tables with name and unit"),
    ] = ()
    unit: _Text = ""
    description: _Text = ""
    inputs: dict[str, _InputTable] = {}
    outputs: dict[str, _OutputTable] = {}
    batched: bool | None = None
    versions: Any = None
    version_labels: dict[_Label, Annotated[int, Meta(ge=1, le=MAX_VERSION)]] = {}
    default: Any = None
    traffic: dict[str, _Percent] = {}
    shadow: _ShadowTable | None = None
    max_batch_rows: _PositiveInt | None = None
    max_queue_rows: _PositiveInt | None = None
    max_queue_bytes: Annotated[int, Meta(ge=1, le=2**50)] | None = None
    max_delay_ms: _Milliseconds | None = None
    latency_objective_ms: _Milliseconds | None = None
    inline: Literal["auto", "always", "never"] | None = None
    sequence_batching: Literal["auto", "cellular", "ragged", "equal-lengths"] | None = None
    max_run_seconds: _Seconds | None = None
    instances: Annotated[int, Meta(ge=1, le=64)] | None = None
    threads: Annotated[int, Meta(ge=0, le=1024)] | None = None
    providers: Annotated[tuple[_Provider, ...], Meta(min_length=1)] | None = None
    devices: _Devices | None = None
    provider_options: dict[str, dict[str, Any]] = {}


def find_labels_file(folder: Path, name: str) -> str:
    """Return the name of the file of labels that a file of settings has, "" if it names none."""
    try:
        labels = tomllib.loads(read_text(folder, name)).get("labels_file", "")
    except (LoadError, ValueError, RecursionError):
        return ""
    return labels if isinstance(labels, str) and "\0" not in labels else ""


def read_model_toml(folder: Path, name: str = MODEL_TOML) -> ModelSettings:
    """Read the model.toml in a model's folder, or a file like it.

    Args:
        folder: Where it is, and the files that it names.
        name: Its name.

    Raises:
        LoadError: The file cannot be read or is invalid; the message is one line that begins
            with the file's name.
    """
    try:
        try:
            values = tomllib.loads(read_text(folder, name))
        except ValueError as error:
            raise LoadError(f"invalid TOML: {error}") from error
        except RecursionError as error:
            raise LoadError("invalid TOML: too many levels") from error
        return _to_settings(folder, convert(values, ModelToml, "", LoadError))
    except LoadError as error:
        raise LoadError(f"{printable(name)}: {error}") from error


def _to_settings(folder: Path, table: ModelToml) -> ModelSettings:
    policy = None if table.versions is None else _parse_policy(table.versions)
    for label, version in table.version_labels.items():
        if policy is not None and policy.listed and version not in policy.listed:
            expected = f"expected one of versions: {[*policy.listed]}"
            raise LoadError(invalid_value(f"version_labels.{label}", version, expected))
    return ModelSettings(
        task=None if table.task is None else _TASKS[table.task],
        answer=table.answer,
        labels=_labels(folder, table),
        softmax=table.softmax,
        values=_values(table),
        description=table.description,
        inputs={
            name: TensorSettings(
                tensor.axes,
                tensor.description,
                tensor.unit,
                tensor.allow_nan,
                tensor.allow_unknown,
                None if tensor.image is None else _image(tensor.image),
            )
            for name, tensor in table.inputs.items()
        },
        outputs={name: TensorSettings(tensor.axes) for name, tensor in table.outputs.items()},
        batched=table.batched,
        versions=policy,
        version_labels=table.version_labels,
        traffic=_traffic(table),
        max_batch_rows=table.max_batch_rows,
        max_queue_rows=table.max_queue_rows,
        max_queue_bytes=table.max_queue_bytes,
        max_delay_ms=table.max_delay_ms,
        latency_objective_ms=table.latency_objective_ms,
        inline=table.inline,
        sequence_batching=table.sequence_batching,
        max_run_seconds=table.max_run_seconds,
        instances=table.instances,
        threads=table.threads,
        providers=table.providers,
        devices=None if table.devices is None else str(table.devices),
        provider_options=_provider_options(table.provider_options),
    )


def _image(table: _ImageTable) -> ImageSettings:
    return ImageSettings(
        layout=table.layout or "",
        colours=table.colours or "",
        width=table.width,
        height=table.height,
        resize=table.resize or "",
        filter=table.filter or "",
        shorter_side=table.shorter_side,
        inversion=table.inversion or "",
        range=table.range,
        mean=table.mean,
        std=table.std,
    )


def _provider_options(tables: Mapping[str, Mapping[str, Any]]) -> ProviderOptions:
    try:
        return check_model_options("provider_options", tables)
    except ProviderOptionError as error:
        raise LoadError(str(error)) from error


def _labels(folder: Path, table: ModelToml) -> tuple[str, ...]:
    if not table.labels_file:
        return table.labels
    if table.labels:
        raise LoadError("labels and labels_file are both set (expected one of them)")
    try:
        return read_labels(folder, table.labels_file)
    except LoadError as error:
        raise LoadError(f"labels_file: {error}") from error


def _values(table: ModelToml) -> tuple[ValueSettings, ...]:
    if table.values and table.unit:
        raise LoadError("values and unit are both set (expected one of them)")
    if table.unit:
        return (ValueSettings(unit=table.unit),)
    return tuple(ValueSettings(value.name, value.unit) for value in table.values)


def _traffic(table: ModelToml) -> Traffic:
    labels = table.version_labels
    default: VersionOrLabel = ""
    if table.default is not None:
        default = _parse_target("default", table.default, labels)
    shares: dict[VersionOrLabel, float] = {}
    for key, share in table.traffic.items():
        target = _parse_target(join_path("traffic", key), key, labels)
        if target in shares:  # 2 and 02
            raise LoadError(f"duplicate version {target} in traffic")
        shares[target] = float(share)
    if (total := sum(shares.values())) > 100 + 1e-9:  # 33.3 and 33.3 and 33.4
        raise LoadError(f"the shares of traffic add up to {total:g} percent (expected at most 100)")
    if table.shadow is None:
        return Traffic(default, shares)
    shadow = _parse_target("shadow.to", table.shadow.to, labels)
    return Traffic(default, shares, shadow, float(table.shadow.share))


def _parse_policy(value: object) -> VersionPolicy:
    try:
        return VersionPolicy.parse(value)
    except ValueError as error:
        raise LoadError(invalid_value("versions", value, str(error))) from error


def _parse_target(where: str, value: object, labels: Mapping[str, int]) -> VersionOrLabel:
    """Return a version for an integer or a string of digits, else one of the labels."""
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value) else value
    if type(number) is int and 0 < number <= MAX_VERSION:
        return number
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise LoadError(invalid_value(where, value, "expected a version or a label"))
    names = [LATEST, *labels]
    if value not in names:
        expected = f"expected a version or a label: {', '.join(names)}"
        raise LoadError(invalid_value(where, value, expected, close_match(value, names)))
    return value
