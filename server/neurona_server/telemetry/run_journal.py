"""Which models run at this moment, in memory that outlives the process.

A supervisor makes a journal for each of its worker processes. The worker's threads write the model
that they run into a cell each, and the supervisor reads the cells after the worker has died: the
model that ran in the thread that crashed is the one to blame. A cell takes two writes to shared
memory a run, no lock and no system call.

The journal also counts the heartbeats of the worker, and holds the stacks that `faulthandler`
writes when the process crashes: they name the thread.
"""

import faulthandler
import json
import mmap
import os
import re
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

DUMP_SIGNAL = getattr(signal, "SIGUSR1", None)
"""Makes a worker write the stacks of all its threads, even if it holds the interpreter's lock."""

THREADS = 2048
"""Threads that may run models at the same time; further ones share a cell."""

VERSIONS = 4096
"""Model versions that may be loaded at the same time; further ones are not written."""

KEY_BYTES = 256
"""Bytes of a `ModelKey` as JSON: a name has at most 128 characters, a version 18 digits."""

# Offsets, in words of 8 bytes. A thread's cell: its identifier, and the number of what it runs.
_HEARTBEATS, _STALLED_MS = 0, 1
_CELLS = 2
_RUNS = _CELLS + 2 * THREADS
_KEYS = _RUNS + VERSIONS
_BYTES = 8 * _KEYS + KEY_BYTES * VERSIONS

_LOADING = 1 << 32
"""Added to the number in a cell while the version is loaded."""

_CRASHED_THREAD = re.compile(rb"^Current thread 0x([0-9a-f]+)", re.MULTILINE)
_ANY_THREAD = re.compile(r"^(?:Current t|T)hread 0x", re.MULTILINE)
_CRASH = b"Fatal Python error: "


class ModelKey(NamedTuple):
    """A version of a model, made from certain files."""

    name: str
    version: int
    files: str
    """Differs for different files: `files_digest` of their fingerprint."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class RunningModel(NamedTuple):
    """What a thread of a worker ran or loaded."""

    key: ModelKey
    runs: int
    """Runs that the worker has started of it, this one included."""
    loading: bool


def files_digest(fingerprint: Sequence[object]) -> str:
    """Return a short text that differs for different fingerprints of files."""
    return blake2b(repr(fingerprint).encode(errors="surrogateescape"), digest_size=8).hexdigest()


class RunJournal:
    """Shared memory and a file of stacks, both without a name, inherited by their descriptors."""

    def __init__(self, descriptor: int, stacks: int) -> None:
        """Open a journal.

        Args:
            descriptor: The memory.
            stacks: The file that `faulthandler` writes to.
        """
        self.descriptors = descriptor, stacks
        self._memory = mmap.mmap(descriptor, _BYTES)
        self._words = memoryview(self._memory).cast("Q")
        self._free_cells = deque(range(_CELLS, _CELLS + 2 * THREADS - 2, 2))
        self._free_numbers = deque(range(1, VERSIONS))
        self._thread = _ThreadCell(self)

    @classmethod
    def create(cls) -> "RunJournal":
        """Make an empty journal.

        Raises:
            OSError: There are no descriptors or no memory left.
        """
        descriptor = _open_nameless_file()
        try:
            os.truncate(descriptor, _BYTES)
            stacks = _open_nameless_file()
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor, stacks)

    def close(self) -> None:
        """Free the memory; the journal must not be used any more."""
        self._words.release()
        self._memory.close()
        for descriptor in self.descriptors:
            os.close(descriptor)

    # The worker's side:

    def write_stacks_at_crash(self) -> None:
        """Have the stacks of all threads written when this process crashes, or at DUMP_SIGNAL."""
        for descriptor in self.descriptors:
            os.set_inheritable(descriptor, False)
        faulthandler.enable(file=self.descriptors[1])
        if DUMP_SIGNAL is not None:
            faulthandler.register(DUMP_SIGNAL, file=self.descriptors[1])

    def beat(self, stalled_seconds: float = 0.0) -> None:
        """Count a heartbeat, with the time since which the transport has been hung."""
        self._words[_STALLED_MS] = int(stalled_seconds * 1000)
        self._words[_HEARTBEATS] += 1

    @contextmanager
    def load(self, key: ModelKey) -> Iterator["JournalEntry | None"]:
        """Mark that the calling thread loads a version while the context lasts.

        Yields:
            What marks its runs, for as long as the version is loaded, or None if there are too
            many versions.
        """
        try:
            number = self._free_numbers.popleft()
        except IndexError:
            yield None
            return
        entry = JournalEntry(self._words, number, self._thread, self._free_numbers.append)
        text = json.dumps(key).encode()[:KEY_BYTES].ljust(KEY_BYTES)
        start = 8 * _KEYS + KEY_BYTES * number
        self._memory[start : start + KEY_BYTES] = text
        self._words[_RUNS + number] = 0
        cell = self._thread.cell
        self._words[cell] = number | _LOADING
        try:
            yield entry
        except BaseException:
            entry.close()
            raise
        finally:
            self._words[cell] = 0

    # The supervisor's side:

    @property
    def heartbeats(self) -> int:
        return self._words[_HEARTBEATS]

    @property
    def stalled_seconds(self) -> float:
        """Seconds since which the transport had been hung at the last heartbeat."""
        return self._words[_STALLED_MS] / 1000

    @property
    def is_loading(self) -> bool:
        """Whether any thread loads a version."""
        return any(self._words[cell] & _LOADING for cell in self._used_cells())

    def running_models(self) -> list[RunningModel]:
        """Return what each thread ran or loaded, or does now."""
        models = [self._read_cell(cell) for cell in self._used_cells()]
        return [model for model in models if model is not None]

    def models_at_crash(self) -> list[RunningModel]:
        """Return what may have made the process crash, after its death.

        That is what the thread ran that crashed, if it is a thread of Python: nothing, if it ran no
        model. A thread of ONNX Runtime's own pool cannot be told to which run it belongs, and a
        process that was killed, or whose stack has overflowed, has written nothing: then it is
        what all threads ran.
        """
        match = _CRASHED_THREAD.search(self._read_stacks().rpartition(_CRASH)[2])
        if match is None:
            return self.running_models()
        thread = int(match.group(1), 16)
        for cell in self._used_cells():
            if self._words[cell - 1] == thread:
                model = self._read_cell(cell)
                return [] if model is None else [model]
        return []

    def stacks(self) -> list[str]:
        """Return the stacks that were written, one text a thread, the innermost call first."""
        parts = _ANY_THREAD.split(self._read_stacks().decode(errors="replace"))[1:]
        return [_join_calls(part) for part in parts]

    def stack_at_crash(self) -> str:
        """Return the stack of the thread that crashed, or "" if it is not known."""
        parts = _CRASHED_THREAD.split(self._read_stacks().rpartition(_CRASH)[2])
        return (
            _join_calls(parts[2].decode(errors="replace").partition("\n\n")[0]) if parts[2:] else ""
        )

    def _used_cells(self) -> Iterator[int]:
        """Return the positions of cells whose thread runs something."""
        return (cell for cell in range(_CELLS + 1, _RUNS, 2) if self._words[cell])

    def _read_cell(self, cell: int) -> RunningModel | None:
        value = self._words[cell]
        number = value & (_LOADING - 1)
        if not 0 < number < VERSIONS:
            return None
        start = 8 * _KEYS + KEY_BYTES * number
        try:
            key = ModelKey(*json.loads(self._memory[start : start + KEY_BYTES]))
        except (TypeError, ValueError):  # a crash may have overwritten any memory
            return None
        return RunningModel(key, self._words[_RUNS + number], bool(value & _LOADING))

    def _read_stacks(self) -> bytes:
        size = os.fstat(self.descriptors[1]).st_size
        return os.pread(self.descriptors[1], min(size, 1 << 20), 0)

    # What `_ThreadCell` uses:

    def take_cell(self) -> int:
        """Return the position of a cell for the calling thread."""
        try:
            first = self._free_cells.popleft()
        except IndexError:
            first = _RUNS - 2
            self._words[first] = 0
        else:
            self._words[first] = threading.get_ident()
        return first + 1

    def return_cell(self, cell: int) -> None:
        """Let another thread have the cell of one that has ended."""
        if cell != _RUNS - 1:
            self._free_cells.append(cell - 1)


class JournalEntry:
    """A version in the journal of this process."""

    def __init__(
        self,
        words: memoryview,
        number: int,
        thread: "_ThreadCell",
        release: Callable[[int], None],
    ) -> None:
        self._words, self._number, self._thread, self._release = words, number, thread, release
        self._runs = _RUNS + number
        self._open = [True]

    def run(self, function: Callable[[Input], Output], argument: Input) -> Output:
        """Call a function that runs the model, and return what it does."""
        words, cell = self._words, self._thread.cell
        outer = words[cell]
        words[self._runs] += 1  # another thread's may be lost: it is compared, not counted
        words[cell] = self._number
        try:
            return function(argument)
        finally:
            words[cell] = outer

    def close(self) -> None:
        """Forget the version, after its last run; may be called again."""
        if self._open:
            self._open.clear()
            self._release(self._number)


class _ThreadCell(threading.local):
    """The cell of each thread, which another one gets when the thread has ended."""

    def __init__(self, journal: RunJournal) -> None:  # called in each thread
        self.cell = journal.take_cell()
        self._owner = _CellOwner(journal, self.cell)


class _CellOwner:
    """Ends with its thread."""

    def __init__(self, journal: RunJournal, cell: int) -> None:
        self._journal, self._cell = journal, cell

    def __del__(self) -> None:
        self._journal.return_cell(self._cell)


def _join_calls(stack: str) -> str:
    return " < ".join(line.strip() for line in stack.split("\n") if line.startswith("  "))


def _open_nameless_file() -> int:
    """Return the descriptor of an empty file that exists as long as it is open."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("neurona")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
