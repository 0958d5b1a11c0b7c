"""config.pbtxt, by which Triton is told of a model: read for what it says of an ONNX model.

What has no effect here is listed in `ModelSettings.ignored`; what would change the answers and
cannot be done is refused. Field by field: `inference.ModelConfig` in protos/model_config.proto.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from google.protobuf import text_format

from neurona_protos import model_config_pb2 as triton
from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import LoadError, quoted
from neurona_server.models.beside import read_labels, read_text
from neurona_server.models.settings import (
    CONFIG_PBTXT,
    DeclaredTensor,
    ModelSettings,
    VersionPolicy,
)
from neurona_server.models.toml_values import MOST_VERSION, close_match, whole
from neurona_server.models.triton_batching import read_batching, read_instances
from neurona_server.models.triton_ignored import ignored_fields
from neurona_server.models.triton_warm_up import DATA_TYPES, read_warm_up

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
