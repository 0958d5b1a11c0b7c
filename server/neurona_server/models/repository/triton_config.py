"""Reads config.pbtxt, Triton's configuration of a model, for ONNX models.

Fields without an effect here are listed in `ModelSettings.ignored`; a field that would change
responses and is not supported is an error. The fields are those of `inference.ModelConfig` in
protos/model_config.proto, whose source is Triton's model configuration
(https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto).
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from neurona_protos import model_config_pb2 as triton
from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import LoadError, close_match, printable, quoted
from neurona_server.models.repository.folder_files import read_labels, read_text, resolve_inside
from neurona_server.models.repository.model_toml import MAX_VERSION
from neurona_server.models.repository.settings import (
    CONFIG_PBTXT,
    DeclaredTensor,
    ModelSettings,
    VersionPolicy,
    WarmUpInput,
    WarmUpSample,
)
from neurona_server.models.repository.triton_accelerators import (
    CUDA_PARAMETERS,
    read_accelerators,
)
from neurona_server.models.repository.triton_batching import read_batching
from neurona_server.models.repository.triton_instances import read_instances
from neurona_server.models.repository.triton_sequences import (
    declared_sequence_tensors,
    read_sequence_batching,
)
from neurona_server.models.repository.triton_types import DATA_TYPES
from neurona_server.models.repository.validation import invalid_value
from neurona_server.models.synthetic_inputs import MAX_ELEMENTS

WARM_UP_FOLDER = "warmup"
"""Folder of the files of warm-up samples, inside the model's folder."""

MAX_THREADS = 1024
MAX_WARM_UP_RUNS = 10_000
"""Runs of one warm-up sample."""

_UNSUPPORTED = {
    "ensemble_scheduling": "a model composed of other models",
    "batch_input": "inputs generated from the composition of a batch",
    "batch_output": "outputs that are not split by rows",
}
_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(\w+)"')

_Supported = Mapping[str, Any]
"""By field: None if all of it has an effect, else the fields in it that have one."""

_TENSOR: _Supported = {"name": None, "data_type": None, "dims": None, "reshape": None}
# Clients read the format of an input; it has no effect in Triton either.
_SUPPORTED: _Supported = {
    "name": None,
    "platform": None,
    "backend": None,
    "max_batch_size": None,
    "input": {**_TENSOR, "format": None},
    "output": {**_TENSOR, "label_filename": None},
    "version_policy": None,
    "default_model_filename": None,
    "instance_group": {"count": None, "kind": None, "name": None, "gpus": None, "passive": None},
    "dynamic_batching": None,
    "sequence_batching": {
        "max_sequence_idle_microseconds": None,
        "control_input": None,
        "state": {
            "input_name": None,
            "output_name": None,
            "data_type": None,
            "dims": None,
            "initial_state": None,
        },
        "direct": {"max_queue_delay_microseconds": None},
        "oldest": {
            "preferred_batch_size": None,
            "max_queue_delay_microseconds": None,
            "preserve_ordering": None,
        },
    },
    "model_warmup": None,
    "parameters": {"intra_op_thread_count": None, **dict.fromkeys(CUDA_PARAMETERS)},
    # What has no effect in it is listed by its reader.
    "optimization": {"execution_accelerators": None},
    # Nothing in these has an effect, but each of their fields is listed as ignored.
    "response_cache": {},
    "model_transaction_policy": {},
}
_SUPPORTED_WITHOUT_BATCHING = {
    **_SUPPORTED,
    "dynamic_batching": {
        "preserve_ordering": None,
        "priority_levels": None,
        "default_priority_level": None,
        "default_queue_policy": None,
        "priority_queue_policy": None,
    },
}


def read_triton_config(folder: Path, text: str | None = None) -> ModelSettings:
    """Read the config.pbtxt in a model's folder, or take `text` for its contents.

    Raises:
        LoadError: The file cannot be read, is invalid or needs an unsupported feature; the
            message is one line that begins with the file's name.
    """
    try:
        text = read_text(folder, CONFIG_PBTXT) if text is None else text
        return _to_settings(folder, text, _parse(text))
    except LoadError as error:
        raise LoadError(f"{CONFIG_PBTXT}: {error}") from error


def _parse(text: str) -> triton.ModelConfig:
    try:
        return text_format.Parse(text, triton.ModelConfig())
    except text_format.ParseError as error:
        line = error.GetLine()
        problem = str(error).removeprefix(f"{line}:{error.GetColumn()} : ")
        shown = "".join(char if char.isprintable() else "?" for char in problem)[:300].rstrip(".")
        raise LoadError(f"line {line}: {shown}{_suggest_field(problem)}") from error
    except (ValueError, TypeError) as error:  # a number out of range, raised without its line
        raise LoadError(f"it cannot be parsed: {quoted(str(error))}") from error


def _suggest_field(problem: str) -> str:
    """Return "; did you mean ..." if `problem` is an unknown field and a similar one exists."""
    if not (match := _UNKNOWN_FIELD.search(problem)):
        return ""
    message = triton.ModelConfig.DESCRIPTOR.file.pool.FindMessageTypeByName(match[1])
    return close_match(match[2], [field.name for field in message.fields])


def _to_settings(folder: Path, text: str, config: triton.ModelConfig) -> ModelSettings:
    _check_supported(folder, config)
    has_batch_axis = config.max_batch_size > 0
    sequences = read_sequence_batching(folder, config)
    declared = [
        *_declared_tensors("input", config.input, batch_axis=has_batch_axis),
        *_declared_tensors("output", config.output, batch_axis=has_batch_axis),
        *declared_sequence_tensors(config, sequences),
    ]
    # Triton completes a config without tensors and without max_batch_size from the graph.
    batch_axis_known = bool(declared) or re.search(r"\bmax_batch_size\b", text) is not None
    batching = read_batching(config, batch_axis_known=batch_axis_known)
    accelerators = read_accelerators(config)
    instances = read_instances(config, accelerators)
    return ModelSettings(
        batched=batching.batched,
        versions=_version_policy(config),
        max_batch_rows=config.max_batch_size or None,
        max_delay_ms=batching.max_delay_ms,
        instances=instances.count,
        providers=instances.providers,
        devices=instances.devices,
        instances_by_gpu=instances.by_gpu,
        provider_options=accelerators.provider_options,
        threads=_threads(config),
        preferred_batch_rows=batching.preferred_rows,
        queue_policies=batching.queue_policies,
        preserve_order=batching.preserve_order,
        has_batch_axis=has_batch_axis,
        model_file=_model_file(config.default_model_filename),
        declared=tuple(declared),
        sequences=sequences,
        output_labels=_output_labels(folder, config),
        warm_up=_warm_up_samples(folder, config),
        ignored=(*_ignored_fields(config), *accelerators.ignored, *instances.ignored),
        triton_config=config.SerializeToString(deterministic=True),
    )


def _check_supported(folder: Path, config: triton.ModelConfig) -> None:
    if config.name and config.name != folder.name:
        raise LoadError(
            f"name is {quoted(config.name)} (expected {folder.name!r}, the name of its folder)"
        )
    if config.platform not in ("", "onnxruntime_onnx"):
        raise LoadError(f"platform is {quoted(config.platform)} (expected 'onnxruntime_onnx')")
    if config.backend not in ("", "onnxruntime"):
        raise LoadError(f"backend is {quoted(config.backend)} (expected 'onnxruntime')")
    if config.max_batch_size < 0:
        raise LoadError(f"max_batch_size is {config.max_batch_size} (expected at least 0)")
    present = {field.name for field, _ in config.ListFields()}
    for name, meaning in _UNSUPPORTED.items():
        if name in present:
            raise LoadError(f"{name} is not supported: {meaning}")
    if config.model_transaction_policy.decoupled:
        raise LoadError(
            "model_transaction_policy.decoupled is true (expected one response per request)"
        )


def _declared_tensors(
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
            raise LoadError(f"{where} is a duplicate of {role} {tensor.name!r}")
        _check_sizes(f"{where}.dims", tensor.dims)
        if reshaped := tensor.HasField("reshape"):
            _check_reshape(where, tensor)
        if tensor.data_type and tensor.data_type not in DATA_TYPES:
            raise LoadError(f"{where}.data_type is {tensor.data_type}, an unknown type")
        first = (-1,) if batch_axis else ()
        dtype = DATA_TYPES.get(tensor.data_type, DataType.DATA_TYPE_UNDEFINED)
        shape = (*first, *tensor.dims) if tensor.dims else None
        graph_shape = (*first, *tensor.reshape.shape) if reshaped else None
        declared.append(DeclaredTensor(role, tensor.name, dtype, shape, graph_shape))
    return declared


def _check_sizes(where: str, sizes: Iterable[int]) -> None:
    for size in sizes:
        if size == 0 or size < -1:
            raise LoadError(f"{where} has {size} (expected -1 or at least 1)")


def _check_reshape(where: str, tensor: triton.ModelInput | triton.ModelOutput) -> None:
    """Check that each array of the shape `dims` has exactly one of the shape `reshape`."""
    dims, shape = [*tensor.dims], [*tensor.reshape.shape]
    _check_sizes(f"{where}.reshape", shape)
    if not dims or _fixed_products(dims) != _fixed_products(shape):
        raise LoadError(
            f"{where}.reshape is {shape}, which does not hold the elements of dims {dims} "
            "(expected equal products of the sizes, also before, between and after those of -1)"
        )


def _fixed_products(sizes: Iterable[int]) -> list[int]:
    """Return the products of the fixed sizes in front of, between and behind the free ones."""
    products = [1]
    for size in sizes:
        if size < 0:
            products.append(1)
        else:
            products[-1] *= size
    return products


def _version_policy(config: triton.ModelConfig) -> VersionPolicy | None:
    policy = config.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(all_versions=True)
    if choice == "latest":
        return VersionPolicy(latest=max(1, policy.latest.num_versions))
    if choice == "specific":
        versions = policy.specific.versions
        for index, version in enumerate(versions):
            _check_range(f"version_policy.specific.versions[{index}]", version, 1, MAX_VERSION)
        if not versions:
            raise LoadError("version_policy.specific has no versions (expected at least one)")
        return VersionPolicy(listed=tuple(sorted(set(versions))))
    return None


def _threads(config: triton.ModelConfig) -> int | None:
    if "intra_op_thread_count" not in config.parameters:
        return None
    text = config.parameters["intra_op_thread_count"].string_value
    value = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else text
    return _check_range("parameters.intra_op_thread_count", value, 0, MAX_THREADS) or None


def _check_range(where: str, value: int | str, least: int, most: int) -> int:
    if isinstance(value, str) or not least <= value <= most:
        expected = f"expected an integer from {least} to {most}"
        raise LoadError(invalid_value(where, value, expected))
    return value


def _model_file(name: str) -> str:
    if name and (name in (".", "..") or not name.isprintable() or set(name) & set("/\\:")):
        raise LoadError(
            f"default_model_filename is {quoted(name)} (expected a file name without folders)"
        )
    return name


def _output_labels(folder: Path, config: triton.ModelConfig) -> dict[str, tuple[str, ...]]:
    labels = {}
    for index, output in enumerate(config.output):
        if output.label_filename:
            try:
                labels[output.name] = read_labels(folder, output.label_filename, allow_gaps=True)
            except LoadError as error:
                raise LoadError(f"output[{index}].label_filename: {error}") from error
    return labels


def _warm_up_samples(folder: Path, config: triton.ModelConfig) -> tuple[WarmUpSample, ...]:
    """Read model_warmup. Files are located now, and read when the samples are run."""
    return tuple(
        _warm_up_sample(folder, f"model_warmup[{index}]", sample, config.max_batch_size)
        for index, sample in enumerate(config.model_warmup)
        if sample.batch_size or not config.max_batch_size  # Triton skips a sample without rows
    )


def _warm_up_sample(
    folder: Path, where: str, sample: triton.ModelWarmup, max_batch_size: int
) -> WarmUpSample:
    rows = sample.batch_size or 1
    max_rows = max(1, max_batch_size)
    if rows > max_rows:
        raise LoadError(f"{where}.batch_size is {rows} (expected at most {max_rows})")
    if sample.count > MAX_WARM_UP_RUNS:
        raise LoadError(f"{where}.count is {sample.count} (expected at most {MAX_WARM_UP_RUNS})")
    batch_size = rows if max_batch_size else 0
    inputs = {
        name: _warm_up_input(folder, f"{where}.inputs.{quoted(name)}", tensor, batch_size)
        for name, tensor in sample.inputs.items()
    }
    return WarmUpSample(sample.name, max(1, sample.count), inputs)


def _warm_up_input(
    folder: Path, where: str, tensor: triton.ModelWarmup.Input, rows: int
) -> WarmUpInput:
    """Read one input of a sample; `rows` is 0 for a model without a batch axis."""
    if tensor.data_type not in DATA_TYPES:
        raise LoadError(f"{where} has no data_type")
    shape = (rows, *tensor.dims) if rows else tuple(tensor.dims)
    if any(size < 1 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise LoadError(
            f"{where}.dims is {[*tensor.dims]} (expected sizes of at least 1 "
            f"and at most {MAX_ELEMENTS} elements)"
        )
    kind = tensor.WhichOneof("input_data_type")
    if kind is None or (kind != "input_data_file" and not getattr(tensor, kind)):
        raise LoadError(f"{where} has no data (expected zero_data, random_data or input_data_file)")
    file = None
    if kind == "input_data_file":
        try:
            if not tensor.input_data_file:
                raise LoadError("it is empty (expected the name of a file)")
            file = resolve_inside(folder / WARM_UP_FOLDER, tensor.input_data_file)
        except LoadError as error:
            raise LoadError(f"{where}.input_data_file: {error}") from error
    dtype = DATA_TYPES[tensor.data_type]
    return WarmUpInput(dtype, shape, random=kind == "random_data", file=file, rows=rows)


def _ignored_fields(config: triton.ModelConfig) -> list[str]:
    """Return paths like "optimization.cuda" or "input[0].format", in the schema's order.

    A field that has its default counts as absent, as protobuf defines it.
    """
    supported = _SUPPORTED if config.max_batch_size else _SUPPORTED_WITHOUT_BATCHING
    return list(_unsupported_paths(config, supported, ""))


def _unsupported_paths(message: Message, supported: _Supported, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if field.name not in supported:
            yield path
        elif (inner := supported[field.name]) is not None:
            if _is_map(field):
                yield from (f"{path}.{printable(key)}" for key in sorted(value) if key not in inner)
            elif isinstance(value, Message):
                yield from _unsupported_paths(value, inner, f"{path}.")
            else:
                for index, item in enumerate(value):
                    yield from _unsupported_paths(item, inner, f"{path}[{index}].")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
