"""Questions about servers and models, as conversations: what is asked, and what is read."""

from collections.abc import Generator, Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from neurona_client import descriptions
from neurona_client.descriptions import Description, ServedModel
from neurona_client.endpoints import Endpoint, health_of, metadata
from neurona_client.errors import DeadlineError, NotFoundError, ServerError, UnavailableError
from neurona_client.fleet import Fleet
from neurona_client.hedges import Budget, Hedging
from neurona_client.options import Options
from neurona_client.plans import Wish
from neurona_client.steps import Alone, Ask, Conversation, Deadline, Pause, Step, tried
from neurona_client.wire import within
from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    DescribeModelResponse,
    ListModelsResponse,
)

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
        request = within(1, service.encode()) if service else b""
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
