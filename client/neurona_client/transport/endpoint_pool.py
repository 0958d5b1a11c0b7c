"""All servers of a client: which one gets the next call, and waiting until there is one."""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable

from neurona_client.errors import ClosedError
from neurona_client.options import Options
from neurona_client.transport.endpoint import PREFIX, Endpoint, Place, places

log = logging.getLogger(__name__)

_REFRESH = 10.0
"""Seconds between two looks at what names stand for."""


class Fleet:
    def __init__(self, options: Options) -> None:
        self.closed = ""
        """Why no more calls are taken; empty while they are."""
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], None]] = []
        self._turn = 0
        self.endpoints: list[Endpoint] = []
        self._options = options
        self._over = threading.Event()
        self._places: dict[str, list[Place]] = {}
        self.refresh()
        _all.add(self)
        if any(target.startswith(PREFIX) for target in options.targets):
            threading.Thread(target=self._refresh, name="neurona-names", daemon=True).start()

    @property
    def named(self) -> str:
        return ", ".join(self._options.targets)

    def pick(self, other_than: Endpoint | None = None) -> Endpoint | None:
        """The one with the fewest calls under way of those that can be reached; `other_than`
        only where there is no other. None: none can be reached. Raises ClosedError."""
        if self.closed:
            raise ClosedError(self.closed)
        if len(self.endpoints) == 1:
            return self.endpoints[0] if self.endpoints[0].reachable else None
        now = time.monotonic()
        ready = [one for one in self.endpoints if one.serving and one.doubtful_until < now]
        ready = ready or [one for one in self.endpoints if one.serving]
        ready = ready or [one for one in self.endpoints if one.reachable]
        if len(ready) > 1:
            if other_than is not None:
                ready = [endpoint for endpoint in ready if endpoint is not other_than]
            self._turn += 1  # of equals another one each time
            turn = self._turn % len(ready)
            ready = ready[turn:] + ready[:turn]
            return min(ready, key=lambda endpoint: endpoint.load)
        return ready[0] if ready else None

    def has_another(self) -> bool:
        """Whether a call that has failed may go to another server at once."""
        now = time.monotonic()
        return any(one.serving and one.doubtful_until < now for one in self.endpoints)

    def when_ready(self, done: Callable[[], None]) -> None:
        """Has it called once, when one can be reached; perhaps at once."""
        with self._lock:
            if not self.closed and not self._any_ready():
                self._waiting.append(done)
                return
        done()

    def forget(self, done: Callable[[], None]) -> None:
        with self._lock:
            if done in self._waiting:
                self._waiting.remove(done)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = "the client is closed"
        self._over.set()
        self._wake()
        for endpoint in self.endpoints:
            endpoint.close()

    def refresh(self) -> None:
        """Looks names up again: new addresses get connections, those that are gone lose theirs
        when what is under way there has ended."""
        for target in self._options.targets:
            found = places(target)
            # A name that cannot be looked up for a while keeps its addresses.
            if found != [Place(target)] or target not in self._places:
                self._places[target] = found
        wanted = dict.fromkeys(one for found in self._places.values() for one in found)
        kept = [one for one in self.endpoints if one.place in wanted or one.load]
        gone = [one for one in self.endpoints if one not in kept]
        there = {one.place for one in kept}
        new = [Endpoint(one, self._options, self._changed) for one in wanted if one not in there]
        if new or gone:
            self.endpoints = kept + new  # in one step, as others are reading it
        # Of a client that was closed meanwhile nobody else closes the new ones.
        for one in gone + new if self.closed else gone:
            one.close()

    def _refresh(self) -> None:
        while not self._over.wait(_REFRESH):
            try:
                self.refresh()
            except Exception:  # such as a certificate's file that is being replaced
                log.exception("the servers' names will be looked up again")

    def _any_ready(self) -> bool:
        return any(endpoint.reachable for endpoint in self.endpoints)

    def _changed(self) -> None:
        if self._any_ready():
            self._wake()

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for done in waiting:
            done()


_all: weakref.WeakSet[Fleet] = weakref.WeakSet()


def _forked() -> None:
    """gRPC's threads and connections are not there in a child process."""
    for fleet in _all:
        fleet.closed = (
            f"the client was made in another process ({os.getppid()}) than this one "
            f"({os.getpid()}): make one after the fork"
        )


def _exiting() -> None:
    for fleet in list(_all):
        fleet.close()


atexit.register(_exiting)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
