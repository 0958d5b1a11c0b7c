"""The calls of a client as conversations: what is asked, in which order, and what is read."""

from collections.abc import Generator, Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_client import descriptions
from neurona_client.descriptions import Description, ServedModel
from neurona_client.endpoints import Endpoint, Metadata, health_of, metadata
from neurona_client.errors import (
    DeadlineError,
    InvalidInputError,
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
_POLL = 0.1  # seconds between two looks at a server that is reached and does not serve yet


class Conversations:
    """Of one client."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.fleet = Fleet(options)
        self.plans = Plans()
        self._metadata: Metadata = metadata(options)

    def close(self) -> None:
        self.fleet.close()

    def predict(
        self,
        kind: type[A],
        path: str,
        wish: Wish,
        inputs: Inputs,
        timeout: float | None,
        request_id: str | None,
    ) -> Talk[A]:
        """Described is a model once, and again when what the client knows of it seems outdated."""
        deadline = Deadline(self.options.timeout if timeout is None else timeout)
        fresh = False
        while True:
            plan = self.plans.get(wish)
            if plan is None:
                plan, fresh = (yield from self._learned(wish, deadline)), True
            try:
                written = plan.write(inputs)
                answer = yield from self._sent(path, written, deadline, request_id)
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
        self, path: str, written: Written, deadline: Deadline, request_id: str | None
    ) -> Conversation:
        said = self._metadata
        if request_id is not None:
            said = (*said, ("x-request-id", request_id))

        def send(endpoint: Endpoint, left: float | None) -> Step:
            return Alone(endpoint, path, written.message, left, said)

        return (yield from tried(self.fleet, self.options.retries, deadline, send))

    def _asked(
        self, path: str, message: bytes, timeout: float | None, deadline: Deadline | None = None
    ) -> Conversation:
        def send(endpoint: Endpoint, left: float | None) -> Step:
            return Alone(endpoint, path, message, left, self._metadata)

        if deadline is None:
            deadline = Deadline(self.options.timeout if timeout is None else timeout)
        return (yield from tried(self.fleet, self.options.retries, deadline, send))


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
