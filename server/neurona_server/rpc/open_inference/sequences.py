"""Sequences of requests with an id: the parameters sequence_id, sequence_start and sequence_end.

They are Triton's extension of the protocol
(https://github.com/triton-inference-server/server, docs/protocol/extension_sequence.md). The first
request of a sequence has sequence_start; the server keeps the state that the model has after each
request, its step, until one has sequence_end. A sequence is found again by its id, by the model's
name and version as the request has them, and by the token of the caller.

The steps of a sequence run one after the other in the order in which they arrive. A step that fails
or is cancelled leaves the state as it was; the steps that wait behind it fail too, since their
answers would lack it.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest
from neurona_server.batching.batcher import Defer
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import (
    AbortedError,
    AlreadyExistsError,
    InvalidArgumentError,
    NeuronaError,
    QueueFullError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.call import cancellation_error
from neurona_server.rpc.submission import Responder, ResponseWriter
from neurona_server.sequences.form import STATE
from neurona_server.sequences.implicit_state import SequenceId
from neurona_server.telemetry.trace import CallTrace

MAX_ID_BYTES = 1024
"""Bytes of an id that is a string: the server keeps the ids of all open sequences."""

MAX_WAITING_STEPS = 4096
"""Steps of one sequence that wait for the one before them."""

MAX_REMEMBERED = 4096
"""Sequences that have ended of which the server remembers why, for the errors of late steps."""

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


class SequenceKey(NamedTuple):
    """What a sequence is found by."""

    owner: str
    """The name of the caller's grant."""
    model: str
    version: str
    """As requests have it: a number, a label, or "" for the server's choice."""
    sequence_id: SequenceId


class OpenSequence:
    """A sequence that has begun: its model, its state, and its steps in their order. Thread-safe.

    A `HeldSession`: its version is unloaded only once it has ended.
    """

    def __init__(self, key: SequenceKey, sequences: "OpenSequences") -> None:
        self.key = key
        self.model: Model | None = None
        """The version that its first step found, on which it stays."""

        self.states: Sequence[Array] = ()
        """The state after the last step that succeeded; empty before."""

        self.steps = 0
        """Steps that succeeded."""

        self.ending = False
        """Whether its last step has arrived: a new sequence may have the same id."""

        self._sequences = sequences
        self._lock = threading.Lock()
        self._waiting: deque[SequenceStep] = deque()
        self._running: SequenceStep | None = None
        self._is_busy = False  # a thread submits steps, or one is in flight
        self._end_reason = ""

    @property
    def is_idle(self) -> bool:
        """Whether no step waits or runs."""
        return not self._is_busy

    def add(self, step: "SequenceStep") -> None:
        """Run a step once those before it have ended.

        Raises:
            QueueFullError: Too many steps wait.
        """
        with self._lock:
            if len(self._waiting) >= MAX_WAITING_STEPS:
                raise QueueFullError(
                    f"{MAX_WAITING_STEPS} steps of sequence {_shown(self.key.sequence_id)} wait "
                    "already (expected fewer)"
                )
            self._waiting.append(step)
            self.ending = self.ending or step.ends
            if self._is_busy:
                return
            self._is_busy = True
        self._run_waiting()

    def cancel_waiting(self, step: "SequenceStep") -> bool:
        """Remove a step that waits, and fail those behind it; return False if it does not wait."""
        with self._lock:
            if step not in self._waiting:
                return False
            behind = []
            while (last := self._waiting.pop()) is not step:
                behind.append(last)
            self.ending = False
        step.fail_waiting(cancellation_error(step.deadline))
        self._fail_behind(reversed(behind))
        return True
