"""Many open sessions with a step a second each, from one process of few microseconds a step.

    python session_load.py < LOAD > OUTCOME

reads a pickled `SessionLoad` and writes a pickled `SessionOutcome`.
"""

import math
import os
import pickle
import random
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from pathlib import Path

from http2 import (
    DATA,
    Connection,
    encode_headers,
    encode_message,
    parse_status,
)

SESSION = "/neurona.v1.Prediction/Session"
CONNECTIONS = 16
RETRY_SECONDS = 0.01
"""Until a step is tried again whose predecessor has no answer."""


@dataclass(frozen=True)
class SessionLoad:
    """Sessions that are held open for a while.

    Attributes:
        address: The server's, HOST:PORT.
        sessions: How many.
        start: The serialized first message of each, without steps.
        trajectories: Serialized messages of one step each; session i sends those of i modulo their
            number, in order, and no more than there are.
        interval: Seconds between the steps of a session, which begin at random times.
        seconds: For which they are held.
        open_rate: Sessions that are opened per second.
    """

    address: str
    sessions: int
    start: bytes
    trajectories: Sequence[Sequence[bytes]]
    interval: float = 1.0
    seconds: float = 20.0
    open_rate: float = 2000.0


@dataclass
class SessionOutcome:
    """What became of the steps.

    Attributes:
        latencies: Seconds from when a step should have been sent to its answer, in any order.
        sent: The steps that were sent.
        answers: The latest answer of each session, as bytes, and the number of steps until then.
        ended: Sessions that the server ended, by gRPC's status.
        open_seconds: Until all were open.
        opened: Sessions whose first message was answered.
        cpu_seconds: Of the process that made the load.
    """

    latencies: list[float] = field(default_factory=list)
    sent: int = 0
    answers: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    open_seconds: float = 0.0
    opened: int = 0
    cpu_seconds: float = 0.0


def start_session_load(load: SessionLoad) -> subprocess.Popen[bytes]:
    """Starts a process that makes the load; `finish_session_load` waits for it."""
    command = [sys.executable, str(Path(__file__).resolve())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(load))
    process.stdin.close()
    return process


def finish_session_load(process: subprocess.Popen[bytes]) -> SessionOutcome:
    """Returns what the process says once it has ended.

    Raises:
        RuntimeError: It fails.
    """
    assert process.stdout is not None
    written = process.stdout.read()
    if process.wait():
        raise RuntimeError("the load failed (its error is above)")
    outcome: SessionOutcome = pickle.loads(written)  # noqa: S301 of our own process
    return outcome


class _Sessions:
    """The sessions of a load, and what is known of each."""

    def __init__(self, load: SessionLoad) -> None:
        self.load = load
        self.outcome = SessionOutcome()
        self.connections = [Connection(load.address) for _ in range(CONNECTIONS)]
        self.streams: list[int] = []
        self.by_stream: list[dict[int, int]] = [{} for _ in self.connections]
        self.messages = [
            [encode_message(step) for step in trajectory] for trajectory in load.trajectories
        ]
        self.steps = [0] * load.sessions
        self.due: list[float] = [math.inf] * load.sessions
        """When the step without an answer should have been sent; inf if there is none."""
        self._partial: dict[int, bytes] = {}
        self._sockets = {one.socket: index for index, one in enumerate(self.connections)}

    def open(self, session: int, headers: bytes) -> None:
        index = session % CONNECTIONS
        stream = self.connections[index].open_stream(headers)
        self.connections[index].send_message(stream, encode_message(self.load.start))
        self.streams.append(stream)
        self.by_stream[index][stream] = session

    def send_step(self, session: int, due: float) -> None:
        trajectory = self.messages[session % len(self.messages)]
        message = trajectory[self.steps[session]]
        self.steps[session] += 1
        self.due[session] = due
        self.connections[session % CONNECTIONS].send_message(self.streams[session], message)
        self.outcome.sent += 1

    def poll(self, seconds: float) -> None:
        """Waits for answers for so long at most, and notes them."""
        writers = [one.socket for one in self.connections if one.wants_to_write]
        readable, writable, _ = select.select(self._sockets, writers, (), max(0.0, seconds))
        for ready in writable:
            self.connections[self._sockets[ready]].write_unsent()
        for ready in readable:
            index = self._sockets[ready]
            frames = self.connections[index].read_frames()
            now = time.perf_counter()
            for kind, flags, stream, payload in frames:
                session = self.by_stream[index].get(stream)
                if session is None:
                    continue
                if kind == DATA:
                    self._note_answer(session, payload, now)
                elif flags & 1 or kind != 1:  # the end of the stream, or its reset
                    self.outcome.ended[session] = parse_status(kind, payload)
                    del self.by_stream[index][stream]

    def _note_answer(self, session: int, payload: bytes, now: float) -> None:
        if session in self._partial:
            payload = self._partial.pop(session) + payload
        while len(payload) >= 5:
            size = 5 + int.from_bytes(payload[1:5], "big")
            if len(payload) < size:
                break
            if not self.steps[session]:
                self.outcome.opened += 1
            else:
                self.outcome.latencies.append(now - self.due[session])
                self.due[session] = math.inf
                self.outcome.answers[session] = payload[5:size], self.steps[session]
            payload = payload[size:]
        if payload:
            self._partial[session] = payload


def hold_sessions(load: SessionLoad) -> SessionOutcome:
    """Opens the sessions, sends their steps in time, and returns what became of them.

    A step is not sent before the one before it is answered: it is late then, which counts.
    """
    sessions = _Sessions(load)
    headers = encode_headers(SESSION)
    begin = time.perf_counter()
    for session in range(load.sessions):
        sessions.open(session, headers)
        until = begin + session / load.open_rate
        while session % 16 == 0:
            sessions.poll(until - time.perf_counter())
            if time.perf_counter() >= until:
                break
    limit = time.perf_counter() + 60
    while sessions.outcome.opened + len(sessions.outcome.ended) < load.sessions:
        sessions.poll(0.1)
        if time.perf_counter() > limit:
            raise RuntimeError(f"only {sessions.outcome.opened} sessions were opened")
    sessions.outcome.open_seconds = time.perf_counter() - begin
    print(f"{sessions.outcome.opened} sessions are open", file=sys.stderr, flush=True)
    _send_steps(sessions)
    for connection in sessions.connections:
        connection.socket.close()
    sessions.outcome.cpu_seconds = sum(os.times()[:2])
    return sessions.outcome


def _send_steps(sessions: _Sessions) -> None:
    load = sessions.load
    generator = random.Random(0)  # noqa: S311 a repeatable load
    start = time.perf_counter()
    until = start + load.seconds
    # When to try, when it should have been sent, and the session.
    phases = [start + generator.random() * load.interval for _ in range(load.sessions)]
    turns = [(phase, phase, session) for session, phase in enumerate(phases)]
    heapify(turns)
    while turns[0][0] < until:
        now = time.perf_counter()
        while turns[0][0] <= now:
            _, due, session = turns[0]
            if sessions.due[session] < math.inf:  # its last step has no answer yet
                heapreplace(turns, (now + RETRY_SECONDS, due, session))
                continue
            sessions.send_step(session, due)
            heapreplace(turns, (due + load.interval, due + load.interval, session))
        sessions.poll(min(turns[0][0], until) - time.perf_counter())
    end = time.perf_counter() + 10
    while any(due < math.inf for due in sessions.due) and time.perf_counter() < end:
        sessions.poll(0.1)


if __name__ == "__main__":
    # Pickled, the classes have the name of the module that others import.
    sys.modules["session_load"] = sys.modules["__main__"]
    for one in (SessionLoad, SessionOutcome):
        one.__module__ = "session_load"
    load = pickle.load(sys.stdin.buffer)  # noqa: S301 of the process that started this one
    sys.stdout.buffer.write(pickle.dumps(hold_sessions(load)))
