"""What libraries write to the standard error by themselves, past Python's logging, as lines of
the log: ONNX Runtime and gRPC do."""

import atexit
import logging
import os
import re
import threading
from typing import TextIO

log = logging.getLogger("stderr")

MOST = 1 << 16
"""Bytes of a line; a longer one becomes several."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def hold_standard() -> None:
    """For a process that was started with its standard input, output or error closed: the next
    socket would have its number, and get what is meant for it. So for those that it starts."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            held = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(held, True)


def take_over() -> TextIO:
    """From now on until the process ends. Returns the standard error as it was: for the log.

    Not for a process that starts others: they would inherit what is taken over.
    """
    real = os.dup(2)
    reader, writer = os.pipe()
    # Whoever writes may hold the interpreter's lock, which the reader needs: a full pipe must not
    # hold it up. What does not fit is lost.
    os.set_blocking(writer, False)
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_listen, args=(reader,), name="stderr", daemon=True)
    thread.start()

    def give_back() -> None:
        os.dup2(real, 2)  # closes the pipe: what is in it is read to the end
        thread.join(1.0)

    atexit.register(give_back)
    return open(real, "w", buffering=1, encoding="utf-8", closefd=False)


def _listen(reader: int) -> None:
    with open(reader, "rb") as lines:
        while line := lines.readline(MOST):
            text = _COLOURS.sub("", line.decode(errors="replace").rstrip())
            if text:
                log.warning("%s", text)
