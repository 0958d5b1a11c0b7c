"""Reads sequence_batching of a config.pbtxt: control inputs, and the state of sequences.

What the strategies `direct` and `oldest` say of batches has the effect that it has in
dynamic_batching. Sequences are not bound to a slot or an instance here: any of their steps share
any batch, since the state comes with the step.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from neurona_protos import model_config_pb2 as triton
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, decode
from neurona_server.errors import LoadError, quoted
from neurona_server.models.repository.folder_files import resolve_inside
from neurona_server.models.repository.settings import DeclaredTensor
from neurona_server.models.repository.triton_types import DATA_TYPES
from neurona_server.sequences.sequence_batching import (
    ControlInput,
    ControlKind,
    SequenceBatching,
    StateTensor,
)

INITIAL_STATE_FOLDER = "initial_state"
"""Folder of the files of initial states, inside the model's folder."""

MAX_STATE_BYTES = 64 << 20
"""Bytes of an initial state: each open sequence has a state of its own."""

_MAX_IDLE_MICROSECONDS = 10**13

_FLAG_TYPES = {
    "int32_false_true": DataType.DATA_TYPE_INT32,
    "fp32_false_true": DataType.DATA_TYPE_FLOAT,
    "bool_false_true": DataType.DATA_TYPE_BOOL,
}
_ID_TYPES = {
    triton.TYPE_UINT64: DataType.DATA_TYPE_UINT64,
    triton.TYPE_INT64: DataType.DATA_TYPE_INT64,
    triton.TYPE_UINT32: DataType.DATA_TYPE_UINT32,
    triton.TYPE_INT32: DataType.DATA_TYPE_INT32,
    triton.TYPE_STRING: DataType.DATA_TYPE_STRING,
}


def read_sequence_batching(folder: Path, config: triton.ModelConfig) -> SequenceBatching | None:
    """Read sequence_batching of a model in `folder`; None if the config has none.

    Raises:
        LoadError: A value is invalid, or needs an unsupported feature.
    """
    if not config.HasField("sequence_batching"):
        return None
    batching = config.sequence_batching
    if batching.iterative_sequence:
        raise LoadError(
            "sequence_batching.iterative_sequence is not supported: requests that the server "
            "repeats until the model ends them"
        )
    idle = batching.max_sequence_idle_microseconds
    if idle > _MAX_IDLE_MICROSECONDS:
        raise LoadError(
            f"sequence_batching.max_sequence_idle_microseconds is {idle} "
            f"(expected at most {_MAX_IDLE_MICROSECONDS})"
        )
    controls: list[ControlInput] = []
    for index, one in enumerate(batching.control_input):
        where = f"sequence_batching.control_input[{index}]"
        control = _control_input(where, one)
        for other in controls:
            if control.name == other.name:
                raise LoadError(f"{where}.name is {quoted(control.name)}, as that of another")
            if control.kind is other.kind:
                raise LoadError(f"{where}.control[0].kind is {control.kind.value}, as another's")
        controls.append(control)
    states: list[StateTensor] = []
    for index, state in enumerate(batching.state):
        where = f"sequence_batching.state[{index}]"
        tensor = _state_tensor(folder, where, state)
        taken = {one.name for one in controls} | {one.input_name for one in states}
        if tensor.input_name in taken:
            raise LoadError(f"{where}.input_name is {quoted(tensor.input_name)}, as another's")
        if any(tensor.output_name == one.output_name for one in states):
            raise LoadError(f"{where}.output_name is {quoted(tensor.output_name)}, as another's")
        states.append(tensor)
    listed = {tensor.name for tensor in config.output}
    sequences = SequenceBatching(
        tuple(controls),
        tuple(states),
        idle / 1e6 if idle else None,
        frozenset(one.output_name for one in states if one.output_name not in listed),
    )
    for index, tensor_of_callers in enumerate(config.input):
        if tensor_of_callers.name in sequences.hidden_inputs:
            raise LoadError(
                f"input[{index}].name is {quoted(tensor_of_callers.name)}, an input of "
                "sequence_batching (expected inputs that callers send)"
            )
    return sequences


def declared_sequence_tensors(
    config: triton.ModelConfig, sequences: SequenceBatching | None
) -> Iterator[DeclaredTensor]:
    """Yield the tensors of sequence_batching, which the graph must have."""
    if sequences is None:
        return
    first = (-1,) if config.max_batch_size else ()
    for control in sequences.controls:
        yield DeclaredTensor("input", control.name, control.dtype, (*first, 1))
    for state, tensor in zip(config.sequence_batching.state, sequences.states, strict=True):
        shape = (*first, *state.dims)
        yield DeclaredTensor("input", tensor.input_name, tensor.dtype, shape)
        yield DeclaredTensor("output", tensor.output_name, tensor.dtype, shape)


def _control_input(where: str, one: triton.ModelSequenceBatching.ControlInput) -> ControlInput:
    if not one.name:
        raise LoadError(f"{where} has no name")
    if len(one.control) != 1:
        raise LoadError(f"{where} has {len(one.control)} controls (expected 1)")
    (control,) = one.control
    where += ".control[0]"
    kinds = triton.ModelSequenceBatching.Control.Kind
    if control.kind not in kinds.values():
        raise LoadError(f"{where}.kind is {control.kind}, an unknown kind")
    kind = ControlKind(kinds.Name(control.kind))
    present = [name for name in _FLAG_TYPES if getattr(control, name)]
    if kind is ControlKind.CORRID:
        if present or control.data_type not in _ID_TYPES:
            names = ", ".join(map(triton.DataType.Name, _ID_TYPES))
            raise LoadError(f"{where} has no data_type of ids (expected only one of {names})")
        return ControlInput(one.name, kind, _ID_TYPES[control.data_type])
    if len(present) != 1 or len(getattr(control, present[0])) != 2:
        raise LoadError(f"{where} has no two values (expected one of {', '.join(_FLAG_TYPES)})")
    no, yes = getattr(control, present[0])
    return ControlInput(one.name, kind, _FLAG_TYPES[present[0]], (no, yes))


def _state_tensor(
    folder: Path, where: str, state: triton.ModelSequenceBatching.State
) -> StateTensor:
    for name in ("input_name", "output_name"):
        if not getattr(state, name):
            raise LoadError(f"{where} has no {name}")
    if state.data_type not in DATA_TYPES:
        raise LoadError(f"{where} has no data_type")
    for size in state.dims:
        if size == 0 or size < -1:
            raise LoadError(f"{where}.dims has {size} (expected -1 or at least 1)")
    dtype = DATA_TYPES[state.data_type]
    shape = tuple(1 if size < 0 else size for size in state.dims)
    _check_size(where, dtype, shape)
    if len(state.initial_state) > 1:
        raise LoadError(f"{where} has {len(state.initial_state)} initial states (expected 1)")
    if not state.initial_state:
        # Triton leaves it undefined, and the model is to look at START: zeros are as good.
        return StateTensor(state.input_name, state.output_name, dtype, shape)
    (initial,) = state.initial_state
    where += ".initial_state[0]"
    if initial.data_type != state.data_type:
        raise LoadError(
            f"{where}.data_type is {triton.DataType.Name(initial.data_type)} (expected "
            f"{triton.DataType.Name(state.data_type)}, that of the state)"
        )
    fits = len(initial.dims) == len(state.dims) and all(
        size > 0 and expected in (-1, size)
        for size, expected in zip(initial.dims, state.dims, strict=True)
    )
    if not fits:
        raise LoadError(
            f"{where}.dims is {[*initial.dims]} (expected fixed sizes of {[*state.dims]})"
        )
    shape = tuple(initial.dims)
    _check_size(where, dtype, shape)
    data = b""
    if initial.WhichOneof("state_data") == "data_file":
        data = _read_initial_state(folder, f"{where}.data_file", initial.data_file, dtype, shape)
    elif not initial.zero_data:
        raise LoadError(f"{where} has no data (expected zero_data or data_file)")
    return StateTensor(state.input_name, state.output_name, dtype, shape, data)


def _read_initial_state(
    folder: Path, where: str, name: str, dtype: DataType, shape: tuple[int, ...]
) -> bytes:
    """Read the values of one row; as in Triton, bytes behind those of the shape do not count."""
    try:
        path = resolve_inside(folder / INITIAL_STATE_FOLDER, name)
        with path.open("rb") as file:
            data = file.read(MAX_STATE_BYTES + 1)
        if len(data) > MAX_STATE_BYTES:
            raise LoadError(f"it has more than {MAX_STATE_BYTES} bytes")
        if dtype != DataType.DATA_TYPE_STRING:
            data = data[: _count_bytes(dtype, shape)]
        decode(name, dtype, shape, data)
    except OSError as error:
        raise LoadError(f"{where}: the file cannot be read: {error.strerror}") from error
    except (LoadError, TensorError) as error:
        raise LoadError(f"{where}: {error}") from error
    return data


def _check_size(where: str, dtype: DataType, shape: tuple[int, ...]) -> None:
    if (size := _count_bytes(dtype, shape)) > MAX_STATE_BYTES:
        raise LoadError(f"{where}.dims has {size} bytes (expected at most {MAX_STATE_BYTES})")


def _count_bytes(dtype: DataType, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
