"""The calls that load and unload models, of both protocols: a bounded number, in a few threads.

A load lasts as long as its model needs, up to the option load_timeout_s. Calls that wait for one
hold no thread, and one that its caller has left holds nothing at all.
"""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import NamedTuple

from neurona_server.errors import NotFoundError, QueueFullError
from neurona_server.models.lifecycle.reconciler import Control
from neurona_server.models.repository.override import ModelOverride
from neurona_server.rpc.call import Call

MAX_CALLS = 256
"""Loads and unloads that may be waiting or running; further ones are rejected."""

MAX_THREADS = 4
"""Scans of the repository at the same time; loads and unloads run in threads of their own."""

RETRY_AFTER = 1.0
"""Seconds after which a rejected call may be repeated."""

MakeResponse = Callable[[], bytes]
Explain = Callable[[Exception], Exception]
"""Returns an error in the words of the call's protocol."""


def _as_it_is(error: Exception) -> Exception:
    return error


class _Answer(NamedTuple):
    """How to answer a call."""

    make_response: MakeResponse
    explain: Explain = _as_it_is


class _Operation:
    """One load or unload, with the calls that wait for its end and how to answer each."""

    def __init__(self, start: Callable[[], Future[None]]) -> None:
        self.start = start
        """Starts it; it ends with the future."""

        self.calls: dict[Call, _Answer] = {}


class ControlCalls:
    """Runs loads and unloads for calls. Calls that ask for the same before it starts share it."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._waiting: dict[Hashable, _Operation] = {}  # in the order of their arrival
        self._pending_calls = 0
        self._threads = self._busy_threads = 0
        self._lock = threading.Lock()

    @property
    def pending_count(self) -> int:
        """The number of calls whose operation has not ended and whose caller has not left."""
        return self._pending_calls

    def load(
        self,
        name: str,
        call: Call,
        make_response: MakeResponse,
        override: ModelOverride | None = None,
        explain: Explain = _as_it_is,
    ) -> None:
        """Load a model, and end the call; errors become its status, as `explain` returns them.

        A load with an `override` is shared by no other call.
        """
        answer = _Answer(make_response, explain)
        if override is None:
            self._add(("load", name), lambda: self._control.load(name), call, answer)
        else:
            key = ("load", name, override)
            self._add(key, lambda: self._control.load(name, override), call, answer)

    def unload(self, name: str, call: Call, make_response: MakeResponse) -> None:
        """Unload a model, and end the call; errors become its status."""
        answer = _Answer(make_response)
        self._add(("unload", name), lambda: self._control.unload(name), call, answer)

    def unload_if_loaded(self, name: str, call: Call, make_response: MakeResponse) -> None:
        """Do what `unload` does, but a model that is not loaded is no error."""
        key = "unload if loaded", name
        answer = _Answer(make_response)
        self._add(key, lambda: self._unload_if_loaded(name), call, answer)

    def _unload_if_loaded(self, name: str) -> Future[None]:
        try:
            return self._control.unload(name)
        except NotFoundError:
            nothing_to_do: Future[None] = Future()
            nothing_to_do.set_result(None)
            return nothing_to_do

    def _add(
        self,
        key: Hashable,
        start: Callable[[], Future[None]],
        call: Call,
        answer: _Answer,
    ) -> None:
        with self._lock:
            if self._pending_calls >= MAX_CALLS:
                message = f"{MAX_CALLS} loads and unloads are waiting"
                call.fail(QueueFullError(message, RETRY_AFTER))
                return
            operation = self._waiting.setdefault(key, _Operation(start))
            operation.calls[call] = answer
            self._pending_calls += 1
            idle = self._threads - self._busy_threads
            if idle < len(self._waiting) and self._threads < MAX_THREADS:
                # It waits for the lock. One that the system refuses is not counted.
                threading.Thread(target=self._run_waiting, name="control", daemon=True).start()
                self._threads += 1
        call.on_cancel(lambda: self._leave(key, operation, call))

    def _leave(self, key: Hashable, operation: _Operation, call: Call) -> None:
        with self._lock:
            if operation.calls.pop(call, None) is None:
                return
            self._pending_calls -= 1
            if not operation.calls and self._waiting.get(key) is operation:
                del self._waiting[key]

    def _run_waiting(self) -> None:
        """Start what waits, one after the other, until nothing is left."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                operation = self._waiting.pop(next(iter(self._waiting)))
                self._busy_threads += 1
            self._run(operation)
            with self._lock:
                self._busy_threads -= 1

    def _run(self, operation: _Operation) -> None:
        try:
            future = operation.start()
        except Exception as error:  # an unexpected one is logged, and INTERNAL for the caller
            self._finish(operation, error)
        else:
            future.add_done_callback(lambda done: self._finish(operation, done.exception()))

    def _finish(self, operation: _Operation, error: BaseException | None) -> None:
        with self._lock:
            calls = dict(operation.calls)
            operation.calls.clear()
            self._pending_calls -= len(calls)
        for call, answer in calls.items():
            if isinstance(error, Exception):
                call.fail(answer.explain(error))
                continue
            try:
                body = answer.make_response()
            except Exception as unexpected:
                call.fail(unexpected)
            else:
                call.reply(body)
