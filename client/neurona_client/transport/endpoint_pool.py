"""All servers of a client: which one gets the next call, and waiting until one is reachable."""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from neurona_client.errors import ClosedError
from neurona_client.options import ClientOptions
from neurona_client.transport.endpoint import (
    DNS_PREFIX,
    Endpoint,
    ResolvedTarget,
    resolve_target,
)
from neurona_client.transport.green_threads import prepare_green_threads

log = logging.getLogger(__name__)

_RESOLVE_INTERVAL_SECONDS = 10.0
_CHECK_INTERVAL_SECONDS = 0.25


class EndpointPool:
    """The endpoints of all targets of a client, kept up to date with DNS."""

    def __init__(self, options: ClientOptions) -> None:
        """Open the channels.

        Raises:
            OSError: a file of `options.tls` cannot be read.
            RuntimeError: see `prepare_green_threads`.
        """
        prepare_green_threads()
        self.closed_reason = ""
        """Why no more calls are accepted; empty while they are."""
        self.endpoints: list[Endpoint] = []
        self._options = options
        self._lock = threading.Lock()
        self._waiters: list[Callable[[], None]] = []
        self._close_listeners: weakref.WeakSet[CloseListener] = weakref.WeakSet()
        self._round_robin = 0
        self._closing = threading.Event()
        self._resolved: dict[str, list[ResolvedTarget]] = {}
        self.resolve()
        _pools.add(self)
        has_names = any(target.startswith(DNS_PREFIX) for target in options.targets)
        if has_names:
            threading.Thread(target=self._keep_resolving, name="neurona-names", daemon=True).start()
        if has_names or len(options.targets) > 1:  # calls can be sent to another server
            threading.Thread(target=self._check_answers, name="neurona-checks", daemon=True).start()

    @property
    def address(self) -> str:
        """The targets as the caller gave them, for messages."""
        return ", ".join(self._options.targets)

    @property
    def connect_error(self) -> str:
        """Why there is no connection to the first server of which that is known."""
        errors = (endpoint.connect_error for endpoint in self.endpoints)
        return next(filter(None, errors), "no answer yet while connecting to it")

    def pick(
        self, excluded: Endpoint | None = None, *, for_session: bool = False
    ) -> Endpoint | None:
        """Choose the reachable server with the fewest requests in flight.

        Args:
            excluded: chosen only if no other server is reachable.
            for_session: open sessions count as requests in flight: they come back with more.

        Returns:
            None if no server is reachable.

        Raises:
            ClosedError: the client is closed.
        """
        if self.closed_reason:
            raise ClosedError(self.closed_reason)
        if len(self.endpoints) == 1:
            return self.endpoints[0] if self.endpoints[0].reachable else None
        now = time.monotonic()
        candidates = [one for one in self.endpoints if _is_healthy(one, now)]
        candidates = candidates or [
            one for one in self.endpoints if one.serving and not one.hanging
        ]
        candidates = candidates or [one for one in self.endpoints if one.serving]
        candidates = candidates or [one for one in self.endpoints if one.reachable]
        if len(candidates) > 1:
            if excluded is not None:
                candidates = [endpoint for endpoint in candidates if endpoint is not excluded]
            self._round_robin += 1  # among equal loads, another server each time
            first = self._round_robin % len(candidates)
            candidates = candidates[first:] + candidates[:first]
            return min(candidates, key=_load_with_sessions if for_session else _load)
        return candidates[0] if candidates else None

    def has_healthy_endpoint(self) -> bool:
        """Whether a failed call may be sent to another server without a pause."""
        now = time.monotonic()
        return any(_is_healthy(one, now) for one in self.endpoints)

    def call_when_reachable(self, callback: Callable[[], None]) -> None:
        """Call back once when a server is reachable or the pool is closed; perhaps right away."""
        with self._lock:
            if not self.closed_reason and not self._any_reachable():
                self._waiters.append(callback)
                return
        callback()

    def cancel_callback(self, callback: Callable[[], None]) -> None:
        """Undo `call_when_reachable`, unless it has called back already."""
        with self._lock:
            if callback in self._waiters:
                self._waiters.remove(callback)

    def add_close_listener(self, listener: "CloseListener") -> None:
        """Call `on_close` when the pool is closed, if there still is such an object then."""
        with self._lock:
            self._close_listeners.add(listener)

    def close(self) -> None:
        """Close all endpoints and wake all waiters."""
        if self.closed_reason:
            return
        self.closed_reason = "client closed"
        self._closing.set()
        self._wake_waiters()
        for endpoint in self.endpoints:
            endpoint.close()
        with self._lock:
            listeners = list(self._close_listeners)
        for listener in listeners:
            listener.on_close()

    def resolve(self) -> None:
        """Resolve all targets again.

        New addresses get endpoints; endpoints of addresses that are gone are closed when no
        request is in flight there.
        """
        for target in self._options.targets:
            resolved = resolve_target(target)
            # A name that cannot be resolved for a while keeps its addresses.
            if resolved != [ResolvedTarget(target)] or target not in self._resolved:
                self._resolved[target] = resolved
        wanted = dict.fromkeys(one for several in self._resolved.values() for one in several)
        kept = [one for one in self.endpoints if one.resolved_target in wanted or one.load]
        removed = [one for one in self.endpoints if one not in kept]
        kept_targets = {one.resolved_target for one in kept}
        added = [
            Endpoint(one, self._options, self._on_state_change)
            for one in wanted
            if one not in kept_targets
        ]
        if added or removed:
            self.endpoints = kept + added  # in one assignment, as other threads read it
        # If the client was closed meanwhile, only this thread can close the new endpoints.
        for endpoint in removed + added if self.closed_reason else removed:
            endpoint.close()

    def _keep_resolving(self) -> None:
        while not self._closing.wait(_RESOLVE_INTERVAL_SECONDS):
            try:
                self.resolve()
            except Exception:  # such as a certificate file that is being replaced
                log.exception("name resolution failed; retrying in %g s", _RESOLVE_INTERVAL_SECONDS)

    def _check_answers(self) -> None:
        """Find servers that hang, and send their calls to others."""
        while not self._closing.wait(_CHECK_INTERVAL_SECONDS):
            endpoints = self.endpoints
            if len(endpoints) < 2:
                continue
            for endpoint in endpoints:
                try:
                    endpoint.check_answers()
                    if endpoint.hanging and endpoint.load and self.has_healthy_endpoint():
                        endpoint.fail_calls()
                except Exception:  # a bug here must not leave calls waiting from then on
                    log.exception("uncaught exception while a server was checked")

    def _any_reachable(self) -> bool:
        return any(endpoint.reachable for endpoint in self.endpoints)

    def _on_state_change(self) -> None:
        if self._any_reachable():
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for callback in waiters:
            callback()


class CloseListener(Protocol):
    """What has something to do when the pool is closed."""

    def on_close(self) -> None:
        """Handle that; called by any thread."""


def _is_healthy(endpoint: Endpoint, now: float) -> bool:
    return endpoint.serving and not endpoint.hanging and endpoint.suspect_until < now


def _load(endpoint: Endpoint) -> int:
    return endpoint.load


def _load_with_sessions(endpoint: Endpoint) -> int:
    return endpoint.load + endpoint.session_channels.stream_count


_pools: weakref.WeakSet[EndpointPool] = weakref.WeakSet()


def _close_in_forked_child() -> None:
    """Disable all pools: the threads and connections of gRPC do not survive a fork."""
    for pool in _pools:
        pool.closed_reason = (
            f"client was created in process {os.getppid()}, before a fork (expected a client "
            f"created in this process, {os.getpid()})"
        )


def _close_at_exit() -> None:
    for pool in list(_pools):
        pool.close()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_forked_child)
