"""Reads the parameters sequence_id, sequence_start and sequence_end of requests.

They are Triton's extension of the protocol
(https://github.com/triton-inference-server/server, docs/protocol/extension_sequence.md), with its
words in errors.
"""

from typing import NamedTuple

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest
from neurona_server.errors import InvalidArgumentError, quoted
from neurona_server.sequences.implicit_state import SequenceId

MAX_ID_BYTES = 1024
"""Bytes of an id that is a string: the server keeps the ids of all open sequences."""

_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")


class StepParameters(NamedTuple):
    """The parameters of a request that is a step of a sequence."""

    sequence_id: SequenceId
    starts: bool = False
    ends: bool = False


def read_step_parameters(message: ModelInferRequest) -> StepParameters | None:
    """Return the parameters of a step; None if the request is of no sequence.

    An integer is taken as unsigned, so that -1 is 2^64-1. The integer 1 and the string "1" are
    two ids. 0 and "" stand for no sequence, as does no id.

    Raises:
        InvalidArgumentError: A parameter has the wrong type or value.
    """
    given = message.parameters
    if not any(name in given for name in _PARAMETERS):
        return None
    starts, ends = (
        _read_flag(name, given[name]) if name in given else False for name in _PARAMETERS[1:]
    )
    sequence_id = _read_id(given["sequence_id"]) if "sequence_id" in given else 0
    if sequence_id:
        return StepParameters(sequence_id, starts, ends)
    if starts or ends:
        raise missing_id_error(message.model_name)
    return None


def missing_id_error(model: str) -> InvalidArgumentError:
    """Return the error of a request that needs an id of a sequence and has none."""
    return InvalidArgumentError(
        f"inference request to model {quoted(model)} must specify a non-zero or non-empty "
        "correlation ID: parameter 'sequence_id' is missing, 0 or empty"
    )


def _read_id(parameter: InferParameter) -> SequenceId:
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param % (1 << 64)
    if kind == "uint64_param":
        return parameter.uint64_param
    if kind != "string_param":
        raise InvalidArgumentError(
            "invalid value type for 'sequence_id' parameter, expected int64_param or "
            f"string_param: it is a {kind or 'nothing'}"
        )
    size = len(parameter.string_param.encode())
    if size > MAX_ID_BYTES:
        raise InvalidArgumentError(
            f"parameter 'sequence_id' has {size} bytes (expected at most {MAX_ID_BYTES})"
        )
    return parameter.string_param


def _read_flag(name: str, parameter: InferParameter) -> bool:
    kind = parameter.WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidArgumentError(
            f"invalid value type for {name!r} parameter, expected bool_param: it is a "
            f"{kind or 'nothing'}"
        )
    return parameter.bool_param
