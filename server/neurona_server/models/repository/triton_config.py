"""config.pbtxt, by which Triton is told of a model: read for what it says of an ONNX model.

What has no effect here is listed in `ModelSettings.ignored`; what would change the answers and
cannot be done is refused. Field by field: `inference.ModelConfig` in protos/model_config.proto.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from neurona_protos import model_config_pb2 as triton
from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import LoadError, close_match, printable, quoted
from neurona_server.models.repository.model_files import read_labels, read_text, resolve_inside
from neurona_server.models.repository.model_toml import MOST_VERSION, whole
from neurona_server.models.repository.settings import (
    CONFIG_PBTXT,
    DeclaredTensor,
    ModelSettings,
    VersionPolicy,
    WarmUpInput,
    WarmUpSample,
)
from neurona_server.models.synthetic_inputs import MAX_ELEMENTS

Heeded = Mapping[str, Any]
"""By field: None if all of it is heeded, else what is heeded inside it."""

_TENSOR: Heeded = {"name": None, "data_type": None, "dims": None, "reshape": None}
HEEDED: Heeded = {
    "name": None,
    "platform": None,
    "backend": None,
    "max_batch_size": None,
    "input": _TENSOR,
    "output": {**_TENSOR, "label_filename": None},
    "version_policy": None,
    "default_model_filename": None,
    "instance_group": {"count": None, "kind": None, "name": None, "gpus": None, "passive": None},
    "dynamic_batching": {
        "max_queue_delay_microseconds": None,
        "default_queue_policy": {"max_queue_size": None},
    },
    "model_warmup": None,
    "parameters": {"intra_op_thread_count": None},
    # Nothing is heeded in these, but each of their fields is named.
    "optimization": {},
    "response_cache": {},
    "model_transaction_policy": {},
}
_UNBATCHED = {**HEEDED, "dynamic_batching": {}}


def ignored_fields(config: Message) -> list[str]:
    """Paths like "optimization.cuda" or "input[0].format", in the order of the definition.

    A field that holds its default is not there, as protobuf has it.
    """
    heeded = HEEDED if getattr(config, "max_batch_size", 0) else _UNBATCHED
    return list(_walk(config, heeded, ""))


def _walk(message: Message, heeded: Heeded, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if field.name not in heeded:
            yield path
        elif (inside := heeded[field.name]) is not None:
            if _is_map(field):
                unheeded = sorted(key for key in value if key not in inside)
                yield from (f"{path}.{printable(key)}" for key in unheeded)
            elif isinstance(value, Message):
                yield from _walk(value, inside, f"{path}.")
            else:
                for index, item in enumerate(value):
                    yield from _walk(item, inside, f"{path}[{index}].")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


MOST_INSTANCES = 64
_MOST_DELAY_US = 10**11
_Kind = triton.ModelInstanceGroup


@dataclass(frozen=True)
class Batching:
    """None is not said."""

    batched: bool | None = None
    max_delay_ms: float | None = None
    max_queue_rows: int | None = None


def read_batching(config: triton.ModelConfig, *, told: bool) -> Batching:
    """`told` says that the config tells whether there is a batch axis: it has one if
    max_batch_size is above 0. Raises LoadError.
    """
    if not config.max_batch_size:
        return Batching(batched=False if told else None)
    if not config.HasField("dynamic_batching"):
        return Batching()
    said = config.dynamic_batching
    delay = said.max_queue_delay_microseconds
    if delay > _MOST_DELAY_US:
        raise LoadError(
            f"dynamic_batching.max_queue_delay_microseconds is {delay}; "
            f"expected at most {_MOST_DELAY_US}"
        )
    rows = min(said.default_queue_policy.max_queue_size, 2**31 - 1)
    return Batching(True, delay / 1000, rows or None)


def read_instances(
    config: triton.ModelConfig,
) -> tuple[int | None, tuple[str, ...] | None, list[str]]:
    """How many there are, the providers they run on, and the fields that have no effect.

    Of groups on several kinds of devices, those on the best one are read: a model runs on one.
    Raises LoadError.
    """
    groups = list(config.instance_group)
    ignored = []
    for index, group in enumerate(groups):
        if group.count < 0:
            raise LoadError(f"instance_group[{index}].count is {group.count}; expected at least 0")
        if group.kind not in _Kind.Kind.values():
            raise LoadError(f"instance_group[{index}].kind is {group.kind}, which is not known")
        if [*group.gpus] not in ([], [0]):
            ignored.append(f"instance_group[{index}].gpus")
    active = [(index, group) for index, group in enumerate(groups) if not group.passive]
    if not active:
        return None, None, ignored
    kinds = {group.kind for _, group in active}
    best = _Kind.KIND_GPU if _Kind.KIND_GPU in kinds else _Kind.KIND_CPU
    if len(kinds) > 1:
        if _Kind.KIND_GPU not in kinds:
            best = next(kind for kind in kinds if kind != _Kind.KIND_CPU)
        ignored += [f"instance_group[{index}]" for index, one in active if one.kind != best]
    else:
        (best,) = kinds
    count = sum(max(1, group.count) for _, group in active if group.kind == best)
    if count > MOST_INSTANCES:
        raise LoadError(
            f"instance_group asks for {count} instances; expected at most {MOST_INSTANCES}"
        )
    providers = {_Kind.KIND_CPU: ("cpu",), _Kind.KIND_GPU: ("cuda", "cpu")}.get(best)
    return count, providers, ignored


FOLDER = "warmup"
"""Where the files of samples stand, in the model's folder."""

MOST_RUNS = 10_000
"""Of one sample; a load must end."""

DATA_TYPES = {
    triton.TYPE_BOOL: DataType.DATA_TYPE_BOOL,
    triton.TYPE_UINT8: DataType.DATA_TYPE_UINT8,
    triton.TYPE_UINT16: DataType.DATA_TYPE_UINT16,
    triton.TYPE_UINT32: DataType.DATA_TYPE_UINT32,
    triton.TYPE_UINT64: DataType.DATA_TYPE_UINT64,
    triton.TYPE_INT8: DataType.DATA_TYPE_INT8,
    triton.TYPE_INT16: DataType.DATA_TYPE_INT16,
    triton.TYPE_INT32: DataType.DATA_TYPE_INT32,
    triton.TYPE_INT64: DataType.DATA_TYPE_INT64,
    triton.TYPE_FP16: DataType.DATA_TYPE_FLOAT16,
    triton.TYPE_FP32: DataType.DATA_TYPE_FLOAT,
    triton.TYPE_FP64: DataType.DATA_TYPE_DOUBLE,
    triton.TYPE_STRING: DataType.DATA_TYPE_STRING,
    triton.TYPE_BF16: DataType.DATA_TYPE_BFLOAT16,
}


def read_warm_up(folder: Path, config: triton.ModelConfig) -> tuple[WarmUpSample, ...]:
    """Raises LoadError that names the field. Files are found now and read when they are run."""
    return tuple(
        _sample(folder, f"model_warmup[{index}]", sample, config.max_batch_size)
        for index, sample in enumerate(config.model_warmup)
        if sample.batch_size or not config.max_batch_size  # Triton passes over one without rows
    )


def _sample(folder: Path, where: str, sample: triton.ModelWarmup, most_rows: int) -> WarmUpSample:
    rows = sample.batch_size or 1
    if rows > max(1, most_rows):
        raise LoadError(f"{where}.batch_size is {rows}; expected at most {max(1, most_rows)}")
    if sample.count > MOST_RUNS:
        raise LoadError(f"{where}.count is {sample.count}; expected at most {MOST_RUNS}")
    inputs = {
        name: _input(folder, f"{where}.inputs.{quoted(name)}", one, rows if most_rows else 0)
        for name, one in sample.inputs.items()
    }
    return WarmUpSample(sample.name, max(1, sample.count), inputs)


def _input(folder: Path, where: str, one: triton.ModelWarmup.Input, rows: int) -> WarmUpInput:
    """`rows` is 0 for a model without a batch axis."""
    if one.data_type not in DATA_TYPES:
        raise LoadError(f"{where} has no data_type")
    shape = (rows, *one.dims) if rows else tuple(one.dims)
    if any(size < 1 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise LoadError(
            f"{where}.dims is {[*one.dims]}; expected sizes of at least 1, "
            f"and {MAX_ELEMENTS} elements at most"
        )
    kind = one.WhichOneof("input_data_type")
    if kind is None or (kind != "input_data_file" and not getattr(one, kind)):
        raise LoadError(f"{where} has no data; expected zero_data, random_data or input_data_file")
    file = None
    if kind == "input_data_file":
        try:
            if not one.input_data_file:
                raise LoadError("it is empty; expected the name of a file")
            file = resolve_inside(folder / FOLDER, one.input_data_file)
        except LoadError as error:
            raise LoadError(f"{where}.input_data_file: {error}") from error
    dtype = DATA_TYPES[one.data_type]
    return WarmUpInput(dtype, shape, random=kind == "random_data", file=file, rows=rows)


_REFUSED = {
    "sequence_batching": "requests that share a state",
    "ensemble_scheduling": "a model made of others",
    "batch_input": "inputs that are made from how a batch was put together",
    "batch_output": "outputs that are not cut by rows",
}
_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(\w+)"')


def read_triton_config(folder: Path) -> ModelSettings:
    """Raises LoadError with one line that begins with the file's name."""
    try:
        text = read_text(folder, CONFIG_PBTXT)
        return _settings(folder, text, _parse(text))
    except LoadError as error:
        raise LoadError(f"{CONFIG_PBTXT}: {error}") from error


def _parse(text: str) -> triton.ModelConfig:
    try:
        return text_format.Parse(text, triton.ModelConfig())
    except text_format.ParseError as error:
        line = error.GetLine()
        said = str(error).removeprefix(f"{line}:{error.GetColumn()} : ")
        shown = "".join(char if char.isprintable() else "?" for char in said)[:300].rstrip(".")
        raise LoadError(f"line {line}: {shown}{_suggestion(said)}") from error
    except (ValueError, TypeError) as error:  # a number that its field cannot hold: no line is told
        raise LoadError(f"it cannot be read: {quoted(str(error))}") from error


def _suggestion(said: str) -> str:
    """For the name of a field that does not exist, the one that was meant."""
    if not (match := _UNKNOWN_FIELD.search(said)):
        return ""
    message = triton.ModelConfig.DESCRIPTOR.file.pool.FindMessageTypeByName(match[1])
    return close_match(match[2], [field.name for field in message.fields])


def _settings(folder: Path, text: str, config: triton.ModelConfig) -> ModelSettings:
    _refuse(folder, config)
    rows = config.max_batch_size
    declared = [
        *_declared("input", config.input, batch_axis=rows > 0),
        *_declared("output", config.output, batch_axis=rows > 0),
    ]
    # Triton finds out by itself what a config without tensors and without rows leaves open.
    told = bool(declared) or re.search(r"\bmax_batch_size\b", text) is not None
    batching = read_batching(config, told=told)
    instances, providers, without_effect = read_instances(config)
    return ModelSettings(
        batched=batching.batched,
        versions=_versions(config),
        max_batch_rows=rows or None,
        max_queue_rows=batching.max_queue_rows,
        max_delay_ms=batching.max_delay_ms,
        instances=instances,
        providers=providers,
        threads=_threads(config),
        model_file=_model_file(config.default_model_filename),
        declared=tuple(declared),
        output_labels=_labels(folder, config),
        warm_up=read_warm_up(folder, config),
        ignored=(*ignored_fields(config), *without_effect),
    )


def _refuse(folder: Path, config: triton.ModelConfig) -> None:
    if config.name and config.name != folder.name:
        raise LoadError(f"name is {quoted(config.name)}; expected {folder.name!r}, like its folder")
    if config.platform not in ("", "onnxruntime_onnx"):
        shown = quoted(config.platform)
        raise LoadError(f"platform is {shown}; this server runs 'onnxruntime_onnx' only")
    if config.backend not in ("", "onnxruntime"):
        raise LoadError(f"backend is {quoted(config.backend)}; this server runs 'onnxruntime' only")
    if config.max_batch_size < 0:
        raise LoadError(f"max_batch_size is {config.max_batch_size}; expected at least 0")
    present = {field.name for field, _ in config.ListFields()}
    for name, what in _REFUSED.items():
        if name in present:
            raise LoadError(f"it has {name}: {what} cannot be served here")
    if config.model_transaction_policy.decoupled:
        raise LoadError("model_transaction_policy.decoupled is true; expected one answer a request")


def _declared(
    role: str,
    tensors: Iterable[triton.ModelInput | triton.ModelOutput],
    *,
    batch_axis: bool,
) -> list[DeclaredTensor]:
    declared: list[DeclaredTensor] = []
    for index, tensor in enumerate(tensors):
        where = f"{role}[{index}]"
        if not tensor.name:
            raise LoadError(f"{where} has no name")
        if any(tensor.name == other.name for other in declared):
            raise LoadError(f"{where} is a second {tensor.name!r}; expected it once")
        if tensor.HasField("reshape") and [*tensor.reshape.shape] != [*tensor.dims]:
            raise LoadError(
                f"{where}.reshape is {[*tensor.reshape.shape]}; expected dims {[*tensor.dims]}, "
                "since callers send and get the shapes of the graph here"
            )
        for size in tensor.dims:
            if size == 0 or size < -1:
                raise LoadError(f"{where}.dims has {size}; expected -1 or at least 1")
        if tensor.data_type and tensor.data_type not in DATA_TYPES:
            raise LoadError(f"{where}.data_type is {tensor.data_type}, which is not known")
        shape = (-1, *tensor.dims) if batch_axis else tuple(tensor.dims)
        dtype = DATA_TYPES.get(tensor.data_type, DataType.DATA_TYPE_UNDEFINED)
        declared.append(DeclaredTensor(role, tensor.name, dtype, shape if tensor.dims else None))
    return declared


def _versions(config: triton.ModelConfig) -> VersionPolicy | None:
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(every=True)
    if choice == "latest":
        return VersionPolicy(latest=max(1, policy.latest.num_versions))
    if choice == "specific":
        listed = [
            whole(1, MOST_VERSION)(f"version_policy.specific.versions[{index}]", version)
            for index, version in enumerate(policy.specific.versions)
        ]
        if not listed:
            raise LoadError("version_policy.specific has no versions; expected at least one")
        return VersionPolicy(listed=tuple(sorted(set(listed))))
    return None


def _threads(config: triton.ModelConfig) -> int | None:
    if "intra_op_thread_count" not in config.parameters:
        return None
    text = config.parameters["intra_op_thread_count"].string_value
    value = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else text
    where = "parameters.intra_op_thread_count"
    return int(whole(0, 1024)(where, value)) or None


def _model_file(name: str) -> str:
    if name and (name in (".", "..") or not name.isprintable() or set(name) & set("/\\:")):
        raise LoadError(
            f"default_model_filename is {quoted(name)}; expected a name without folders"
        )
    return name


def _labels(folder: Path, config: triton.ModelConfig) -> dict[str, tuple[str, ...]]:
    labels = {}
    for index, output in enumerate(config.output):
        if output.label_filename:
            try:
                labels[output.name] = read_labels(folder, output.label_filename)
            except LoadError as error:
                raise LoadError(f"output[{index}].label_filename: {error}") from error
    return labels
