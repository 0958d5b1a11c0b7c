"""The `Call` and the `StreamCall` of the door on `grpc.aio`."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import grpc.aio

from neurona_server.models.model import Deferred
from neurona_server.rpc.call import Stream
from neurona_server.rpc.caller import Caller, CallTrace
from neurona_server.rpc.rights import Grant

Context = grpc.aio.ServicerContext[bytes, bytes]


class Door(Protocol):
    """What calls need of their door."""

    def post(self, action: Callable[[], None]) -> None:
        """Has `action` called in the door's thread; any thread may."""

    def defer(self, callback: Deferred) -> None:
        """As that of a `Call`."""


class AioCall(Caller):
    def __init__(
        self,
        door: Door,
        request: bytes,
        deadline: float,
        grant: Grant,
        context: Context,
        trace: CallTrace | None,
    ) -> None:
        super().__init__(context.invocation_metadata, trace)
        self.request = request
        self.deadline = deadline
        self.grant = grant
        self.outcome: asyncio.Future[bytes | Exception] = asyncio.get_running_loop().create_future()
        self._door = door
        self._on_cancel: list[Callable[[], None]] = []
        self.defer = door.defer

    def reply(self, response: bytes) -> None:
        self._end(response)

    def fail(self, error: Exception) -> None:
        self._end(error)

    def on_cancel(self, callback: Callable[[], None]) -> None:
        self._on_cancel.append(callback)

    def cancel(self) -> None:
        for callback in self._on_cancel:
            callback()
        self._on_cancel.clear()

    def _end(self, outcome: bytes | Exception) -> None:
        def resolve() -> None:
            # They hold the request, which holds us: that would wait for the collector of cycles.
            self._on_cancel.clear()
            if not self.outcome.done():
                self.outcome.set_result(outcome)

        self._door.post(resolve)


class AioStreamCall(Caller):
    stream: Stream

    def __init__(
        self,
        door: Door,
        deadline: float,
        grant: Grant,
        context: Context,
        trace: CallTrace | None,
    ) -> None:
        metadata = context.invocation_metadata() or ()
        super().__init__(metadata, trace)
        self.deadline = deadline
        self.grant = grant
        self._headers = {key: value for key, value in metadata if isinstance(value, str)}
        self.woken = asyncio.Event()
        self.written = asyncio.Event()
        self.half_closed = False
        self.error: Exception | None = None
        self.defer = door.defer
        self._door = door

    def metadata(self, key: str) -> str:
        return self._headers.get(key, "")

    def fail(self, error: Exception) -> None:
        self.error = error
        self.woken.set()

    def wake(self) -> None:
        self._door.post(self.woken.set)

    def drain(self) -> None:
        self.stream.drain()
        self.woken.set()

    async def read(self, context: Context) -> None:
        try:
            while True:
                self.written.clear()
                if self.stream.congested:
                    await self.written.wait()
                    continue
                message: object = await context.read()
                if not isinstance(message, bytes):  # grpc.aio.EOF
                    self.half_closed = True
                    self.stream.half_close()
                    break
                self.stream.receive(message)
        except Exception as error:  # what a service raises ends its own call only
            self.error = error
        self.woken.set()
