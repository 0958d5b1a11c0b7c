"""Client: predictions for threads, and for programs without any."""

import _thread
import threading
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from neurona_client.conversations import CLASSIFY, PREDICT, REGRESS, Conversations
from neurona_client.descriptions import Description, ServedModel
from neurona_client.endpoints import Outcome
from neurona_client.errors import NeuronaError
from neurona_client.inputs import Inputs
from neurona_client.options import (
    DEFAULT_TARGET,
    MAX_PENDING_BYTES,
    MAX_PENDING_REQUESTS,
    RETRIES,
    Retries,
    Tls,
    options,
)
from neurona_client.plans import Wish
from neurona_client.results import Classified, Prediction, Regressed
from neurona_client.steps import Step
from neurona_client.streams import Pending, Stream

T = TypeVar("T")


class Client:
    """Predictions from one or several servers. Any number of threads may share a client.

        with Client("127.0.0.1:8001") as client:
            print(client.predict("lenet5", pixels).label)

    target: HOST:PORT, unix:PATH, dns:///NAME:PORT, or several of them.
    coalesce: calls of all threads share a stream; False: each is a call of its own.
    timeout: seconds for calls that say none; None: without end.
    token: sent with each call. Refused in plaintext to other machines, unless
        `token_in_plaintext` says that the network is safe.
    tls: True for servers whose certificate gRPC trusts by itself, else a `Tls`.
    compression: of requests, with gzip.
    retries: how often a call is tried; see `Retries`.
    max_pending_bytes, max_pending_requests: of inputs whose answers have not come. Calls beyond
        it wait, so that memory stays bounded.
    max_message_bytes: a larger request or answer is refused.

    Raises ValueError for options that cannot be meant, OSError for files that cannot be read.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        coalesce: bool = True,
        timeout: float | None = None,
        token: str | None = None,
        tls: Tls | bool | None = None,
        compression: bool = False,
        retries: Retries = RETRIES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        max_pending_requests: int = MAX_PENDING_REQUESTS,
        max_message_bytes: int = 64 << 20,
        token_in_plaintext: bool = False,
    ) -> None:
        self._calls = Conversations(
            options(
                target,
                coalesce=coalesce,
                timeout=timeout,
                token=token,
                tls=tls,
                compression=compression,
                retries=retries,
                max_pending_bytes=max_pending_bytes,
                max_pending_requests=max_pending_requests,
                max_message_bytes=max_message_bytes,
                token_in_plaintext=token_in_plaintext,
            )
        )

    def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        label: str | None = None,
        top_k: int = 1,
        raw_outputs: bool = False,
        priority: str = "normal",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Answers by the model's task.

        inputs: an array or list, or a dict of them by input name; one sample, or a batch with
            the batch axis first. Of an image model also a PNG or JPEG, as bytes or a Path.
        version, label: which one answers, else the server's choice.
        top_k: how many classes of a classification.
        raw_outputs: also the model's output tensors.
        priority: high, normal or low, among the requests that wait for the model.
        timeout: seconds.
        request_id: what the server's log calls it; such a call goes alone.

        Raises a NeuronaError: see `neurona_client.errors`.
        """
        wish = (model, version, label, top_k, raw_outputs, priority)
        first: NeuronaError | None = None
        plan = self._calls.plans.known.get(wish) if request_id is None else None
        if plan is not None:  # what is known and goes well takes the short way
            written, stream = plan.quick(inputs), self._calls.quick_stream()
            if written is not None and stream is not None and timeout is None:
                outcome = self._together(stream, written.message)
                if type(outcome) is bytes:
                    if self._calls.plans.is_new(plan, outcome):
                        self._calls.plans.forget(plan.wish)
                    return Prediction(outcome, sample=written.single)
                first = outcome
        asked = (Prediction, PREDICT, Wish(*wish), inputs, timeout, request_id)
        return self._run(self._calls.predict(*asked, first))

    def classify(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        label: str | None = None,
        top_k: int = 1,
        raw_outputs: bool = False,
        priority: str = "normal",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Classified:
        """As `predict`; raises WrongTaskError for a model that does not classify."""
        wish = Wish(model, version, label, top_k, raw_outputs, priority)
        return self._run(
            self._calls.predict(Classified, CLASSIFY, wish, inputs, timeout, request_id)
        )

    def regress(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        label: str | None = None,
        raw_outputs: bool = False,
        priority: str = "normal",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Regressed:
        """As `predict`; raises WrongTaskError for a model that gives no values."""
        wish = Wish(model, version, label, 1, raw_outputs, priority)
        return self._run(self._calls.predict(Regressed, REGRESS, wish, inputs, timeout, request_id))

    def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """What is served."""
        return self._run(self._calls.models(timeout))

    def describe(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> Description:
        """What a model takes and gives, and what it says about itself."""
        return self._run(self._calls.describe(model, version, label, timeout))

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or SERVICE_UNKNOWN; of the server, a service or a model."""
        return self._run(self._calls.health(service, timeout))

    def wait_until_ready(self, timeout: float | None = None, *, models: Iterable[str] = ()) -> None:
        """Until the server serves, and each of `models`. Raises DeadlineError after `timeout`."""
        self._run(self._calls.until_ready(models, timeout))

    def close(self) -> None:
        """Calls that are under way end with ClosedError. May be called again."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _together(self, stream: Stream, message: bytes) -> Outcome:
        reply = _Reply()
        pending = Pending(message, reply)
        stream.put(pending)
        try:
            reply.wait(None)
        except BaseException:  # Ctrl-C
            pending.abandoned = True
            raise
        return reply.outcome

    def _run(self, conversation: Generator[Step, bytes, T]) -> T:
        try:
            step = next(conversation)
            while True:
                outcome = _done(step)
                if isinstance(outcome, NeuronaError):
                    step = conversation.throw(outcome)
                else:
                    step = conversation.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result


class _Reply:
    """What one thread waits for. A bare lock wakes it with the fewest steps."""

    __slots__ = ("_lock", "outcome")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def __call__(self, outcome: Outcome) -> None:
        self.outcome: Outcome = outcome
        self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))


def _done(step: Step) -> Outcome:
    reply = _Reply()
    give_up = step.start(reply)
    try:
        if reply.wait(step.timeout):
            return reply.outcome
    except BaseException:  # Ctrl-C
        give_up()
        raise
    give_up()
    return step.expired()
