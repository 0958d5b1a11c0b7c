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
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest
from neurona_server.batching.batcher import Defer
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NeuronaError,
    StatelessModelError,
    StepAbortedError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.call import cancellation_error
from neurona_server.rpc.sessions import SequenceSession, SessionStep, SessionStore, state_codec
from neurona_server.rpc.submission import AcceptedRequest, Responder
from neurona_server.sequences.implicit_state import (
    SequenceId,
    initial_states,
    next_states,
    step_inputs,
)
from neurona_server.sequences.sequence_batching import SequenceBatching
from neurona_server.telemetry.trace import CallTrace

MAX_ID_BYTES = 1024
"""Bytes of an id that is a string: the server keeps the ids of all open sequences."""

ENDED = "it has ended"
"""Why a sequence is gone that its caller has ended."""

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


class IdentifiedSession(SequenceSession):
    """A session whose steps are requests with its id."""

    __slots__ = ("aborted_steps", "arrived_steps", "is_ending")

    def __init__(
        self,
        store: SessionStore,
        model: Model,
        key: Hashable | None,
        on_end: Callable[[str], None] | None,
        state: bytes,
        now: float,
    ) -> None:
        super().__init__(store, model, key, on_end, state, now)
        self.arrived_steps = 0
        self.aborted_steps = 0
        """Steps up to this one fail: one before them has failed."""
        self.is_ending = False
        """Whether its last step has arrived."""

    def step_inputs(
        self,
        described: Mapping[str, TensorType],  # noqa: ARG002  those of others need it
        step: StepParameters,  # noqa: ARG002
    ) -> Inputs:
        """Return the inputs of a step that the caller does not send, except STATE.

        Args:
            described: Datatype and shape of those that the caller sends.
            step: The parameters of the step.

        Raises:
            InvalidArgumentError: The step does not fit the sequence.
        """
        return {}


class DeclaredSession(IdentifiedSession):
    """A session of a model whose configuration declares control inputs and tensors of its state."""

    __slots__ = ("states",)

    def __init__(
        self,
        store: SessionStore,
        model: Model,
        key: Hashable | None,
        on_end: Callable[[str], None] | None,
        state: bytes,
        now: float,
    ) -> None:
        super().__init__(store, model, key, on_end, state, now)
        self.states: Sequence[Array] = ()

    @property
    def _batching(self) -> SequenceBatching:
        batching = self.model.settings.sequences
        assert batching is not None  # noqa: S101  for the type checker: `new_session` checks it
        return batching

    @staticmethod
    def _import_state(model: Model, state: bytes) -> None:
        """Do nothing: these states cannot be exported."""

    def step_inputs(self, described: Mapping[str, TensorType], step: StepParameters) -> Inputs:
        rows = None
        if self.model.has_batch_axis:
            shape = next((shape for _, shape in described.values() if shape), (1,))
            rows = shape[0]
            self.check_row_count(rows)
        states = self.states or initial_states(self._batching, rows)
        return step_inputs(
            self._batching, step.sequence_id, states, rows, starts=step.starts, ends=step.ends
        )

    def check_rows(self, input_types: Mapping[str, TensorType]) -> None:
        """Do nothing: `step_inputs` has checked them."""

    def new_step(self, *arguments: Any) -> "DeclaredStep":
        return DeclaredStep(self, *arguments)

    def add_state(self, inputs: Inputs) -> Inputs:
        return inputs

    def without_state(self, outputs: Outputs) -> Outputs:
        return outputs

    def commit(self, inputs: Inputs, outputs: Outputs) -> None:  # noqa: ARG002  see its base
        batching = self._batching
        if batching.states:
            names = [spec.name for spec in self.model.signature.outputs]
            self.states = next_states(batching, dict(zip(names, outputs, strict=True)))
            self.rows = len(self.states[0]) if self.model.has_batch_axis else 0
        self.count(1)

    def export_state(self) -> bytes:
        return b""


class DeclaredStep(SessionStep):
    """A step of a DeclaredSession."""

    __slots__ = ()

    @property
    def ranked_classes(self) -> int:
        """0: all values, since an output may be the state."""
        return 0


def new_session(
    store: SessionStore,
    model: Model,
    key: Hashable | None,
    on_end: Callable[[str], None] | None,
    state: bytes,
    now: float,
) -> IdentifiedSession:
    """Make a session of the kind that the model has. Raises StatelessModelError."""
    declared = model.settings.sequences
    kind = IdentifiedSession
    if declared is not None and (declared.hidden_inputs or model.state_codec is None):
        kind = DeclaredSession
    return kind(store, model, key, on_end, state, now)


class SequenceStep:
    """A step on its way through its sequence: the `Responder` of its request.

    It waits for its turn; then its response, or its error, gives the next step its turn.
    """

    __slots__ = (
        "_arrival",
        "_is_cancelled",
        "_responder",
        "_sequences",
        "_started",
        "_thread",
        "_waits",
        "parameters",
        "session",
    )

    def __init__(
        self,
        sequences: "Sequences",
        session: IdentifiedSession,
        parameters: StepParameters,
        responder: Responder,
    ) -> None:
        self.session = session
        self.parameters = parameters
        self._sequences = sequences
        self._responder = responder
        self._started = time.monotonic()
        self._thread = threading.get_ident()  # the transport's
        self._is_cancelled = False
        # Who pops the element ends the wait: the step's turn, or its cancellation.
        self._waits = [True]
        session.arrived_steps += 1
        self._arrival = session.arrived_steps

    @property
    def request_id(self) -> str:
        return self._responder.request_id

    @property
    def trace_id(self) -> str:
        return self._responder.trace_id

    @property
    def trace(self) -> CallTrace | None:
        return self._responder.trace

    @property
    def deadline(self) -> float:
        return self._responder.deadline

    @property
    def defer(self) -> Defer | None:
        """None outside of the transport's thread, in which it may be that the step has its turn."""
        return self._responder.defer if threading.get_ident() == self._thread else None

    def resolve(self) -> Model:
        """Return the version of the sequence."""
        return self.session.model

    def wait(self) -> None:
        """Let the caller cancel the step while it waits."""
        self._responder.on_cancel(self._cancel)

    def take_turn(self) -> bool:
        """Return whether the step may run; otherwise it has failed."""
        session = self.session
        try:
            self._waits.pop()
        except IndexError:  # its caller has the error
            self._note_failure()
            session.release()
            return False
        if self._arrival <= session.aborted_steps:
            self._reject(
                StepAbortedError(
                    f"step of sequence {_shown(self.parameters.sequence_id)} not run: one before "
                    "it failed or was cancelled, and the state is that before this one (expected "
                    "both to be sent again)"
                )
            )
        elif not session.is_open:
            self._reject(
                start_error(
                    session.model.name,
                    self.parameters.sequence_id,
                    session.end_reason or ENDED,
                )
            )
        else:
            return True
        return False

    def reply(self, response: bytes) -> None:
        if self.parameters.ends:  # before the caller can begin another one with this id
            self._sequences.close(self.session)
        try:
            self._responder.reply(response)
        finally:
            self.session.release()

    def fail(self, error: Exception) -> None:
        self._note_failure()
        try:
            self._responder.fail(error)
        finally:
            self.session.release()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        def cancel() -> None:
            self._is_cancelled = True
            callback()

        self._responder.on_cancel(cancel)
        if self._is_cancelled:  # meanwhile
            callback()

    def _cancel(self) -> None:
        self._is_cancelled = True
        try:
            self._waits.pop()
        except IndexError:  # it has its turn
            return
        self._record(error := cancellation_error(self.deadline))
        self._responder.fail(error)

    def _reject(self, error: NeuronaError) -> None:
        self._record(error)
        self.fail(error)

    def _record(self, error: NeuronaError) -> None:
        """Count a step that ends before it was submitted."""
        seconds = time.monotonic() - self._started
        self.session.model.metrics.record_request(error.outcome, seconds)

    def _note_failure(self) -> None:
        """Let the steps fail that wait for this one, which leaves the state as it was."""
        session = self.session
        session.aborted_steps = session.arrived_steps
        if not session.steps:
            self._sequences.close(session, "its first step failed")
        elif self.parameters.ends:
            session.is_ending = False
            if session.key is None:  # another sequence has its id already
                self._sequences.close(session)


class Sequences:
    """The sequences that callers have begun by an id. Thread-safe."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # a step arrives and waits in one

    def add(
        self,
        key: SequenceKey,
        parameters: StepParameters,
        responder: Responder,
        resolve: Callable[[], Model],
        run: Callable[[SequenceStep], AcceptedRequest | None],
    ) -> AcceptedRequest | None:
        """Run a step now, or once those before it have ended.

        Args:
            key: The sequence's.
            parameters: The step's.
            responder: Gets its response or error.
            resolve: Returns the model version of a sequence that begins.
            run: Submits the step.

        Returns:
            What `run` does, None if the step waits.

        Raises:
            NeuronaError: There is no such sequence, or none can begin; what `resolve` raises.
        """
        with self._lock:
            session = self._begin(key, resolve) if parameters.starts else self._find(key, resolve)
            step = SequenceStep(self, session, parameters, responder)

            def run_in_turn() -> None:
                if step.take_turn():
                    run(step)

            step.wait()
            has_turn = session.claim(run_in_turn)
            session.is_ending = session.is_ending or parameters.ends
        return run(step) if has_turn and step.take_turn() else None

    def close(self, session: IdentifiedSession, reason: str = ENDED) -> None:
        """End a sequence for its caller."""
        self._store.close(session, reason)

    def _begin(self, key: SequenceKey, resolve: Callable[[], Model]) -> IdentifiedSession:
        before = self._store.find(key)
        if isinstance(before, IdentifiedSession) and before.is_ending:
            self._store.forget_key(before)
        try:
            session = self._store.open(resolve, key=key, new_session=new_session)
        except AlreadyExistsError:
            raise AlreadyExistsError(
                f"inference request for sequence {_shown(key.sequence_id)} to model "
                f"{quoted(key.model)} has the START flag, but the sequence has begun and not ended "
                "(expected parameter 'sequence_end' before, or another sequence_id)"
            ) from None
        except StatelessModelError as error:
            raise _unsupported_error(error) from None
        assert isinstance(session, IdentifiedSession)  # noqa: S101  for the type checker
        return session

    def _find(self, key: SequenceKey, resolve: Callable[[], Model]) -> IdentifiedSession:
        session = self._store.find(key)
        if isinstance(session, IdentifiedSession):
            return session
        model = resolve()
        if model.state_codec is None and model.settings.sequences is None:
            try:
                state_codec(model)
            except StatelessModelError as error:
                raise _unsupported_error(error) from None
        raise start_error(model.name, key.sequence_id, self._store.end_reason(key))


def start_error(model: str, sequence_id: SequenceId, reason: str) -> InvalidArgumentError:
    """Return the error of a step whose sequence has not begun, or ended for a `reason`."""
    return InvalidArgumentError(
        f"inference request for sequence {_shown(sequence_id)} to model {model!r} must specify the "
        f"START flag on the first request of the sequence: {reason or 'it has not begun here'}"
    )


def _unsupported_error(error: StatelessModelError) -> UnsupportedError:
    return UnsupportedError(
        f"parameter 'sequence_id': stateful sequences are not supported: {error}; send the request "
        "without sequence_id, or with 0"
    )


def _shown(sequence_id: SequenceId) -> str:
    return quoted(sequence_id) if isinstance(sequence_id, str) else str(sequence_id)
