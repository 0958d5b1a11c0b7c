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
from collections.abc import Callable
from typing import NamedTuple

from neurona_server.batching.batcher import Defer
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
from neurona_server.rpc.call import cancellation_error
from neurona_server.rpc.open_inference.sequence_parameters import StepParameters
from neurona_server.rpc.open_inference.sequence_sessions import IdentifiedSession, new_session
from neurona_server.rpc.sessions import SessionStore, state_codec
from neurona_server.rpc.submission import AcceptedRequest, Responder
from neurona_server.sequences.implicit_state import SequenceId
from neurona_server.telemetry.trace import CallTrace

ENDED = "it has ended"
"""Why a sequence is gone that its caller has ended."""


class SequenceKey(NamedTuple):
    """What a sequence is found by."""

    owner: str
    """The name of the caller's grant."""
    model: str
    version: str
    """As requests have it: a number, a label, or "" for the server's choice."""
    sequence_id: SequenceId


class SequenceStep:
    """A step on its way through its sequence: the `Responder` of its request.

    It waits for its turn; then its response, or its error, gives the next step its turn.
    """

    arrived = 0.0  # it may have waited for the steps before it

    __slots__ = (
        "_arrival",
        "_behind",
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
        self._behind = 0
        """Up to which step they arrived before its caller could know that it has failed."""

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
            self._end_failed()
            session.release()
            return False
        if self._arrival <= session.aborted_steps:
            self._behind = self._arrival
            self._reject(
                StepAbortedError(
                    f"step of sequence {_shown(self.parameters.sequence_id)} not run: one before "
                    "it failed or was cancelled, and the state is that before this one (expected "
                    "both to be sent again)"
                )
            )
        elif not session.is_open:
            self._behind = self._arrival  # the others have the same error
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
        self._behind = self._behind or self.session.arrived_steps
        self._end_failed()
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
        self._behind = self.session.arrived_steps  # before its turn can see that it is cancelled
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
        self.session.model.metrics.record_error(error, seconds)

    def _end_failed(self) -> None:
        """Let those steps fail that wait for this one, which leaves the state as it was."""
        session = self.session
        session.aborted_steps = max(session.aborted_steps, self._behind)
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
            session = self._store.open(resolve, owner=key.owner, key=key, new_session=new_session)
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
            if session.is_ending:
                reason = "it ends with a step before"
                raise start_error(session.model.name, key.sequence_id, reason)
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
