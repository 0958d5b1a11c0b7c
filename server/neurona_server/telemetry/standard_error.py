"""What libraries write to standard error: captured without ever blocking them, and logged.

A library writes while it holds locks, or Python's own, so that a reader who stalls would stop the
server. gRPC writes lines that callers cause; as lines of the log they are limited like others.
"""

import atexit
import faulthandler
import logging
import os
import re
import stat
import threading

stderr_log = logging.getLogger("stderr")
"""Logger of the lines that libraries write to standard error."""

MAX_LINE_BYTES = 1 << 16
"""A longer line of a library is split into several."""

CAPTURE_BYTES = 1 << 20
"""Size of the pipe for what libraries write. What does not fit is lost."""

READ_BYTES, READ_PAUSE = 16 << 10, 0.05
"""Bytes to log at a time, and the pause in seconds after that many: a flood of lines must not keep
a thread busy."""

END_SECONDS = 1.0
"""Seconds at the end of the process for the last captured lines."""

_END_OF_LINES = os.urandom(16).hex().encode()  # no library writes this line
_awaited: list[threading.Event] = []  # of those who wait for it

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_F_SETPIPE_SZ = 1031  # fcntl's name for it exists on Linux only


def ensure_standard_streams() -> None:
    """Open /dev/null for each of standard input, output and error that is closed.

    Otherwise the next socket would get its number, and the text meant for it; the same holds for
    the processes that this one starts.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(opened, True)


def capture() -> int:
    """Log what is written to file descriptor 2 from now on, until the process ends.

    Not for a process that starts others to serve: they would inherit the captured descriptor.

    Returns:
        The descriptor of the original standard error, for the log itself.
    """
    original = os.dup(2)
    reader, writer = os.pipe()
    _enlarge(writer)
    # A writer may hold the GIL, which the reading thread needs: a full pipe must not block it.
    os.set_blocking(writer, False)
    os.dup2(writer, 2)
    os.close(writer)
    ending = threading.Event()
    thread = threading.Thread(
        target=_log_lines, args=(reader, ending), name="standard error", daemon=True
    )
    thread.start()

    def restore() -> None:
        ending.set()
        os.dup2(original, 2)  # closes the pipe: its reader reads the rest and ends
        thread.join(END_SECONDS)

    atexit.register(restore)
    return original


def log_captured_lines() -> None:
    """Wait, for END_SECONDS at most, until all lines written before are passed to the log."""
    logged = threading.Event()
    _awaited.append(logged)
    try:
        os.write(2, b"\n" + _END_OF_LINES + b"\n")
    except OSError:  # the pipe is full, or nothing is captured
        return
    logged.wait(END_SECONDS)


def report_crashes(original: int) -> None:
    """Write the Python traceback of a crash to `original`, the standard error before its capture.

    The thread that would log captured lines does not run any more then.
    """
    descriptor = _open_without_blocking(original)
    if descriptor is not None:
        faulthandler.enable(descriptor)


def _open_without_blocking(descriptor: int) -> int | None:
    """Return a descriptor of the same file whose writes never block, or None.

    Setting the flag on `descriptor` itself would set it for the processes that share it.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # a socket, or a pipe of another user
        return None


def _enlarge(pipe: int) -> None:
    try:
        import fcntl  # not on every system

        fcntl.fcntl(pipe, _F_SETPIPE_SZ, CAPTURE_BYTES)
    except (ImportError, OSError):  # the system's own size must do
        return


def _log_lines(reader: int, ending: threading.Event) -> None:
    rest = b""
    while part := os.read(reader, READ_BYTES):
        *lines, rest = (rest + part).split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        for line in lines:
            _log_line(line)
        if len(part) == READ_BYTES:
            ending.wait(READ_PAUSE)
    _log_line(rest)
    os.close(reader)


def _log_line(line: bytes) -> None:
    if line == _END_OF_LINES:
        _awaited.pop(0).set()
        return
    text = _COLOURS.sub("", line.decode(errors="replace").rstrip())
    if text:
        stderr_log.warning("%s", text)
