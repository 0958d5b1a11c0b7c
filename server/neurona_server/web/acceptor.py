"""Accepts connections, also when the process has no file descriptor left.

Some descriptors are kept back. When there are no others, one is given up for each connection that
is accepted, and taken again when the connection has ended. So an operator can still read what uses
them all.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

SPARE_DESCRIPTORS = 8

MAX_ACCEPTS = 64
"""Connections to accept before others are served."""

RETRY_SECONDS = 0.05
"""Time until the next attempt to accept, if there is no room or not even a spare descriptor."""

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class DescriptorReserve:
    """File descriptors that are kept back. Any thread may call any method."""

    def __init__(self, count: int = SPARE_DESCRIPTORS) -> None:
        self._count = count
        self._descriptors: list[int] = []
        self.refill()

    def give_up(self, count: int = 1) -> bool:
        """Make `count` descriptors available to whatever opens a file or socket next.

        Returns:
            False if there were fewer.
        """
        for _ in range(count):
            try:
                os.close(self._descriptors.pop())
            except IndexError:
                return False
        return True

    def refill(self) -> None:
        """Take as many descriptors as are missing and available."""
        with contextlib.suppress(OSError):
            while len(self._descriptors) < self._count:
                self._descriptors.append(os.open(os.devnull, os.O_RDONLY))

    @contextlib.contextmanager
    def lend(self, count: int) -> Iterator[None]:
        """Make descriptors available while the block runs, for files that it reads."""
        self.give_up(count)
        try:
            yield
        finally:
            self.refill()

    def close(self) -> None:
        """Give up all descriptors for good."""
        self._count = 0
        self.give_up(len(self._descriptors))


class Acceptor:
    """Accepts the connections of one listening socket in an event loop.

    Unlike that of asyncio's server, its log does not fill, and its socket is served, while there
    are no descriptors.
    """

    def __init__(
        self,
        listener: socket.socket,
        reserve: DescriptorReserve,
        handle: Callable[[socket.socket], None],
        has_room: Callable[[], bool],
        end_overdue: Callable[[], object],
        subject: str,
    ) -> None:
        """Prepare to accept; `start` begins.

        Args:
            listener: The listening socket.
            reserve: Descriptors for connections when there are no others.
            handle: Called with each connection.
            has_room: Whether one more connection may be accepted now; others wait in the kernel.
            end_overdue: Called to end a connection, because the last descriptor is in use.
            subject: What is served, for the log.
        """
        self._listener = listener
        self._reserve = reserve
        self._handle = handle
        self._has_room = has_room
        self._end_overdue = end_overdue
        self._subject = subject
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept connections from now on, in the running event loop."""
        self._listener.setblocking(False)
        self._retry = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def finish(self) -> None:
        """Accept the connections that wait in the kernel, and no more: it would reset them."""
        self._accept()
        self.stop()

    def stop(self) -> None:
        """Accept no more connections."""
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()

    def _accept(self) -> None:
        self._reserve.refill()
        for _ in range(MAX_ACCEPTS):
            if not self._has_room():
                self._pause()
                return
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS and self._reserve.give_up():
                    continue
                log.warning(
                    "cannot accept a connection to the %s port: %s", self._subject, error.strerror
                )
                self._end_overdue()
                self._pause()
                return
            connection.setblocking(False)
            self._handle(connection)

    def _pause(self) -> None:
        """Stop for a moment: the socket stays readable while a connection waits in the kernel."""
        self.stop()
        self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self.start)
