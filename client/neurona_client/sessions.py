"""Sessions: a sequence sent as it comes, each of whose steps is answered at once.

`Session` waits in its thread, `AsyncSession` in its event loop. What they do is in `calls.session`.
"""

from types import TracebackType
from typing import Self

from neurona_client.base_client import BaseClient
from neurona_client.calls.async_driver import LoopDriver
from neurona_client.calls.session import SessionCall
from neurona_client.calls.session_protocol import SessionAnswer
from neurona_client.calls.steps import Deadline, Operation
from neurona_client.calls.sync_driver import run
from neurona_client.errors import NeuronaError
from neurona_client.inputs import Inputs, PreparedTensors
from neurona_client.request_templates import RequestOptions
from neurona_client.results import Prediction


class BaseSession:
    """What `Session` and `AsyncSession` share."""

    def __init__(
        self,
        base: BaseClient,
        options: RequestOptions,
        state: bytes,
        timeout: float | None,
        request_id: str | None,
    ) -> None:
        """Create a session; see `Client.session`."""
        self._base = base
        self._options = options
        self._timeout = base.options.timeout if timeout is None else timeout
        self._call: SessionCall = base.session(options, state, request_id)
        self._state = state
        self._steps = 0

    @property
    def state(self) -> bytes:
        """The state after the answer that was received last, for a session that goes on from it.

        Opaque, and of use only with the same file of the same version of the model.
        """
        return self._state

    @property
    def steps(self) -> int:
        """How many steps are in `state`, of the whole sequence."""
        return self._steps

    def _send(self, inputs: Inputs, timeout: float | None) -> Operation[None]:
        def prepare(deadline: Deadline) -> Operation[tuple[PreparedTensors, bool]]:
            return self._base.prepare_steps(self._options, inputs, deadline)

        return self._call.send(prepare, self._timeout if timeout is None else timeout)

    def _take(self, answer: SessionAnswer) -> Prediction:
        self._state, self._steps = answer.state, answer.steps
        if isinstance(answer.outcome, NeuronaError):
            # Several answers may share it.
            raise answer.outcome.with_traceback(None)
        return answer.outcome


class Session(BaseSession):
    """A sequence for threads; `Client.session` creates it.

        with client.session("lstm") as session:
            session.send(first_rows)
            session.send(more_rows)
            for answer in session:
                print(answer.label)

    Any number of threads may use it, such as one that sends and one that receives.
    """

    def send(self, inputs: Inputs, *, timeout: float | None = None) -> None:
        """Send the next steps of the sequence, and do not wait for their answer.

        Args:
            inputs: as of `Client.predict`: the steps of one sequence, or of several with the batch
                axis first, the same ones in each message. A single step of one sequence may be
                without the axis of time.
            timeout: seconds from now to the answer; None: that of the session.

        Raises:
            InvalidInputError: an input's name, dtype, shape or value does not fit the model.
            ClosedError: the session or the client is closed.
            NeuronaError: the model could not be described.
        """
        run(self._send(inputs, timeout))

    def receive(self) -> Prediction:
        """Wait for the next answer: one for each message, in the order in which they were sent.

        Waits also for steps that another thread is going to send.

        Returns:
            The model's answer to the sequence so far, as if it ended there.

        Raises:
            NeuronaError: the steps failed; see `Client.predict`. They are not in the state, and
                the session goes on without them.
            ClosedError: the session or the client is closed.
        """
        return self._take(run(self._call.receive()))

    def __iter__(self) -> Self:
        """Iterate over the answers to everything that has been sent."""
        return self

    def __next__(self) -> Prediction:
        answer = run(self._call.receive_if_sent())
        if answer is None:
            raise StopIteration
        return self._take(answer)

    def close(self) -> None:
        """End the session, which frees its state on the server. May be called again."""
        self._call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncSession(BaseSession):
    """A sequence for coroutines; `AsyncClient.session` creates it.

        async with client.session("lstm") as session:
            await session.send(first_rows)
            await session.send(more_rows)
            async for answer in session:
                print(answer.label)

    A coroutine that is cancelled while it waits for an answer loses none: the next one gets it.
    """

    def __init__(
        self,
        base: BaseClient,
        driver: LoopDriver,
        options: RequestOptions,
        state: bytes,
        timeout: float | None,
        request_id: str | None,
    ) -> None:
        """Create a session; see `AsyncClient.session`."""
        super().__init__(base, options, state, timeout, request_id)
        self._driver = driver

    async def send(self, inputs: Inputs, *, timeout: float | None = None) -> None:
        """Send the next steps of the sequence, and do not wait for their answer.

        Args:
            inputs: see `Session.send`.
            timeout: see `Session.send`.

        Raises:
            NeuronaError: see `Session.send`.
        """
        await self._driver.run(self._send(inputs, timeout))

    async def receive(self) -> Prediction:
        """Wait for the next answer: one for each message, in the order in which they were sent.

        Waits also for steps that another coroutine is going to send.

        Returns:
            The model's answer to the sequence so far, as if it ended there.

        Raises:
            NeuronaError: see `Session.receive`.
        """
        return self._take(await self._driver.run(self._call.receive()))

    def __aiter__(self) -> Self:
        """Iterate over the answers to everything that has been sent."""
        return self

    async def __anext__(self) -> Prediction:
        answer = await self._driver.run(self._call.receive_if_sent())
        if answer is None:
            raise StopAsyncIteration
        return self._take(answer)

    async def close(self) -> None:
        """End the session, which frees its state on the server. May be called again."""
        self._call.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
