"""A thread that observes connections: what gRPC has received of incomplete messages, how many.

gRPC receives a message completely before it hands it over, and its buffers have no limit that could
be set from Python. So this thread asks the kernel how much each connection has received, subtracts
the messages that were complete, and ends calls when what remains is over the budget: first those of
the connection with the most. Only connections with slow messages are asked, which most never have.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from neurona_server.errors import DeadlineExceededError, TooLargeError
from neurona_server.resources import trim_heap
from neurona_server.rpc.call import SMALL_MESSAGE_BYTES
from neurona_server.rpc.transports.accepted_sockets import AcceptedSocket, AcceptedSockets
from neurona_server.rpc.transports.buffer_budget import ALWAYS, LARGE, BufferBudget, Reception

log = logging.getLogger(__name__)

INTERVAL = 0.02
"""Seconds between two looks at the calls that are receiving. A message that takes less is not
observed at all."""

IDLE_INTERVAL = 0.05
"""Seconds until the next look while no call is receiving."""

SCAN_INTERVAL = 1.0
"""Seconds between two scans for all connections."""

LOAD = 0.05
"""The part of a CPU's time that looks may take: with very many connections there are fewer."""

MAX_INTERVAL = 0.2
"""Maximum seconds between two looks."""

SMALL_MESSAGE_SECONDS = 10.0
"""Seconds in which the message of a method without tensors has to arrive."""

SMALL_MESSAGES_BYTES = 1 << 20
"""Incomplete bytes of a connection that only calls such methods."""

SMALL_MESSAGES = 8
"""Such calls of one connection that may be incomplete although it has received that much."""

MAX_ENDED = 3
"""Times that calls of a connection are ended before it is closed: ending calls costs more than
starting them."""

NEVER_CALLED_BYTES = 512
"""A connection that has received less has never made a call: that is the start of HTTP/2 alone."""

OVERHEAD = 2
"""Memory that gRPC takes for each byte of an incomplete message: it has buffers that are not full,
and what is freed in pieces cannot be used for everything."""

TRIM_BYTES = 64 << 20
"""Bytes of a burst after which memory is returned to the system."""

QUIET_SECONDS = 1.0
"""Seconds after a burst until its memory is returned to the system."""

LOG_INTERVAL = 60.0
"""Seconds between two log lines about the same limit."""

INCOMPLETE = "incomplete"
BUFFERS = "buffers_full"
PER_ADDRESS = "per_address"
NEVER_CALLED = "never_called"
"""Reasons for which connections are closed."""


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections may be open; 0: no limit."""

    total: int = 0
    """To one listening address."""
    per_address: int = 0
    """Of one caller's address."""


NO_CONNECTION_LIMITS = ConnectionLimits()


@dataclass(slots=True)
class _Observed:
    """A call whose message has not arrived at once."""

    since: float
    messages: int
    peer: str = ""


@dataclass(slots=True)
class _Growth:
    """What a connection has received since its calls are slow."""

    base: int
    incomplete: int = 0


class ConnectionGuard:
    """Keeps the incomplete messages of a transport in the budget, and connections in number."""

    def __init__(
        self,
        budget: BufferBudget,
        max_message_bytes: int,
        limits: ConnectionLimits,
        on_reject: Callable[[Exception], None],
        on_close: Callable[[str], None],
    ) -> None:
        """Make a guard, which `start` starts.

        Args:
            budget: The budget; it says which calls are receiving a message.
            max_message_bytes: The size of the largest message.
            limits: How many connections may be open.
            on_reject: Called with the error of each call that is ended.
            on_close: Called with the reason for each connection that is closed.
        """
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._limits = limits
        self._on_reject = on_reject
        self._on_close = on_close
        self._sockets = AcceptedSockets(())
        self._total = 0  # connections that may be open, to all listening addresses
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)
        self._observed: dict[Reception, _Observed] = {}
        self._growth: dict[str, _Growth] = {}
        self._snapshots: dict[int, int] = {}  # bytes received at the last scan, by cookie
        self._next_scan = 0.0
        self._least_resident = 0
        self._peak = 0  # most bytes buffered since memory was last returned
        self._quiet_at = 0.0
        self._ended: dict[int, int] = {}  # times that calls of a connection were ended, by cookie
        # To be closed by the next look: their calls get a status first. gRPC may hold messages of
        # calls that it has not handed over, which nothing else would free.
        self._to_close: list[AcceptedSocket] = []
        self._next_lines: dict[str, float] = {}

    @property
    def connections(self) -> int:
        """The number of open connections, as of the last scan."""
        return len(self._sockets)

    @property
    def buffered_bytes(self) -> int:
        """The bytes of large or slow messages that are received, wait or are being sent."""
        return self._budget.buffered_bytes

    def start(self, ports: Sequence[int]) -> None:
        """Observe the connections to these ports."""
        self._sockets = AcceptedSockets(ports)
        self._total = self._limits.total * len(ports)
        self._thread.start()

    def stop(self) -> None:
        """Stop observing. A second call does nothing."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        interval = INTERVAL
        while not self._stopping.wait(interval):
            start = time.thread_time()
            try:
                self._look(time.monotonic())
            except Exception:  # the next look may succeed, and nothing else does this
                log.exception("uncaught exception while connections were observed")
            least = INTERVAL if self._observed else IDLE_INTERVAL
            interval = max(least, min(MAX_INTERVAL, (time.thread_time() - start) / LOAD))
        self._observed.clear()  # a stopping server waits until its calls are gone

    def _look(self, now: float) -> None:
        if now >= self._next_scan:
            self._scan()
            self._next_scan = now + SCAN_INTERVAL
        closing, self._to_close = self._to_close, []
        for connection in closing:
            self._close(connection, BUFFERS)
        slow = self._find_slow(now)
        budget = self._budget
        if not slow:
            budget.record_above = LARGE
            if budget.completed:
                budget.completed.clear()
                self._growth.clear()
                budget.incomplete_bytes = 0
            self._return_memory(now)
            return
        budget.record_above = ALWAYS
        self._measure(slow)
        for peer, calls in slow.items():
            self._check_small_messages(peer, calls, now)
        self._enforce(slow)
        self._return_memory(now)

    def _find_slow(self, now: float) -> dict[str, list[Reception]]:
        """Return the calls that wait for the rest of a message, by connection.

        A call is slow if the last look has already found it, and no message has arrived since.
        """
        observed: dict[Reception, _Observed] = {}
        slow: dict[str, list[Reception]] = {}
        for call in list(self._budget.receiving):
            before = self._observed.get(call)
            if before is None or before.messages != call.messages_received:
                observed[call] = _Observed(now, call.messages_received)
                continue
            before.peer = before.peer or call.peer
            observed[call] = before
            slow.setdefault(before.peer, []).append(call)
        self._observed = observed
        return slow

    def _measure(self, slow: dict[str, list[Reception]]) -> None:
        """Measure what each connection with slow calls has received of incomplete messages.

        Once that is a part of the budget, all connections are measured: those whose calls gRPC has
        not handed over yet, or has only just, may have received as much.
        """
        budget, sockets = self._budget, self._sockets
        watch_all = budget.incomplete_bytes > budget.usable // 4
        if watch_all or any(sockets.find(peer) is None for peer in slow):
            sockets.scan()
        peers = {*slow, *sockets.peers()} if watch_all else slow.keys()
        for peer in self._growth.keys() - peers:
            del self._growth[peer]
            budget.completed.pop(peer, None)
        for peer in peers:
            self._measure_connection(peer, len(slow.get(peer, ())))
        total = sum(each.incomplete for each in self._growth.values())
        budget.incomplete_bytes = OVERHEAD * total

    def _measure_connection(self, peer: str, slow_calls: int) -> None:
        connection = self._sockets.find(peer)
        received = None if connection is None else self._sockets.bytes_received(connection)
        if connection is None or received is None:
            # Of a Unix socket nothing is known but the number of its calls, most of which may be
            # idle streams, and that its messages are in memory; another is closed.
            most = 0
            if peer.startswith("unix:"):
                most = min(slow_calls * self._max_message_bytes, self._grown_bytes())
            self._growth[peer] = _Growth(0, most)
            return
        completed = self._budget.completed
        growth = self._growth.get(peer)
        if growth is None:
            completed[peer] = 0
            base = self._snapshots.get(connection.cookie, 0)
            # Without slow calls nothing is incomplete but what has just arrived.
            growth = self._growth[peer] = _Growth(base if slow_calls or not base else received)
        grown = received - growth.base - completed[peer]
        if grown < 0:  # it was observed in the middle of a message
            growth.base += grown
        growth.incomplete = max(0, grown)

    def _check_small_messages(self, peer: str, calls: list[Reception], now: float) -> None:
        """End calls of methods without tensors whose messages are longer than they may be.

        Among them are all methods that need no token.
        """
        receiving = self._budget.receiving
        small = [call for call in calls if receiving.get(call, LARGE + 1) <= SMALL_MESSAGE_BYTES]
        if not small:
            return
        if self._growth[peer].incomplete > SMALL_MESSAGES_BYTES and (
            len(small) == len(calls) or len(small) > SMALL_MESSAGES
        ):
            too_large = TooLargeError(
                f"the message is too large (expected at most {SMALL_MESSAGE_BYTES} bytes for this "
                "method)"
            )
            self._end(peer, small, too_large)
            return
        for call in small:
            if now - self._observed[call].since > SMALL_MESSAGE_SECONDS and not call.is_stream:
                error = DeadlineExceededError(
                    f"no complete message after {SMALL_MESSAGE_SECONDS:g} s"
                )
                call.post(partial(call.abort, error))

    def _enforce(self, slow: dict[str, list[Reception]]) -> None:
        """End calls until what is incomplete and what is charged fits into the budget."""
        budget = self._budget
        usable = budget.usable
        if budget.buffered_bytes <= usable or not self._has_grown(usable // OVERHEAD):
            return
        self._warn(
            INCOMPLETE,
            "%d bytes of incomplete messages from %d connections, %d of messages in progress "
            "(expected at most %d, the option max_buffered_bytes): calls are ended",
            *(budget.incomplete_bytes, len(slow), budget.held_bytes, budget.limit),
        )
        by_size = sorted(self._growth, key=lambda peer: self._growth[peer].incomplete, reverse=True)
        for peer in by_size:
            # Some more than necessary: otherwise the next look would have to end others.
            if budget.buffered_bytes <= usable * 3 // 4:
                return
            self._end(peer, slow.get(peer, []), budget.error(), close=True)

    def _end(
        self, peer: str, calls: list[Reception], error: Exception, *, close: bool = False
    ) -> None:
        def abort() -> None:
            for call in calls:
                call.abort(error)
                self._on_reject(error)

        # One event for all: this thread would wait for the interpreter's lock after each.
        if calls:
            calls[0].post(abort)
        connection = self._sockets.find(peer)
        if connection is not None:
            count = self._ended[connection.cookie] = self._ended.get(connection.cookie, 0) + 1
            if close or count >= MAX_ENDED:
                self._to_close.append(connection)
        growth = self._growth[peer]
        growth.base += growth.incomplete
        self._budget.incomplete_bytes -= OVERHEAD * growth.incomplete
        growth.incomplete = 0

    def _has_grown(self, size: int) -> bool:
        """Return whether the process uses `size` bytes more memory than it once did.

        If it does not, so many bytes cannot be incomplete: they were messages that were complete
        before the connection was observed.
        """
        return self._grown_bytes() >= size

    def _grown_bytes(self) -> int:
        """Return the memory that the process uses more than it once did.

        A number that bounds nothing if the system does not say.
        """
        resident = _resident_bytes()
        return max(0, resident - self._least_resident) if resident else sys.maxsize

    def _return_memory(self, now: float) -> None:
        """Return memory to the system after a burst.

        That takes some ten milliseconds, in which other threads wait for memory: while there is
        much to do they would wait for much longer.
        """
        buffered = self._budget.buffered_bytes
        self._peak = max(self._peak, buffered)
        if self._peak < TRIM_BYTES or buffered > self._peak // 4:
            self._quiet_at = now + QUIET_SECONDS
        elif now >= self._quiet_at:
            self._peak = buffered
            trim_heap()

    def _scan(self) -> None:
        sockets = self._sockets
        sockets.scan()
        resident = _resident_bytes()
        self._least_resident = min(self._least_resident or resident, resident)
        snapshots: dict[int, int] = {}
        for connection in sockets.sockets:
            received = sockets.bytes_received(connection)
            if received is not None:
                snapshots[connection.cookie] = received
        self._snapshots = snapshots
        self._ended = {cookie: n for cookie, n in self._ended.items() if cookie in snapshots}
        self._limit_connections(sockets.sockets)

    def _limit_connections(self, connections: list[AcceptedSocket]) -> None:
        """Close the newest connections of addresses that have too many, and unused ones."""
        limit = self._limits.per_address
        if limit and len(connections) > limit:
            counts: dict[str, int] = {}
            for connection in connections:
                count = counts[connection.address] = counts.get(connection.address, 0) + 1
                if count > limit:
                    self._close(connection, PER_ADDRESS)
        total = self._total
        if total and len(connections) > total * 3 // 4:
            surplus = len(connections) - total // 2
            old = time.monotonic() - SCAN_INTERVAL
            for connection in connections:
                if not surplus or connection.accepted > old:
                    return
                if self._snapshots.get(connection.cookie, 0) < NEVER_CALLED_BYTES:
                    self._close(connection, NEVER_CALLED)
                    surplus -= 1

    def _close(self, connection: AcceptedSocket, reason: str) -> None:
        if not self._sockets.shut_down(connection):
            return
        self._on_close(reason)
        texts = {
            BUFFERS: "more incomplete messages than max_buffered_bytes allows, or small ones again",
            PER_ADDRESS: "more connections of its address than max_connections_per_address "
            f"({self._limits.per_address})",
            NEVER_CALLED: f"no call yet, and most of max_connections ({self._total}) are open",
        }
        self._warn(reason, "connection of %s closed: %s", connection.address, texts[reason])

    def _warn(self, reason: str, text: str, *values: object) -> None:
        """Log a warning, unless one for the same reason has just been logged."""
        now = time.monotonic()
        if now >= self._next_lines.get(reason, 0.0):
            self._next_lines[reason] = now + LOG_INTERVAL
            log.warning(text, *values)


def _resident_bytes() -> int:
    """Return the memory of this process; 0 if the system does not say."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE_SIZE
    return 0


_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
