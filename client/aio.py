"""AsyncClient: predictions for coroutines."""

import asyncio
import contextlib
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from neurona_client.conversations import CLASSIFY, PREDICT, REGRESS, Conversations
from neurona_client.descriptions import Description, ServedModel
from neurona_client.endpoints import Outcome
from neurona_client.errors import ClosedError, NeuronaError
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


class AsyncClient:
    """As `Client`, for the coroutines of one event loop, that of its first call.

        async with AsyncClient("127.0.0.1:8001") as client:
            answers = await asyncio.gather(*(client.predict("lenet5", one) for one in images))

    A coroutine that is cancelled gives its call up.
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
        self._loop: asyncio.AbstractEventLoop | None = None
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

    async def predict(
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
                outcome = await self._together(stream, written.message)
                if type(outcome) is bytes:
                    if self._calls.plans.is_new(plan, outcome):
                        self._calls.plans.forget(plan.wish)
                    return Prediction(outcome, sample=written.single)
                first = outcome
        asked = (Prediction, PREDICT, Wish(*wish), inputs, timeout, request_id)
        return await self._run(self._calls.predict(*asked, first))

    async def classify(
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
        return await self._run(
            self._calls.predict(Classified, CLASSIFY, wish, inputs, timeout, request_id)
        )

    async def regress(
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
        return await self._run(
            self._calls.predict(Regressed, REGRESS, wish, inputs, timeout, request_id)
        )

    async def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """What is served."""
        return await self._run(self._calls.models(timeout))

    async def describe(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> Description:
        """What a model takes and gives, and what it says about itself."""
        return await self._run(self._calls.describe(model, version, label, timeout))

    async def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or SERVICE_UNKNOWN; of the server, a service or a model."""
        return await self._run(self._calls.health(service, timeout))

    async def wait_until_ready(
        self, timeout: float | None = None, *, models: Iterable[str] = ()
    ) -> None:
        """Until the server serves, and each of `models`. Raises DeadlineError after `timeout`."""
        await self._run(self._calls.until_ready(models, timeout))

    async def close(self) -> None:
        """Calls that are under way end with ClosedError. May be called again."""
        self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _together(self, stream: Stream, message: bytes) -> Outcome:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._belong_to(loop)
        reply = _Reply(loop)
        pending = Pending(message, reply)
        stream.put(pending)
        try:
            return await reply.future
        except BaseException:  # the coroutine is cancelled
            pending.abandoned = True
            raise

    async def _run(self, conversation: Generator[Step, bytes, T]) -> T:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._belong_to(loop)
        try:
            step = next(conversation)
            while True:
                outcome = await _done(step, loop)
                if isinstance(outcome, NeuronaError):
                    step = conversation.throw(outcome)
                else:
                    step = conversation.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise ClosedError(
                "the client belongs to another event loop, that of its first call: make one for "
                "each loop"
            )
        self._loop = loop

        def deliver(told: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(_resolve, told)

        self._calls.deliver = deliver
        self._calls.soon = lambda begin: _ignore(loop.call_soon(begin))


def _ignore(_: object) -> None:
    pass


class _Reply:
    """What one coroutine waits for."""

    __slots__ = ("_loop", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[Outcome] = loop.create_future()

    def __call__(self, outcome: Outcome) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            self._loop.call_soon_threadsafe(_resolve, [(self, outcome)])


def _resolve(told: Sequence[tuple[_Reply, Outcome]]) -> None:
    for reply, outcome in told:
        if not reply.future.done():
            reply.future.set_result(outcome)


async def _done(step: Step, loop: asyncio.AbstractEventLoop) -> Outcome:
    reply = _Reply(loop)
    give_up = step.start(reply)
    try:
        if step.timeout is None:
            return await reply.future
        async with asyncio.timeout(step.timeout):
            return await reply.future
    except TimeoutError:
        give_up()
        return step.expired()
    except BaseException:  # the coroutine is cancelled
        give_up()
        raise
