"""The `grpc.aio` server of the aio transport, which goes on when `grpc.aio` stops accepting calls.

`grpc.aio` accepts calls in one task. If that fails, its server closes its ports, and nothing says
so. The known failure is a path that is not UTF-8, which any caller can send: `any_path_decodes`
prevents it. After any other one a new server listens at the same address.
"""

import asyncio
import codecs
import contextlib
import logging
import os
import sys
import threading
from functools import partial

import grpc
import grpc.aio

from neurona_server.errors import ConfigError
from neurona_server.rpc.transports.listener import ListenerOptions, bind
from neurona_server.telemetry import logs

log = logging.getLogger(__name__)

ACCEPTING_TASK = "_server_main_loop"
"""Name of the coroutine in which `grpc.aio` accepts calls."""

RESTART_SECONDS, RESTART_PAUSE = 10.0, 0.02
"""Seconds in which a new server must listen, and between its attempts: the port of the old one
closes a moment after it has failed."""

_loop_threads: set[int] = set()
_RUN_OF_A_STEP = asyncio.Handle._run.__code__


class RestartingServer:
    """A `grpc.aio.Server`, and its successors. All methods are called in one event loop."""

    def __init__(self, handler: grpc.GenericRpcHandler, options: ListenerOptions) -> None:
        self._handler = handler
        self._options = options
        self._addresses = ""
        self._server: grpc.aio.Server | None = None
        self._stopping = False
        self._restart: asyncio.Task[None] | None = None
        self._ending: dict[grpc.aio.Server, asyncio.Task[None]] = {}
        """Servers that accept no calls any more, and still answer those in flight."""

    async def start(self, addresses: str) -> list[int]:
        """Listen on comma-separated addresses; return their ports, which may be the system's.

        Raises:
            ConfigError: An address is not available.
        """
        any_path_decodes(threading.get_ident())
        ports = await self._listen(addresses)
        self._addresses = ",".join(
            f"{address[:-1]}{port}" if address.endswith(":0") else address
            for address, port in zip(addresses.split(","), ports, strict=True)
        )
        return ports

    async def stop(self, timeout: float) -> None:
        """Accept no more calls, wait `timeout` seconds for those in flight, cancel the others."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        servers = [*self._ending, *([self._server] if self._server else [])]
        await asyncio.gather(*(_stop(server, timeout) for server in servers))
        _loop_threads.discard(threading.get_ident())

    async def _listen(self, addresses: str) -> list[int]:
        server = grpc.aio.server(options=self._options.arguments())
        server.add_generic_rpc_handlers((self._handler,))
        certificates = self._options.certificates

        def add_port(one: str) -> int:
            if certificates is None:
                return server.add_insecure_port(one)
            return server.add_secure_port(one, certificates.credentials())

        ports = bind(add_port, addresses)
        others = asyncio.all_tasks()
        await server.start()
        self._server = server
        for task in asyncio.all_tasks() - others:
            if getattr(task.get_coro(), "__qualname__", "").endswith(ACCEPTING_TASK):
                task.add_done_callback(partial(self._handle_end, server))
        return ports

    def _handle_end(self, server: grpc.aio.Server, accepting: asyncio.Task[None]) -> None:
        if self._stopping:
            return
        error = None if accepting.cancelled() else accepting.exception()
        log.error("gRPC has stopped accepting calls; listening again", exc_info=error)
        grace = self._options.max_connection_age_grace
        ending = asyncio.create_task(_stop(server, grace))
        self._ending[server] = ending
        ending.add_done_callback(lambda _: self._ending.pop(server, None))
        self._restart = asyncio.create_task(self._listen_again())

    async def _listen_again(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + RESTART_SECONDS
        while True:
            try:
                await self._listen(self._addresses)
            except ConfigError as error:
                if loop.time() > end:
                    logs.report_end(f"gRPC has stopped accepting calls: {error}")
                    os._exit(1)  # whatever watches the process can start it again
                await asyncio.sleep(RESTART_PAUSE)
            else:
                return


async def _stop(server: grpc.aio.Server, timeout: float) -> None:
    # Stopping a server whose accepting task has failed raises that failure once.
    with contextlib.suppress(Exception):
        await server.stop(timeout)
    await server.stop(timeout)


def any_path_decodes(loop_thread: int) -> None:
    """Make `grpc.aio`, in this thread, replace bytes of a path that are not UTF-8.

    It decodes paths strictly in compiled code of its accepting task, before any code of ours is
    called, so that only Python's own handler of strict decoding is left. It acts as before except
    where no Python function decodes, only a step of a task of this thread's event loop.
    """
    _loop_threads.add(loop_thread)
    codecs.register_error("strict", _handle_strictly)


def _handle_strictly(error: UnicodeError) -> tuple[str | bytes, int]:
    if (
        isinstance(error, UnicodeDecodeError)
        and threading.get_ident() in _loop_threads
        and sys._getframe(1).f_code is _RUN_OF_A_STEP
    ):
        return "\N{REPLACEMENT CHARACTER}", error.end
    return codecs.strict_errors(error)
