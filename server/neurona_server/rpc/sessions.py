"""The open sessions of a server, each with the state of a caller's sequence, for every protocol.

A step of a session is a request that has the state among its inputs and gets the next state as its
last output: so steps of different sessions share runs, with each other and with requests that are
whole sequences. A session has one step in flight at a time. It stays on the model version that it
began with, also when another one replaces that. Without steps it ends after a while, and the one
idle longest ends when there are too many: no session has a thread or a timer of its own.

It is one file since sessions have no lock of their own, but share the one of their store.
"""

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

import numpy as np

from neurona_server.batching.batch import BatchOutputs, RowSlice
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    InvalidValueError,
    QueueFullError,
    StatelessModelError,
    UnavailableError,
)
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorType
from neurona_server.rpc.submission import Submission
from neurona_server.sequences.form import STATE, SequenceForm
from neurona_server.sequences.state_bytes import SequenceState, StateCodec
from neurona_server.telemetry.session_metrics import EvictionReason

log = logging.getLogger(__name__)

SWEEPS = 10
"""Sweeps in each idle timeout: a session ends that much later than it says, at most."""

MAX_SWEEP_SECONDS = 10.0
"""Interval of sweeps with a long timeout."""

MIN_IDLE_SHARE = 0.1
"""Share of the idle timeout for which a session must have been idle to end for another one: so
callers that begin many do not end those in use."""

MAX_WAITING_STEPS = 4096
"""Steps of one session that may wait for the one in flight."""

RETRY_AFTER = 0.1
"""Seconds after which such a step may be sent again."""

MAX_RESOLUTIONS = 3
"""Versions that a new session tries: each may be replaced at that moment."""


@dataclass(frozen=True)
class SessionLimits:
    """The limits that the server's options set."""

    max_sessions: int = 16384
    """Sessions of all models that may be open; one with several rows counts as that many."""

    idle_timeout: float = 300.0
    """Seconds without a step after which a session ends; 0: it stays."""


class SequenceSession:
    """A caller's sequence: its model version, and the state after its steps so far.

    `claim` and `release` keep its steps in order: only who has claimed it reads or changes the
    state. It is an entry of `SessionStore`, which makes and ends it. Ten thousand may be open: it
    has no lock and no buffers of its own.
    """

    __slots__ = (
        "_is_handing_over",
        "_releases",
        "_store",
        "_waiting",
        "busy",
        "end_reason",
        "idle_timeout",
        "is_open",
        "key",
        "last_use",
        "model",
        "on_end",
        "owner",
        "places",
        "rows",
        "steps",
        "values",
    )

    def __init__(
        self,
        store: "SessionStore",
        model: Model,
        key: Hashable | None,
        on_end: Callable[[str], None] | None,
        state: bytes,
        now: float,
    ) -> None:
        """Make it, for `SessionStore.open`.

        Raises:
            StatelessModelError: The model has no state.
            InvalidArgumentError: The state is none of this version.
        """
        imported = self._import_state(model, state)
        self.model = model
        self.key = key
        self.on_end = on_end
        self.values: Array | None = None if imported is None else imported.values
        """The state, float32 (rows, size); None before the first step: zeros."""
        self.rows = 0 if imported is None else len(imported.values)
        """0 until a step or an imported state shows it."""
        self.places = max(1, self.rows)
        """Of `SessionLimits.max_sessions`."""
        self.owner = ""
        """The name of its caller's grant."""
        self.is_open = False
        """Whether it has begun, and neither its caller nor the server has ended it."""
        self.steps = 0 if imported is None else imported.steps
        self.busy = False
        """Whether a step is in flight."""
        self.end_reason = ""
        """Why it has ended, "" if it has not."""
        self.last_use = now
        declared = model.settings.sequences
        idle_timeout = None if declared is None else declared.idle_seconds
        self.idle_timeout = store.limits.idle_timeout if idle_timeout is None else idle_timeout
        """Seconds without a step after which it ends; 0: it stays."""
        self._store = store
        self._waiting: deque[Callable[[], None]] | None = None
        self._releases = 0
        self._is_handing_over = False

    def claim(self, waiting: Callable[[], None] | None = None) -> bool:
        """Return whether the caller may run a step now, and must `release` the session then.

        If not, `waiting` is called when it may, unless it is None: steps get their turns in order.
        The session may have ended by then.

        Raises:
            QueueFullError: Too many steps wait.
        """
        with self._store.lock:
            self._store.note_use(self)
            if not self.busy:
                self.busy = True
                return True
            if waiting is not None:
                if self._waiting is None:
                    self._waiting = deque()
                if len(self._waiting) >= MAX_WAITING_STEPS:
                    raise QueueFullError(
                        f"too many steps: {MAX_WAITING_STEPS} of this session wait (expected a "
                        "caller that waits for its answers)",
                        RETRY_AFTER,
                    )
                self._waiting.append(waiting)
        return False

    def release(self) -> None:
        """Let the next step run, after one that has its response or its error."""
        lock = self._store.lock
        with lock:
            self._store.note_use(self)
            if self._waiting is None:
                self.busy = False
                return
            self._releases += 1
            if self._is_handing_over:  # the step has failed at once: the loop below goes on
                return
            self._is_handing_over = True
        while True:
            with lock:
                if not self._releases:
                    self._is_handing_over = False
                    return
                self._releases -= 1
                if not self._waiting:
                    self.busy, self._waiting = False, None
                    continue
                following = self._waiting.popleft()
            following()

    def check_rows(self, input_types: Mapping[str, TensorType]) -> None:
        """Check the rows of a step, whose inputs fit the model. See `check_row_count`."""
        self.check_row_count(_count_rows(self._form, input_types))

    def check_row_count(self, rows: int) -> None:
        """Check the number of rows of a step.

        Raises:
            InvalidArgumentError: It differs from that before.
        """
        if self.rows and rows != self.rows:
            raise InvalidArgumentError(
                f"row count changed: the step has {rows} rows (expected {self.rows}, as the "
                "session's steps before)"
            )

    def check_inputs(self, inputs: Inputs) -> None:
        """Check the lengths of a step that its caller has sent, and that there is place for it.

        A length of 0 would be valid alone, and would lose the state of its row.

        Raises:
            InvalidValueError: A row has no step, or more than its array.
            InvalidArgumentError: There are more rows than max_sessions.
            QueueFullError: There is no place for the states of its rows.
        """
        rows = self._count_input_rows(inputs)
        if rows > self.places:  # now: types alone may be those of data that are not there
            self._store.add_places(self, rows)
        form = self.model.sequences
        if form is None or not (name := form.lengths_input):
            return
        sequences, axis = next(iter(form.time_axes.items()))
        steps = inputs[sequences].shape[axis]
        for row, length in enumerate(inputs[name].reshape(-1).tolist()):
            if not 1 <= length <= steps:
                raise InvalidValueError(
                    f"input {name!r} row {row}: length {length} (expected 1 to {steps}, the steps "
                    f"of {sequences!r})"
                )

    def _count_input_rows(self, inputs: Inputs) -> int:
        return len(inputs[next(iter(self._form.time_axes))])

    @staticmethod
    def _import_state(model: Model, state: bytes) -> SequenceState | None:
        codec = state_codec(model)
        return codec.decode(state) if state else None

    def new_step(self, *arguments: Any) -> "SessionStep":
        """Make a step of the arguments of `Submission`. The session must be claimed."""
        return SessionStep(self, *arguments)

    def add_state(self, inputs: Inputs) -> Inputs:
        """Return the inputs of a step, with the state before it."""
        if (values := self.values) is None:
            name = next(iter(self._form.time_axes))
            values = np.zeros((len(inputs[name]), self._form.state_size), np.float32)
        return {**inputs, STATE: values}

    def count_steps(self, inputs: Inputs) -> int:
        """Return how many steps of the sequence the inputs of a request have."""
        name, axis = next(iter(self._form.time_axes.items()))
        return int(inputs[name].shape[axis])

    def without_state(self, outputs: Outputs) -> Outputs:
        """Return the outputs of a step that its response may have."""
        return _without_state(outputs)

    def commit(self, inputs: Inputs, outputs: Outputs) -> None:
        """Set the state to that after a step; called once its response is made."""
        # A copy: a slice of a batch's states would keep those of all its sessions in memory.
        self.values = outputs[-1].copy()
        self.rows = len(self.values)
        self.count(self.count_steps(inputs))

    def count(self, steps: int) -> None:
        """Count so many further steps."""
        self.steps += steps
        self.model.metrics.sessions.steps.inc(steps)

    def export_state(self) -> bytes:
        """Return the state as bytes for its caller; none before the first step."""
        if self.values is None:
            return b""
        return state_codec(self.model).encode(SequenceState(self.values, self.steps))

    def close(self) -> None:
        """End it from its caller's side, unless it has ended before. Thread-safe."""
        self._store.close(self)

    def end(self, reason: str) -> None:
        """See `HeldSession.end`: its version is unloaded."""
        self._store.evict(self, "unloaded", reason)

    @property
    def _form(self) -> SequenceForm:
        form = self.model.sequences
        assert form is not None  # noqa: S101  for the type checker: `SessionStore.open` checks it
        return form


class SessionStep(Submission):
    """A step of a session, which must be claimed: who gets the response releases it.

    A step that fails leaves the state as it was.
    """

    __slots__ = ("_session",)

    is_shadowed = False
    """A shadow version has no state to run it with."""

    def __init__(self, session: SequenceSession, *arguments: Any) -> None:
        """Make it of the arguments of a Submission, whose inputs get the state."""
        super().__init__(*arguments)
        self._session = session
        own = self.inputs
        self.inputs = session.add_state(own)
        self.nbytes += sum(array.nbytes for name, array in self.inputs.items() if name not in own)

    def write_response(self, outputs: Outputs) -> bytes:
        # The response first: a caller that gets an error sends the step again.
        response = self.response_writer(self._session.without_state(outputs))
        self._session.commit(self.inputs, outputs)
        return response


class SessionStore:
    """The sessions of all models that are open. Thread-safe."""

    def __init__(
        self,
        limits: SessionLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or SessionLimits()
        self._clock = clock
        self.lock = threading.Lock()
        """Guards the entries, and the turns of each session's steps."""
        # Those of each owner by their last use, and the places that these have.
        self._sessions: dict[str, OrderedDict[SequenceSession, None]] = {}
        self._places: dict[str, int] = {}
        # All by their last use, for each idle timeout, without those that have none.
        self._expiring: dict[float, OrderedDict[SequenceSession, None]] = {}
        self._keyed: dict[Hashable, SequenceSession] = {}
        self._end_reasons: OrderedDict[Hashable, str] = OrderedDict()
        self._sweeper: threading.Thread | None = None
        self._is_stopping = False
        self._sweep_early = threading.Event()  # set to sweep before the interval has passed

    def __len__(self) -> int:
        with self.lock:
            return sum(map(len, self._sessions.values()))

    def open(
        self,
        resolve: Callable[[], Model],
        *,
        owner: str = "",
        key: Hashable | None = None,
        on_end: Callable[[str], None] | None = None,
        state: bytes = b"",
        new_session: "NewSession" = SequenceSession,
    ) -> SequenceSession:
        """Begin a session.

        Args:
            resolve: Returns the model version. Called again if that is replaced at this moment.
            owner: The name of the caller's grant.
            key: What `find` finds it by, if its caller names it in each step.
            on_end: Called with the reason when the server ends it, from any thread.
            state: A state that was exported, to go on from; empty: the start of a sequence.
            new_session: Makes it once the model is known.

        Raises:
            StatelessModelError: The model has no state.
            InvalidArgumentError: The state is none of this version.
            AlreadyExistsError: There is a session with this key.
            QueueFullError: There are max_sessions, all of which are in use; or the caller has most.
            UnavailableError: The version is being unloaded.
            NeuronaError: What `resolve` raises.
        """
        for remaining in reversed(range(MAX_RESOLUTIONS)):
            model = resolve()
            try:
                session = new_session(self, model, key, on_end, state, self._clock())
                session.owner = owner
                return self._open(session)
            except UnavailableError:
                if not remaining or resolve() is model:
                    raise
        raise AssertionError

    def find(self, key: Hashable) -> SequenceSession | None:
        """Return the open session of a key, None if there is none."""
        return self._keyed.get(key)

    def end_reason(self, key: Hashable) -> str:
        """Return why the last session of a key has ended; "" if there was none, as far as known."""
        return self._end_reasons.get(key, "")

    def forget_key(self, session: SequenceSession) -> None:
        """Let another session have the key of one that is about to end."""
        with self.lock:
            if session.is_open and session.key is not None:
                del self._keyed[session.key]
            session.key = None

    def close(self, session: SequenceSession, reason: str = "session ended by its caller") -> None:
        """See `SequenceSession.close`; the reason is for `end_reason`."""
        with self.lock:
            is_open = self._remove(session, reason)
        if is_open:
            _let_go(session)

    def evict(self, session: SequenceSession, label: EvictionReason, reason: str) -> None:
        """End a session from the server's side. Its step in flight, if there is one, goes on."""
        with self.lock:
            is_open = self._remove(session, reason)
        if is_open:
            _end_for_server(session, label, reason)

    def note_use(self, session: SequenceSession) -> None:
        """Note that a session is in use now. The lock must be held."""
        session.last_use = self._clock()
        if session.is_open:
            self._sessions[session.owner].move_to_end(session)
            if session.idle_timeout:
                self._expiring[session.idle_timeout].move_to_end(session)

    def sweep(self) -> None:
        """End the sessions that have been idle for too long."""
        with self.lock:
            expiring = [*self._expiring.items()]
        for timeout, sessions in expiring:
            reason = f"session expired: idle for {timeout:g} s ({self._timeout_source(timeout)})"
            with self.lock:
                idle = [*self._idle_sessions(sessions, timeout)]
                for session in idle:
                    self._remove(session, reason)
            for session in idle:
                _end_for_server(session, "idle", reason)

    def stop(self) -> None:
        """End the thread that sweeps."""
        self._is_stopping = True
        self._sweep_early.set()

    def add_places(self, session: SequenceSession, places: int) -> None:
        """Give a session, which has a step in flight, that many places. See `check_inputs`."""
        with self.lock:
            added = places - session.places
            if not session.is_open or added <= 0:
                return
            reason = self._displacement_reason
            displaced = self._choose_displaced(session.owner, added)
            for one in displaced:
                self._remove(one, reason)
            session.places = places
            self._places[session.owner] += added
        for one in displaced:
            _end_for_server(one, "full", reason)

    def _open(self, session: SequenceSession) -> SequenceSession:
        model, owner, key = session.model, session.owner, session.key
        reason = self._displacement_reason
        with self.lock:
            if key is not None and key in self._keyed:
                raise AlreadyExistsError("session begun twice: it has not ended")
            if session.idle_timeout:
                self._start_sweeper()
            displaced = self._choose_displaced(owner, session.places)
            for one in displaced:
                self._remove(one, reason)
            session.is_open = True
            self._sessions.setdefault(owner, OrderedDict())[session] = None
            self._places[owner] = self._places.get(owner, 0) + session.places
            if session.idle_timeout:
                if session.idle_timeout < min(self._expiring, default=math.inf):
                    self._sweep_early.set()  # its interval is shorter
                self._expiring.setdefault(session.idle_timeout, OrderedDict())[session] = None
            if key is not None:
                self._keyed[key] = session
                self._end_reasons.pop(key, None)
        model.metrics.sessions.open_sessions.inc()
        for one in displaced:
            _end_for_server(one, "full", reason)
        try:
            model.open_sessions.add(session)
        except UnavailableError:
            self.close(session)
            raise
        if not session.is_open:  # its caller has ended it meanwhile
            model.open_sessions.discard(session)
        return session

    @property
    def _displacement_reason(self) -> str:
        limit = self.limits.max_sessions
        return f"session displaced: of {limit} it was idle longest (the option max_sessions)"

    def _choose_displaced(self, owner: str, places: int) -> list[SequenceSession]:
        """Return the sessions to end for further `places` of an owner. The lock must be held.

        They are those idle longest of the owner that has most: so nobody takes those of others who
        have fewer, or keeps all by using them.

        Raises:
            InvalidArgumentError: There never are so many.
            QueueFullError: All are in use.
        """
        limit = self.limits.max_sessions
        missing = sum(self._places.values()) + places - limit
        if missing <= 0:
            return []
        if places > limit:
            raise InvalidArgumentError(
                f"session too large: {places} further rows (expected at most {limit}, the "
                "option max_sessions)"
            )
        counts = {**self._places, owner: self._places.get(owner, 0) + places}
        candidates: dict[str, Iterator[SequenceSession]] = {}
        displaced: list[SequenceSession] = []
        min_idle = MIN_IDLE_SHARE * self.limits.idle_timeout
        while missing > 0:
            largest = max(counts, key=lambda one: (counts[one], one == owner))
            if largest not in candidates:
                seconds = min_idle if largest == owner else 0.0
                candidates[largest] = self._idle_sessions(self._sessions.get(largest, ()), seconds)
            if (session := next(candidates[largest], None)) is None:
                raise QueueFullError(
                    f"too many sessions: {limit} are open and in use (expected fewer, the option "
                    "max_sessions; one with several rows counts as that many)",
                    min_idle,
                )
            displaced.append(session)
            counts[largest] -= session.places
            missing -= session.places
        return displaced

    def _idle_sessions(
        self, sessions: Iterable[SequenceSession], seconds: float
    ) -> Iterator[SequenceSession]:
        """Yield those without a step for so long, and none in flight; the longest first."""
        end = self._clock() - seconds
        recent = takewhile(lambda session: session.last_use <= end, sessions)
        return (session for session in recent if not session.busy)

    def _remove(self, session: SequenceSession, reason: str) -> bool:
        """Remove a session, and return whether it was open. The lock must be held."""
        if not session.is_open:
            return False
        session.is_open = False
        session.end_reason = reason
        sessions = self._sessions[session.owner]
        del sessions[session]
        self._places[session.owner] -= session.places
        if not sessions:
            del self._sessions[session.owner], self._places[session.owner]
        if session.idle_timeout:
            expiring = self._expiring[session.idle_timeout]
            del expiring[session]
            if not expiring:
                del self._expiring[session.idle_timeout]
        if session.key is not None:
            del self._keyed[session.key]
            self._end_reasons[session.key] = reason
            if len(self._end_reasons) > self.limits.max_sessions:
                self._end_reasons.popitem(last=False)
        return True

    def _timeout_source(self, timeout: float) -> str:
        if timeout == self.limits.idle_timeout:
            return "the option session_idle_timeout_s"
        return "max_sequence_idle_microseconds of its config.pbtxt"

    def _start_sweeper(self) -> None:
        if self._sweeper is None and not self._is_stopping:
            sweeper = threading.Thread(target=self._sweep, name="sessions", daemon=True)
            sweeper.start()  # may fail, and the next session tries again
            self._sweeper = sweeper

    def _sweep(self) -> None:
        """Sweep until there are no sessions that may expire."""
        while True:
            self._sweep_early.wait(self._sweep_period())
            self._sweep_early.clear()
            if self._is_stopping:
                return
            try:
                self.sweep()
            except Exception:  # a bug: the others must still end
                log.exception("sessions could not be swept")
            with self.lock:
                if not self._expiring:
                    self._sweeper = None
                    return

    def _sweep_period(self) -> float:
        with self.lock:
            timeout = min(self._expiring, default=MAX_SWEEP_SECONDS)
        return min(timeout / SWEEPS, MAX_SWEEP_SECONDS)


class NewSession(Protocol):
    """Makes a session of the arguments of `SequenceSession`, with the same errors."""

    def __call__(
        self,
        store: SessionStore,
        model: Model,
        key: Hashable | None,
        on_end: Callable[[str], None] | None,
        state: bytes,
        now: float,
    ) -> SequenceSession: ...


def state_codec(model: Model) -> StateCodec:
    """Return what writes and reads the states of a model. Raises StatelessModelError."""
    if model.state_codec is None:
        form = model.sequences
        reason = form.stateless_reason if form is not None else "it has no recurrent layers"
        raise StatelessModelError(
            f"model {model.name!r} has no sessions: {reason} (expected a recurrent model whose "
            "state can be opened)"
        )
    return model.state_codec


def _count_rows(form: SequenceForm, input_types: Mapping[str, TensorType]) -> int:
    name = next(iter(form.time_axes))
    return input_types[name][1][0]


def _let_go(session: SequenceSession) -> None:
    """Note that a session, which was removed, does not hold its version any more."""
    session.on_end = None  # it refers to who holds the session: a cycle
    session.model.open_sessions.discard(session)
    session.model.metrics.sessions.open_sessions.dec()


def _end_for_server(session: SequenceSession, label: EvictionReason, reason: str) -> None:
    """Report to the caller of a session, which was removed, that the server has ended it."""
    on_end = session.on_end
    session.model.metrics.sessions.evictions[label].inc()
    _let_go(session)
    if on_end is not None:
        on_end(reason)


def _without_state(outputs: Outputs) -> Outputs:
    if not isinstance(outputs, RowSlice):  # of a request that ran in parts
        return outputs[:-1]
    batch = outputs.batch
    others: BatchOutputs | None = batch.cache.get("without state")
    if others is None:
        others = batch.cache["without state"] = BatchOutputs(batch.outputs[:-1], batch.run_rows)
    return RowSlice(others, outputs.start, outputs.rows)
