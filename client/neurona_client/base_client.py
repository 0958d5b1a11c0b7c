"""Questions about servers and models, as conversations: what is asked, and what is read."""

import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_client import descriptions
from neurona_client.calls.backpressure import Gate
from neurona_client.calls.hedging import Budget, Hedging, delivering
from neurona_client.calls.steps import (
    Alone,
    Ask,
    Conversation,
    Deadline,
    Pause,
    Step,
    UntilRoom,
    tried,
)
from neurona_client.descriptions import Description, ServedModel
from neurona_client.errors import (
    DeadlineError,
    InvalidInputError,
    NeuronaError,
    NotFoundError,
    PermissionDeniedError,
    ServerError,
    UnavailableError,
)
from neurona_client.inputs import Inputs
from neurona_client.options import Options
from neurona_client.request_templates import Plan, Plans, Wish, Written
from neurona_client.results import Answer
from neurona_client.transport.endpoint import CLOSED, Endpoint, health_of, metadata
from neurona_client.transport.endpoint_pool import Fleet
from neurona_client.transport.stream import Deliver, Soon, Stream, Together
from neurona_client.transport.trace_context import context
from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    DescribeModelResponse,
    ListModelsResponse,
)
from neurona_protos.wire_format import length_delimited

M = TypeVar("M", bound=Message)
T = TypeVar("T")

Talk = Generator[Step, bytes, T]
"""A conversation with a result of its own kind."""

_LIST = "/neurona.v1.Models/List"
_DESCRIBE = "/neurona.v1.Models/Describe"
_HEALTH = "/grpc.health.v1.Health/Check"

_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_SERVING = "SERVING"
_POLL = 0.1  # seconds between two looks at a server that is reached and does not serve yet


class Questions:
    """Of one client."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.fleet = Fleet(options)
        self.metadata = metadata(options)
        hedges = options.retries.hedge_after is not None
        self.budget = Budget(options.retries) if hedges else None

    def close(self) -> None:
        self.fleet.close()

    def deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self.options.timeout if timeout is None else timeout)

    def models(self, timeout: float | None) -> Talk[list[ServedModel]]:
        answer = yield from self._asked(_LIST, b"", self.deadline(timeout))
        return descriptions.models(_parsed(ListModelsResponse, answer))

    def describe(
        self, model: str, version: int | None, label: str | None, timeout: float | None
    ) -> Talk[Description]:
        wish = Wish(model, version, label, 1, False, "normal")
        wish.check()
        return (yield from self.described(wish, self.deadline(timeout)))

    def described(self, wish: Wish, deadline: Deadline) -> Talk[Description]:
        answer = yield from self._asked(_DESCRIBE, _which(wish), deadline)
        return descriptions.description(_parsed(DescribeModelResponse, answer))

    def health(self, service: str, timeout: float | None) -> Talk[str]:
        return (yield from self._health(service, self.deadline(timeout)))

    def _health(self, service: str, deadline: Deadline) -> Talk[str]:
        request = length_delimited(1, service.encode()) if service else b""
        try:
            answer = yield from self._asked(_HEALTH, request, deadline)
        except NotFoundError:
            return "SERVICE_UNKNOWN"
        return _STATES.get(health_of(answer), "UNKNOWN")

    def until_ready(self, models: Iterable[str], timeout: float | None) -> Talk[None]:
        """Until the server serves, and each of `models` does."""
        deadline = Deadline(timeout)  # not that of other calls: loading takes longer
        models = (models,) if isinstance(models, str) else models
        for service in ("", *models):
            state = ""
            while state != _SERVING:
                try:
                    deadline.left()  # raises when it has passed
                    state = yield from self._health(service, deadline)
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

    def _asked(self, path: str, message: bytes, deadline: Deadline) -> Conversation:
        def send(endpoint: Endpoint, left: float | None) -> Step:
            return Alone(endpoint, path, message, left, self.metadata)

        retries = self.options.retries
        return (yield from tried(self.fleet, retries, deadline, send, ask=self.ask()))

    def ask(self) -> Ask | None:
        """How the servers are asked in one call."""
        if self.budget is None:
            return None
        return Hedging(self.options.retries, self.budget).ask


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


A = TypeVar("A", bound=Answer)

PREDICT = "/neurona.v1.Prediction/Predict"
CLASSIFY = "/neurona.v1.Prediction/Classify"
REGRESS = "/neurona.v1.Prediction/Regress"
_TASKS = {CLASSIFY: "classification", REGRESS: "regression"}

MAX_SHARED_BYTES = 64 << 10
"""Larger requests go alone: in a message they would hold up the others."""


class Predictions(Questions):
    """All that one client asks."""

    def __init__(self, options: Options, deliver: Deliver, soon: Soon) -> None:
        super().__init__(options)
        self.plans = Plans()
        self.gate = Gate(options.max_pending_bytes, options.max_pending_requests)
        self._deliver = deliver if self.budget is None else delivering(deliver)
        self._soon = soon
        self._lock = threading.Lock()

    def close(self) -> None:
        if self.fleet.closed:  # perhaps a child's copy, whose streams are its parent's
            return
        for endpoint in self.fleet.endpoints:
            if endpoint.stream is not None:
                endpoint.stream.close()
        super().close()

    def predict(
        self,
        kind: type[A],
        path: str,
        wish: Wish,
        inputs: Inputs,
        deadline: Deadline,
        request_id: str | None,
        first: NeuronaError | None = None,
    ) -> Talk[A]:
        """Described is a model once, and again when what the client knows of it seems outdated.

        first: how it went when it was sent as `plans.known` has it.
        """
        fresh = False
        while True:
            plan = self.plans.get(wish)
            if plan is None:
                plan, fresh = (yield from self._learned(wish, deadline)), True
            try:
                written, answer = yield from self._sent(
                    path, plan, inputs, deadline, request_id, first
                )
            except (InvalidInputError, NotFoundError):
                if fresh:
                    raise
                first = None
                self.plans.forget(wish)
                continue
            return self.read(kind, plan, written, answer)

    def read(self, kind: type[A], plan: Plan, written: Written, answer: bytes) -> A:
        if self.plans.is_new(plan, answer):  # what it takes may be new as well
            self.plans.forget(plan.wish)
        return kind(answer, sample=written.single)

    def _learned(self, wish: Wish, deadline: Deadline) -> Talk[Plan]:
        wish.check()
        try:
            described = yield from self.described(wish, deadline)
        except PermissionDeniedError:
            return self.plans.learn(wish, None)
        return self.plans.learn(wish, described)

    def _sent(
        self,
        path: str,
        plan: Plan,
        inputs: Inputs,
        deadline: Deadline,
        request_id: str | None,
        first: NeuronaError | None,
    ) -> Talk[tuple[Written, bytes]]:
        written = plan.write(inputs)
        size = len(written.message)
        if not self.gate.enter(size):
            del written  # whoever waits keeps no copy of its inputs
            yield from _stepped(UntilRoom(self.gate, size, deadline.left()), deadline)
            written = plan.write(inputs)
        try:
            answer = yield from self._tried(
                path, plan, written.message, deadline, request_id, first
            )
        finally:
            self.gate.leave(size)
        return written, answer

    def _tried(
        self,
        path: str,
        plan: Plan,
        message: bytes,
        deadline: Deadline,
        request_id: str | None,
        first: NeuronaError | None,
    ) -> Conversation:
        said = context()
        if request_id is not None:
            if not (request_id.isascii() and request_id.isprintable()):
                raise InvalidInputError("the request_id is no printable ASCII")
            said = (*said, ("x-request-id", request_id))
        together = (
            self.options.coalesce
            and not said  # a stream's metadata are those of all its calls
            and len(message) <= MAX_SHARED_BYTES
            and (path == PREDICT or plan.task == _TASKS[path])
        )

        def send(endpoint: Endpoint, left: float | None) -> Step:
            if together and endpoint.shares:
                return Together(self._stream(endpoint), message, left)
            return Alone(endpoint, path, message, left, self.metadata + said)

        retries = self.options.retries
        return (yield from tried(self.fleet, retries, deadline, send, first, self.ask()))

    def quick(
        self, wish: tuple[object, ...], inputs: object, request_id: str | None
    ) -> tuple[Plan, Written, Stream] | None:
        """What may be put into a stream at once, and has been let in by the gate; None: it takes
        a conversation."""
        plan = self.plans.known.get(wish)
        hedged = self.budget is not None and len(self.fleet.endpoints) > 1
        if plan is None or request_id is not None or hedged or not self.options.coalesce:
            return None
        if self.fleet.closed or context():
            return None
        written = plan.quick(inputs)
        if written is None or len(written.message) > MAX_SHARED_BYTES:
            return None
        endpoint = self.fleet.pick()
        if endpoint is None or not endpoint.shares or not self.gate.enter(len(written.message)):
            return None
        try:
            return plan, written, self._stream(endpoint)
        except BaseException as error:
            self.gate.leave(len(written.message))
            if isinstance(error, UnavailableError):  # the long way asks another one
                return None
            raise

    def _stream(self, endpoint: Endpoint) -> Stream:
        stream: Stream | None = endpoint.stream
        if stream is None or stream.lost is not None:
            with self._lock:
                stream = endpoint.stream
                if stream is None or stream.lost is not None:
                    try:
                        stream = Stream(endpoint, self.metadata, self._deliver, self._soon)
                    except ValueError as error:  # how gRPC refuses what comes after `close`
                        raise UnavailableError(CLOSED) from error
                    endpoint.stream = stream
        return stream


def _stepped(step: Step, deadline: Deadline) -> Conversation:
    try:
        return (yield step)
    except DeadlineError:
        raise deadline.error() from None
