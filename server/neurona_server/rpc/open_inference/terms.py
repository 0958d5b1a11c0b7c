"""What the parameters of a request say of how it is to be served."""

import time
from typing import NamedTuple

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest
from neurona_server.batching.policy import Priority
from neurona_server.errors import InvalidError, UnsupportedError, quoted

RESERVED = "triton_"
EMPTY_FINAL = "triton_enable_empty_final_response"

LEVELS = (Priority.NORMAL, Priority.HIGH, Priority.NORMAL)
"""By number, 1 the most urgent as in Triton, 0 the default; every greater one is LOW."""


class Terms(NamedTuple):
    priority: Priority
    deadline: float


def read_terms(message: ModelInferRequest, deadline: float) -> Terms:
    """`deadline` is the call's: the nearer of it and of the parameter `timeout` holds.

    Parameters that are nobody's are the caller's own and passed over. Raises InvalidError, and
    UnsupportedError for a sequence.
    """
    priority = Priority.NORMAL
    if message.parameters:  # most have none
        for name, value in message.parameters.items():
            if name == "priority":
                level = whole(name, value)
                priority = LEVELS[level] if level < len(LEVELS) else Priority.LOW
            elif name == "timeout":
                if microseconds := whole(name, value):
                    deadline = min(deadline, time.monotonic() + microseconds / 1e6)
            elif name in ("sequence_id", "sequence_start", "sequence_end"):
                if getattr(value, value.WhichOneof("parameter_choice") or "bool_param"):
                    raise UnsupportedError(
                        f"parameter {name!r}: this server keeps no state for a sequence of "
                        "requests; send it without sequence_id, or with 0"
                    )
            elif name.startswith(RESERVED) and name != EMPTY_FINAL:
                raise InvalidError(
                    f"parameter keys starting with {RESERVED!r} are reserved for Triton usage and "
                    f"should not be specified; {quoted(name)} came"
                )
    return Terms(priority, deadline)


def whole(name: str, value: InferParameter) -> int:
    """A number that is not negative. Raises InvalidError."""
    kind = value.WhichOneof("parameter_choice")
    number = 0
    if kind == "int64_param":
        number = value.int64_param
    elif kind == "uint64_param":
        number = value.uint64_param
    else:
        raise InvalidError(
            f"parameter {name!r} is a {kind or 'nothing'}; expected int64_param or uint64_param"
        )
    if number < 0:
        raise InvalidError(f"parameter {name!r} is {number}; expected 0 or more")
    return number
