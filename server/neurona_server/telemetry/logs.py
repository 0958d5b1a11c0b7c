"""How log lines are written: for people, or one JSON object a line for machines.

What callers sent may stand in a line, escaped: it can neither end the line, nor look like
another one, nor make JSON invalid. What a line concerns goes along as `extra`: the fields below.
"""

import atexit
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from neurona_server.errors import printable

log = logging.getLogger("stderr")

MOST = 1 << 16
"""Bytes of a line; a longer one becomes several."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def ensure_standard_streams() -> None:
    """For a process that was started with its standard input, output or error closed: the next
    socket would have its number, and get what is meant for it. So for those that it starts."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            held = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(held, True)


def capture_stderr() -> TextIO:
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


FIELDS = ("model", "version", "request_id", "trace_id")
"""What a line may say beside its message: pass them as `extra`."""

_PLAIN = re.compile(r'[^\s"=\[\]]+')

INDENT = "    "
"""Before each line of an exception, so that none of them looks like a line of the log."""


class HumanFormatter(logging.Formatter):
    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._who = "" if process is None else f"process {process}: "

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
        fields = _fields(record)
        # Model and version stand in the message already.
        ids = " ".join(f"{name}={_word(fields[name])}" for name in FIELDS[2:] if name in fields)
        line = printable(
            f"{time} {record.levelname} {self._who}{record.name}: {_message(record)}"
            + (f" [{ids}]" if ids else "")
        )
        return "\n".join([line, *(INDENT + printable(one) for one in _exception(record))])


class JsonFormatter(logging.Formatter):
    """Of each record an object with time (RFC 3339, UTC), level, logger and message, and with
    process, the FIELDS and exception where there are some."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._who = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        entry: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            **self._who,
            **_fields(record),
        }
        if exception := _exception(record):
            entry["exception"] = "\n".join(exception)
        # Half of a surrogate pair is a text to Python, and to no other reader of JSON.
        return json.dumps({key: _whole(v) if isinstance(v, str) else v for key, v in entry.items()})


class _Lines(logging.StreamHandler[TextIO]):
    """What cannot be written is not said anywhere: it would be said where it cannot be written,
    and where foreign lines are taken over each line of that would be one more that cannot."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def set_up(log_format: str, level: str, process: int | None = None, *, alone: bool = True) -> None:
    """All that is logged goes to the standard error, `human` or `json`; `process` is the number
    of one of several. For machines, faults that nobody catches and warnings are lines of the log
    too, and so is what libraries write, unless the process is not `alone`: it starts others."""
    ensure_standard_streams()
    handler = _Lines(capture_stderr() if log_format == "json" and alone else None)
    handler.setFormatter((JsonFormatter if log_format == "json" else HumanFormatter)(process))
    logging.basicConfig(level=level, handlers=[handler])
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread


def give_up(error: Exception) -> None:
    """Says why the process cannot serve: in the log if that is for machines, else to a person."""
    handlers = logging.getLogger().handlers
    if any(isinstance(one.formatter, JsonFormatter) for one in handlers):
        logging.getLogger("neurona_server").critical("%s", error)
    else:
        print(f"neurona-serve: {error}", file=sys.stderr)


def _fields(record: logging.LogRecord) -> Mapping[str, str | int]:
    found = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in found.items() if isinstance(value, str | int)}


def _word(value: str | int) -> str:
    """An id as it is, or quoted: callers choose theirs, and could write one that looks like two."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # whatever a line was given, it must not vanish
        return str(record.msg)


def _exception(record: logging.LogRecord) -> list[str]:
    text = record.exc_text or ""
    if record.exc_info and record.exc_info[0] is not None:
        text = logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        text = f"{text}\n{record.stack_info}".strip()
    return text.split("\n") if text else []


def _whole(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("neurona_server").critical(
        "a fault that nobody caught", exc_info=(kind, error, trace)
    )


def _uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None:
        _uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)
