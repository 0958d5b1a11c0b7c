"""The messages of a session: what is sent, what is answered, and the state from which it goes on.

Every answer brings the state after its steps. When a stream is lost, the session begins again
from the state of the last answer, with the steps that have none: whether the lost server had
computed some of them makes no difference, as that state is not used.
"""

from collections import deque
from typing import NamedTuple

from google.protobuf.message import DecodeError

from neurona_client.calls.steps import Deadline
from neurona_client.errors import (
    NeuronaError,
    OverloadedError,
    ServerError,
    UnavailableError,
    error_from_status,
)
from neurona_client.inputs import PreparedTensors
from neurona_client.request_templates import PRIORITIES, RequestOptions
from neurona_client.results import Prediction
from neurona_protos.prediction_pb2 import SessionRequest, SessionResponse, SessionStart, Tensor
from neurona_protos.tensors import encode

_START_ID = 1
"""Of the message that begins the session on a server, which has no steps: an error of its answer is
about the session, not about steps."""


class SessionEndingError(UnavailableError):
    """The server is about to end a session, which can go on elsewhere or begin again there."""


class PendingSteps(NamedTuple):
    """Steps of one message, which have no answer yet."""

    message_id: int
    message: bytes
    is_sample: bool
    deadline: Deadline


class SessionAnswer(NamedTuple):
    """How the steps of one message ended, and the session after them.

    Attributes:
        outcome: Their result, or why there is none: then they are not in the state.
        state: After these steps.
        steps: Of the whole sequence so far.
    """

    outcome: Prediction | NeuronaError
    state: bytes
    steps: int


def encode_steps(tensors: PreparedTensors, message_id: int) -> bytes:
    """Encode a message with steps.

    Raises:
        TensorError: a value cannot be encoded.
    """
    inputs = [
        Tensor(
            name=name,
            dtype=dtype_number,
            shape=array.shape,
            data=bytes(encode(name, array, dtype_number)),
        )
        for name, dtype_number, array in tensors
    ]
    return SessionRequest(inputs=inputs, id=message_id, return_state=True).SerializeToString()


class SessionProtocol:
    """One session on one server after the other. Does no I/O; not safe for threads."""

    def __init__(self, options: RequestOptions, state: bytes) -> None:
        """Create the beginning of a session.

        Args:
            options: what the calls of the session have in common.
            state: of an earlier session, to go on from; empty for the start of a sequence.
        """
        self.unanswered: deque[PendingSteps] = deque()
        self.unanswered_bytes = 0
        self.state = state
        """After the last steps that were answered."""
        self.steps = 0
        self._options = options
        self._version = options.version
        self._next_id = _START_ID + 1
        self._sent_count = 0  # of `unanswered`, on the stream of now
        self._has_sent_start = False
        self._is_started = False

    @property
    def is_continued(self) -> bool:
        """Whether the session goes on from a state that only the same model can take."""
        return bool(self.state)

    def next_id(self) -> int:
        """Return the id of a new message."""
        self._next_id += 1
        return self._next_id - 1

    def add(self, pending: PendingSteps) -> None:
        """Send a message when those before it are sent."""
        self.unanswered.append(pending)
        self.unanswered_bytes += len(pending.message)

    def restart(self) -> None:
        """Begin on a new stream."""
        self._sent_count = 0
        self._has_sent_start = self._is_started = False

    def next_message(self) -> bytes | None:
        """Return what is to be sent next on the stream; None: nothing."""
        if not self._has_sent_start:
            self._has_sent_start = True
            return self._start_message()
        if self._sent_count == len(self.unanswered):
            return None
        self._sent_count += 1
        return self.unanswered[self._sent_count - 1].message

    def remove_first(self) -> bool:
        """Give up the oldest steps without an answer.

        Returns:
            Whether they were sent: the stream must be left, where they are perhaps computed.
        """
        self._take_first()
        return self._sent_count > 0

    def remove_all(self) -> list[PendingSteps]:
        """Give up all steps without an answer, on a stream that is left, and return them."""
        pending, self.unanswered = list(self.unanswered), deque()
        self.unanswered_bytes = 0
        return pending

    def on_message(self, message: bytes) -> SessionAnswer | NeuronaError | None:
        """Handle a message of the server.

        Returns:
            The answer to the oldest steps without one; or why the session must leave the stream;
            or None: the session has begun.
        """
        try:
            response = SessionResponse.FromString(message)
        except DecodeError as error:
            return ServerError(f"response is not a SessionResponse: {error}")
        if response.ending:  # its state is that of the last answer, which is here
            return SessionEndingError(f"server ended the session: {response.ending}")
        failure = _error_of(response)
        if response.id == _START_ID and not self._is_started:
            self._is_started = failure is None
            return failure
        if not self._sent_count or self.unanswered[0].message_id != response.id:
            return ServerError(f"response of a session to unknown message {response.id}")
        return self._answer_steps(response, failure)

    def _answer_steps(
        self, response: SessionResponse, failure: NeuronaError | None
    ) -> SessionAnswer | NeuronaError:
        is_temporary = isinstance(failure, UnavailableError) or (
            isinstance(failure, OverloadedError) and failure.retry_after is not None
        )
        if failure is not None and is_temporary:
            return failure  # the steps are sent again; those behind them were computed too early
        if failure is None and not response.state:
            return ServerError("response of a session has no state")
        pending = self._take_first()
        self._sent_count -= 1
        if failure is not None:
            return SessionAnswer(failure, self.state, self.steps)
        self.state, self.steps = response.state, response.steps
        self._version = response.response.version
        result = Prediction(response.response, is_sample=pending.is_sample)
        return SessionAnswer(result, self.state, self.steps)

    def _take_first(self) -> PendingSteps:
        pending = self.unanswered.popleft()
        self.unanswered_bytes -= len(pending.message)
        return pending

    def _start_message(self) -> bytes:
        options = self._options
        start = SessionStart(
            model=options.model,
            top_k=options.top_k if options.top_k > 1 else 0,
            raw_outputs=options.raw_outputs,
            priority=PRIORITIES[options.priority],
            state=self.state,
        )
        if self._version is not None:
            start.version = self._version
        elif options.label is not None:
            start.label = options.label
        return SessionRequest(start=start, id=_START_ID).SerializeToString()


def _error_of(response: SessionResponse) -> NeuronaError | None:
    if not response.HasField("error"):
        return None
    error = response.error
    retry_after = error.retry_after_ms / 1000 if error.retry_after_ms else None
    return error_from_status(error.code, error.message, retry_after)
