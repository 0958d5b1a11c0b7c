"""Messages between a supervisor and one of its workers, over a socket pair that only they have.

Messages are pickled by multiprocessing.connection. That is safe here: the sockets have no name
and are inherited by the worker alone, so no caller can write to them; what callers sent is in a
message only as text (labels of metrics).

The file is alone because both sides import it, and the worker must not import the supervisor.
"""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing.connection import Connection, Pipe

from neurona_server.processes.snapshot import MetricsSnapshot
from neurona_server.telemetry.run_journal import ModelKey


@dataclass(frozen=True)
class StartOptions:
    """The first message to the worker: what its predecessors have left."""

    quarantine: Mapping[ModelKey, str]
    """Models not to load, and why."""
    requested_models: Sequence[str] | None = None
    """The models that calls had loaded if models are loaded explicitly; None at the first start."""
    served_versions: Sequence[tuple[str, int]] | None = None
    """The versions that were served, for which alone the start waits; None at the first start."""
    file_versions: int = -1
    """Descriptor of the numbers of single files, which the worker inherits; -1: there are none."""


class Command(Enum):
    """A message to the worker. The end of the channel means that the supervisor has ended."""

    REPORT_METRICS = auto()
    STOP = auto()
    """Stop as at SIGTERM."""


class WorkerState(Enum):
    """A message to the supervisor."""

    CONNECTED = auto()
    """The worker accepts commands."""
    READY = auto()
    """The worker serves."""
    DEVICES_LOST = auto()
    """The worker cannot use any GPU any more; a new process may."""


@dataclass(frozen=True)
class MetricsReport:
    """A message to the supervisor: the worker's metrics."""

    snapshot: MetricsSnapshot
    requested: bool
    """False for those that a worker sends by itself: now and then, and when it has stopped."""


@dataclass(frozen=True)
class LoadedModels:
    """A message to the supervisor, at each change while the worker serves."""

    requested: Sequence[str]
    """The models that calls have loaded."""
    served: Sequence[tuple[str, int]]
    """All versions that are loaded, by model and number."""


Message = StartOptions | Command | WorkerState | MetricsReport | LoadedModels


class Channel:
    """One end. Any thread may send; one thread receives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    @classmethod
    def pair(cls) -> tuple["Channel", Connection]:
        """Return a channel, and the other end for a child process to inherit."""
        ours, theirs = Pipe()
        return cls(ours), theirs

    @classmethod
    def inherited(cls, descriptor: int) -> "Channel":
        """Return the end that this process inherited under that file descriptor."""
        return cls(Connection(descriptor))

    def send(self, message: Message) -> None:
        """Send a message, or do nothing if the peer has ended: the receiving thread notices."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self) -> Message | None:
        """Wait for the next message; return None if the peer has ended or sent invalid data."""
        try:
            message = self._connection.recv()
        except Exception:  # the peer closed its end, or died while it was sending
            return None
        return message if isinstance(message, Message) else None

    def close(self) -> None:
        """Close this end, after a message that another thread is sending."""
        with self._sending:  # a connection that is closed meanwhile raises TypeError
            self._connection.close()
