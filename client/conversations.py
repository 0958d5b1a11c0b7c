"""The calls of a client as conversations: what is asked, in which order, and what is read."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_client import descriptions
from neurona_client.descriptions import Description, ServedModel
from neurona_client.endpoints import Done, Endpoint, Metadata, Outcome, health_of, metadata
from neurona_client.errors import (
    DeadlineError,
    InvalidInputError,
    NeuronaError,
    NotFoundError,
    PermissionDeniedError,
    ServerError,
    UnavailableError,
)
from neurona_client.fleet import Fleet
from neurona_client.inputs import Inputs
from neurona_client.options import Options
from neurona_client.plans import Plan, Plans, Wish, Written
from neurona_client.results import Answer
from neurona_client.steps import Alone, Conversation, Deadline, Pause, Step, tried
from neurona_client.streams import Deliver, Soon, Stream, Together
from neurona_client.wire import within
from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    DescribeModelResponse,
    ListModelsResponse,
)

A = TypeVar("A", bound=Answer)
M = TypeVar("M", bound=Message)
T = TypeVar("T")

Talk = Generator[Step, bytes, T]

PREDICT = "/neurona.v1.Prediction/Predict"
CLASSIFY = "/neurona.v1.Prediction/Classify"
REGRESS = "/neurona.v1.Prediction/Regress"
_LIST = "/neurona.v1.Models/List"
_DESCRIBE = "/neurona.v1.Models/Describe"
_HEALTH = "/grpc.health.v1.Health/Check"

HEALTH = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_SERVING = "SERVING"
MAX_SHARED_BYTES = 64 << 10
"""Larger requests go alone: in a message they would hold up the others."""

_POLL = 0.1  # seconds between two looks at a server that is reached and does not serve yet


class Conversations:
    """Of one client."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.fleet = Fleet(options)
        self.plans = Plans()
        self.deliver: Deliver = _deliver
        self.soon: Soon = _soon
        self._streams: dict[Endpoint, Stream] = {}
        self._only: Stream | None = None
        self._lock = threading.Lock()
        self._metadata: Metadata = metadata(options)

    def close(self) -> None:
        for stream in list(self._streams.values()):
            stream.close()
        self.fleet.close()

    def predict(
        self,
        kind: type[A],
        path: str,
        wish: Wish,
        inputs: Inputs,
        timeout: float | None,
        request_id: str | None,
        first: NeuronaError | None = None,
    ) -> Talk[A]:
        """Described is a model once, and again when what the client knows of it seems outdated.

        first: how it went when it was sent as `plans.known` has it.
        """
        deadline = Deadline(self.options.timeout if timeout is None else timeout)
        fresh = False
        while True:
            plan = self.plans.get(wish)
            if plan is None:
                plan, fresh = (yield from self._learned(wish, deadline)), True
            try:
                written = plan.write(inputs)
                sending = self._sent(path, written, deadline, request_id, first)
                first = None
                answer = yield from sending
            except (InvalidInputError, NotFoundError):
                if fresh:
                    raise
                self.plans.forget(wish)
                continue
            if self.plans.is_new(plan, answer):  # what it takes may be new as well
                self.plans.forget(wish)
            return kind(answer, sample=written.single)

    def models(self, timeout: float | None) -> Talk[list[ServedModel]]:
        answer = yield from self._asked(_LIST, b"", timeout)
        return descriptions.models(_parsed(ListModelsResponse, answer))

    def describe(
        self, model: str, version: int | None, label: str | None, timeout: float | None
    ) -> Talk[Description]:
        wish = Wish(model, version, label, 1, False, "normal")
        wish.check()
        answer = yield from self._asked(_DESCRIBE, _which(wish), timeout)
        return descriptions.description(_parsed(DescribeModelResponse, answer))

    def health(self, service: str, timeout: float | None) -> Talk[str]:
        request = within(1, service.encode()) if service else b""
        try:
            answer = yield from self._asked(_HEALTH, request, timeout)
        except NotFoundError:
            return "SERVICE_UNKNOWN"
        return HEALTH.get(health_of(answer), "UNKNOWN")

    def until_ready(self, models: Iterable[str], timeout: float | None) -> Talk[None]:
        """Until the server serves, and each of `models` does."""
        deadline = Deadline(timeout)
        for service in ("", *models):
            state = ""
            while state != _SERVING:
                try:
                    left = deadline.left()
                    state = yield from self.health(service, left)
                except UnavailableError:
                    state = "out of reach"
                except DeadlineError:
                    what = f"model {service!r}" if service else "the server"
                    raise DeadlineError(
                        f"{what} at {self.fleet.named} was not ready within {timeout:g} s: "
                        f"{state or 'out of reach'}"
                    ) from None
                if state != _SERVING:
                    yield Pause(_POLL)

    def _learned(self, wish: Wish, deadline: Deadline) -> Talk[Plan]:
        wish.check()
        try:
            answer = yield from self._asked(_DESCRIBE, _which(wish), None, deadline)
        except PermissionDeniedError:
            return self.plans.learn(wish, None)
        described = descriptions.description(_parsed(DescribeModelResponse, answer))
        return self.plans.learn(wish, described)

    def _sent(
        self,
        path: str,
        written: Written,
        deadline: Deadline,
        request_id: str | None,
        first: NeuronaError | None,
    ) -> Conversation:
        said = self._metadata
        if request_id is not None:
            said = (*said, ("x-request-id", request_id))

        message = written.message
        together = (
            self.options.coalesce
            and request_id is None
            and path == PREDICT
            and len(message) <= MAX_SHARED_BYTES
        )

        def send(endpoint: Endpoint, left: float | None) -> Step:
            if together:
                return Together(self._stream(endpoint), message, left)
            return Alone(endpoint, path, message, left, said)

        return (yield from tried(self.fleet, self.options.retries, deadline, send, first))

    def quick_stream(self) -> Stream | None:
        """The open stream to whom a request goes next; None: it has to be seen."""
        if len(self._streams) == 1:
            stream = self._only
        else:
            endpoint = self.fleet.pick()
            stream = self._streams.get(endpoint) if endpoint is not None else None
        return stream if stream is not None and stream.lost is None else None

    def _stream(self, endpoint: Endpoint) -> Stream:
        stream = self._streams.get(endpoint)
        if stream is None or stream.lost is not None:
            with self._lock:
                stream = self._streams.get(endpoint)
                if stream is None or stream.lost is not None:
                    stream = Stream(endpoint, self._metadata, self.deliver, self.soon)
                    self._streams[endpoint] = stream
                    self._only = stream if len(self.fleet.endpoints) == 1 else None
        return stream

    def _asked(
        self, path: str, message: bytes, timeout: float | None, deadline: Deadline | None = None
    ) -> Conversation:
        def send(endpoint: Endpoint, left: float | None) -> Step:
            return Alone(endpoint, path, message, left, self._metadata)

        if deadline is None:
            deadline = Deadline(self.options.timeout if timeout is None else timeout)
        return (yield from tried(self.fleet, self.options.retries, deadline, send))


def _deliver(told: Sequence[tuple[Done, Outcome]]) -> None:
    for done, outcome in told:
        done(outcome)


def _soon(begin: Callable[[], None]) -> None:
    """In a thread: those that are runnable ask first, so that their requests go along."""
    try:
        time.sleep(0)
    finally:
        begin()


def _which(wish: Wish) -> bytes:
    request = DescribeModelRequest(model=wish.model)
    if wish.version is not None:
        request.version = wish.version
    elif wish.label is not None:
        request.label = wish.label
    return request.SerializeToString()


def _parsed(kind: type[M], message: bytes) -> M:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise ServerError(f"the answer is no {kind.DESCRIPTOR.full_name}: {error}") from error
