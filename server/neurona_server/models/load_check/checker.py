"""Checks a model's file by loading it in another process before the server loads it.

ONNX Runtime may crash or never return on a file, whether that was damaged or made for it: an
integer division that overflows ends the process, an endless loop blocks a thread. What happens at
each load then happens to a child process, and costs the server nothing but one version that failed.

Children start on demand, check one file at a time, and end when there is nothing more to check.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Pipe
from typing import Any

from neurona_server.errors import LoadError, printable
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.load_check.checked_files import CheckedFiles, make_key
from neurona_server.models.load_check.child_process import STEP, CheckJob
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource, has_changed

log = logging.getLogger(__name__)

START_ATTEMPTS = 3
"""Children to try: one that was idle may have ended just before it got its job."""

EXIT_SECONDS = 1.0
"""Time for a child to end that has closed its connection."""

MAX_ANSWER_BYTES = 1 << 20
MAX_OUTPUT_CHARACTERS = 2000


class CheckChild:
    """A child process, used by one thread at a time.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        # What a crash prints, for the log. A pipe that never blocks, even if nobody reads it.
        self._output, output = os.pipe()
        os.set_blocking(self._output, False)
        os.set_blocking(output, False)
        command = [sys.executable, "-P", "-m", "neurona_server.models.load_check.child_process"]
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own command
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,  # a terminal's Ctrl-C is for the server
            )
        except OSError:
            self.close()
            raise
        finally:
            theirs.close()
            os.close(output)

    def run(self, job: CheckJob, on_step: Callable[[], None]) -> tuple[bool, dict[str, Any] | None]:
        """Let the child check a file, and call `on_step` at each step of that.

        Returns:
            Whether it started on it, and its answer; None if it ended or sent an invalid one.
        """
        started = False
        try:
            self._connection.send(job)
            while (message := self._connection.recv_bytes(MAX_ANSWER_BYTES)) == STEP:
                started = True
                on_step()
            answer = json.loads(message)
        except (EOFError, OSError, ValueError):
            return started, None
        return started, answer if isinstance(answer, dict) else None

    def end(self) -> tuple[str, str]:
        """Kill it if it still runs.

        Returns:
            How it ended, and the end of what it wrote to standard error.
        """
        try:
            status = self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        output = b""
        with contextlib.suppress(OSError):  # it wrote nothing
            output = os.read(self._output, 1 << 20)
        self.close()
        text = output.decode(errors="replace").strip()
        return _explain_status(status), printable(text[-MAX_OUTPUT_CHARACTERS:])

    def close(self) -> None:
        """Close the connection, at which the process ends."""
        self._connection.close()
        os.close(self._output)


class LoadChecker:
    """Checks files in child processes. Any thread may call it."""

    def __init__(self, timeout: float, checked_files: CheckedFiles | None = None) -> None:
        """Prepare the checks; children start when they are needed.

        Args:
            timeout: Time limit of a step in seconds, after which a load is cancelled; 0: none.
            checked_files: Where the files are kept that need no further check.
        """
        self._timeout = timeout
        self._checked_files = checked_files
        self._idle: list[CheckChild] = []
        self._lock = threading.Lock()

    def check(
        self, source: ModelSource, options: ModelOptions, cancellation: LoadCancellation
    ) -> None:
        """Return when the file can be loaded.

        Raises:
            LoadError: It cannot, it ended the child, or the load was cancelled.
        """
        options = replace(options, tracer=None)
        key = ""
        if self._checked_files is not None:
            key = make_key(source, options, cancellation)
            if self._checked_files.has(key):
                return
        # One device is enough for that, or the CPU: the GPU may lack the memory for a second copy,
        # or be for one process alone.
        runtime = replace(options.runtime, require_gpu=False)
        options = replace(options, max_devices=1, runtime=runtime)
        job = CheckJob(source, options, self._timeout)
        self._check_in_child(job, cancellation)
        if has_changed(source):
            raise LoadError("its files were changed while they were checked")
        if self._checked_files is not None:
            self._checked_files.add(key)

    def _check_in_child(self, job: CheckJob, cancellation: LoadCancellation) -> None:
        problem = ""
        for _ in range(START_ATTEMPTS):
            try:
                child = self._take_child()
            except OSError as error:
                problem = error.strerror or str(error)
                continue
            try:
                with cancellation.interrupting(child.process.kill):
                    started, answer = child.run(job, cancellation.note_progress)
            except LoadError:  # cancelled before it has got its job
                self._keep_idle(child)
                raise
            if answer is not None:
                self._keep_idle(child)
                _raise_if_failed(job.source, answer)
                return
            ending, output = child.end()
            cancellation.raise_if_cancelled()
            if started:
                if output:
                    fields = job.source.log_fields
                    log.error("%s: output of its check: %s", job.source, output, extra=fields)
                raise LoadError(f"the process that loaded it {ending}")
            problem = f"it {ending}{': ' if output else ''}{output}"
        raise LoadError(
            f"the process to check it cannot be started: {problem} (the option load_check)"
        )

    def _take_child(self) -> CheckChild:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        child = CheckChild()
        threading.Thread(target=self._reap, args=(child,), name="load check", daemon=True).start()
        return child

    def _keep_idle(self, child: CheckChild) -> None:
        with self._lock:
            if child.process.poll() is None:
                self._idle.append(child)
                return
        child.close()

    def _reap(self, child: CheckChild) -> None:
        """Wait for the end of a child, so that an idle one leaves nothing."""
        child.process.wait()
        with self._lock:
            if child in self._idle:
                self._idle.remove(child)
                child.close()


def _raise_if_failed(source: ModelSource, answer: dict[str, Any]) -> None:
    if not (reason := answer.get("reason")):
        return
    for level, text in answer.get("log", ()):
        log.log(level, "%s: in its check: %s", source, printable(text), extra=source.log_fields)
    raise LoadError(reason)


def _explain_status(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = f"signal {-status}"
    return f"was killed by {name}{', as when memory is short' if name == 'SIGKILL' else ''}"
