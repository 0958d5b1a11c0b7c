"""A call of a service's function for an HTTP request (`rpc.call.Call`).

The function runs in the thread of the HTTP server and may respond from any other; models that run
inline do so in that thread. The file is alone because it is all that services know of HTTP.
"""

import asyncio
import math
import time
from collections.abc import Callable

from neurona_server.errors import DeadlineExceededError
from neurona_server.rpc.call import BaseCall, Unary, cancellation_error
from neurona_server.rpc.security.access import Grant
from neurona_server.telemetry.trace import CallTrace, Metadata
from neurona_server.web.http_server import HttpServer


class HttpCall(BaseCall):
    """One call, whose outcome is awaited."""

    def __init__(
        self,
        server: HttpServer,
        request: bytes,
        deadline: float,
        grant: Grant,
        metadata: Metadata,
        trace: CallTrace | None,
    ) -> None:
        super().__init__(metadata, trace)
        self.request = request
        self.deadline = deadline
        self.grant = grant
        self.defer = server.defer
        self._server = server
        self._outcome: asyncio.Future[bytes | Exception] = server.loop.create_future()
        self._on_cancel: list[Callable[[], None]] = []

    def reply(self, response: bytes) -> None:
        self._end(response)

    def fail(self, error: Exception) -> None:
        self._end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel.append(callback)

    async def run(self, method: Unary) -> bytes:
        """Call the function, and return the response.

        Raises:
            NeuronaError: The call has failed; another exception is a bug of the service.
            CancelledError: The caller has left (asyncio's).
        """
        timer = None
        if not math.isinf(self.deadline):
            seconds = self.deadline - time.monotonic()
            timer = self._server.loop.call_later(seconds, self._expire)
        error: Exception | None = None
        try:
            if self.deadline <= time.monotonic():
                raise DeadlineExceededError("deadline exceeded before the request was read")
            try:
                method.start(self)
            except Exception as bug:  # a bug of a service must end its call, not the server
                self.fail(bug)
            outcome = await self._outcome
            if not isinstance(outcome, bytes):
                raise outcome
        except asyncio.CancelledError:
            error = cancellation_error(self.deadline)
            self._cancel()
            raise
        except Exception as failure:
            error = failure
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if self.trace is not None:
                self.trace.end(error)
            # An error that is raised holds this frame, and so the call; nothing may refer to it.
            del error
        return outcome

    def _expire(self) -> None:
        if not self._outcome.done():
            self._cancel()
            self._resolve(cancellation_error(self.deadline))

    def _cancel(self) -> None:
        """Call the callbacks of `on_cancel`: the caller has left, or the deadline has passed."""
        callbacks, self._on_cancel = self._on_cancel, []
        for callback in callbacks:
            callback()

    def _end(self, outcome: bytes | Exception) -> None:
        self._server.post(lambda: self._resolve(outcome))

    def _resolve(self, outcome: bytes | Exception) -> None:
        # The callbacks hold the request, which holds this call: a cycle.
        self._on_cancel.clear()
        if not self._outcome.done():
            self._outcome.set_result(outcome)
