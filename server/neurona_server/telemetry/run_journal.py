"""Which models run at this moment, in memory that outlives the process.

A supervisor makes a journal for each of its worker processes. The worker's threads write the model
that they run into a cell each, and the supervisor reads the cells after the worker has died. A cell
takes two writes to shared memory a run, no lock and no system call.

The journal also counts the heartbeats of the worker, and holds the stack that `faulthandler` writes
of the thread that crashes. Each model version is run by a function of its own, whose name has the
version's number: so the stack tells which model to blame.
"""

import faulthandler
import json
import mmap
import os
import re
import signal
import tempfile
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

Output = TypeVar("Output")

DUMP_SIGNAL = getattr(signal, "SIGUSR1", None)
"""Makes a worker write the stacks of all its threads, even if it holds the interpreter's lock."""

THREADS = 2048
"""Threads that may run models at the same time; further ones share a cell."""

VERSIONS = 4096
"""Model versions that may be loaded at the same time; further ones are not written."""

KEY_BYTES = 256
"""Bytes of a `ModelKey` as JSON: a name has at most 128 characters, a version 18 digits."""

STACK_BYTES = 1 << 20
"""Bytes that are read of the stacks."""

# Offsets, in words of 8 bytes. A thread's cell has the number of what it runs.
_HEARTBEATS, _STALLED_MS = 0, 1
_CELLS = 2
_RUNS = _CELLS + THREADS
_KEYS = _RUNS + VERSIONS
_BYTES = 8 * _KEYS + KEY_BYTES * VERSIONS

_LOADING = 1 << 32
"""Added to the number in a cell while the version is loaded."""

_FUNCTION = "journal_entry_"
_NUMBER = re.compile(rf" in {_FUNCTION}([0-9]+)\b")
_CRASH = "Fatal Python error: "
_CRASHED_THREAD = "Stack (most recent call first):"
_ANY_THREAD = re.compile(r"^(?:Current t|T)hread 0x", re.MULTILINE)


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
        self._free_cells = deque(range(_CELLS, _RUNS - 1))
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
        """Have the stack of the thread written that crashes, and those of all at DUMP_SIGNAL."""
        for descriptor in self.descriptors:
            os.set_inheritable(descriptor, False)
        # The other threads run on meanwhile: to read their stacks could crash again.
        faulthandler.enable(file=self.descriptors[1], all_threads=False)
        if DUMP_SIGNAL is not None:
            faulthandler.register(DUMP_SIGNAL, file=self.descriptors[1])

    def beat(self, stalled_seconds: float = 0.0) -> None:
        """Count a heartbeat, with the time since which the transport has been hung."""
        self._words[_STALLED_MS] = int(stalled_seconds * 1000)
        self._words[_HEARTBEATS] += 1

    def load(self, key: ModelKey, make: Callable[["JournalEntry | None"], Output]) -> Output:
        """Call a function that loads a version, and return what it does.

        The function gets what marks runs, for as long as the version is loaded, or None if there
        are too many versions.
        """
        try:
            number = self._free_numbers.popleft()
        except IndexError:
            return make(None)
        text = json.dumps(key).encode()[:KEY_BYTES].ljust(KEY_BYTES)
        start = 8 * _KEYS + KEY_BYTES * number
        self._memory[start : start + KEY_BYTES] = text
        entry = JournalEntry(self._words, number, self._thread, self._free_numbers.append)
        try:
            result: Output = entry.load(make, entry)
        except BaseException:
            entry.close()
            raise
        return result

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
        models = [self._read_model(self._words[cell]) for cell in self._used_cells()]
        return [model for model in models if model is not None]

    def models_at_crash(self) -> list[RunningModel]:
        """Return what may have made the process crash, after its death.

        That is what the thread ran that crashed, if it is a thread of Python: nothing, if it ran no
        model. Of a thread of ONNX Runtime's own pool nobody knows to which run it belongs, and a
        process that was killed, or whose stack has overflowed, has written nothing: then it is
        what all threads ran.
        """
        stack = self.stack_at_crash()
        return self.models_in_stack(stack) if stack else self.running_models()

    def models_in_stack(self, stack: str) -> list[RunningModel]:
        """Return the model that the thread of a stack runs, if any."""
        if (match := _NUMBER.search(stack)) is None:
            return []
        number = int(match.group(1))
        loading = number | _LOADING
        is_loaded = all(self._words[cell] != loading for cell in self._used_cells())
        model = self._read_model(number if is_loaded else loading)
        return [] if model is None else [model]

    def stacks(self) -> list[str]:
        """Return the stacks that were written, one text a thread, the innermost call first."""
        parts = _ANY_THREAD.split(self._read_stacks())[1:]
        return [_join_calls(part) for part in parts]

    def stack_at_crash(self) -> str:
        """Return the stack of the thread that crashed, or "" if it is not known."""
        crash = self._read_stacks().partition(_CRASH)[2]
        return _join_calls(crash.partition(_CRASHED_THREAD)[2])

    def _used_cells(self) -> Iterator[int]:
        """Return the positions of cells whose thread runs something."""
        return (cell for cell in range(_CELLS, _RUNS) if self._words[cell])

    def _read_model(self, value: int) -> RunningModel | None:
        """Return what the value of a cell means."""
        number = value & (_LOADING - 1)
        if not 0 < number < VERSIONS:
            return None
        start = 8 * _KEYS + KEY_BYTES * number
        try:
            key = ModelKey(*json.loads(self._memory[start : start + KEY_BYTES]))
        except (TypeError, ValueError):  # a crash may have overwritten any memory
            return None
        return RunningModel(key, self._words[_RUNS + number], bool(value & _LOADING))

    def _read_stacks(self) -> str:
        return os.pread(self.descriptors[1], STACK_BYTES, 0).decode(errors="replace")

    # What `_ThreadCell` uses:

    def take_cell(self) -> int:
        """Return the position of a cell for the calling thread."""
        try:
            return self._free_cells.popleft()
        except IndexError:
            return _RUNS - 1

    def return_cell(self, cell: int) -> None:
        """Let another thread have the cell of one that has ended."""
        if cell != _RUNS - 1:
            self._free_cells.append(cell)


class JournalEntry:
    """A version in the journal of this process."""

    def __init__(
        self,
        words: memoryview,
        number: int,
        thread: "_ThreadCell",
        release: Callable[[int], None],
    ) -> None:
        words[_RUNS + number] = 0
        self.run = _make_runner(words, number, thread, number)
        """Call a function that runs the model with an argument, and return what it returns."""
        self.load = _make_runner(words, number, thread, number | _LOADING)
        """Do the same with one that loads it."""
        self._number, self._release = number, release
        self._open = [True]

    def close(self) -> None:
        """Forget the version, after its last run; may be called again."""
        if self._open:
            self._open.clear()
            self._release(self._number)


Runner = Callable[[Callable[[Any], Any], Any], Any]


def _make_runner(words: memoryview, number: int, thread: "_ThreadCell", value: int) -> Runner:
    """Return a function that calls another one, with `value` in the thread's cell meanwhile."""
    runs = _RUNS + number

    def run(function: Callable[[Any], Any], argument: Any) -> Any:
        cell = thread.cell
        outer = words[cell]
        if value == number:
            words[runs] += 1  # another thread's may be lost: it is compared, not counted
        words[cell] = value
        try:
            return function(argument)
        finally:
            words[cell] = outer

    name = f"{_FUNCTION}{number}"
    code = run.__code__.replace(co_name=name, co_qualname=name)
    return types.FunctionType(code, run.__globals__, name, None, run.__closure__)


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
