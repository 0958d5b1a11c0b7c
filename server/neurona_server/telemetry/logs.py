"""Log formats: readable text, or one JSON object per line for machines.

Text that callers sent may be part of a line, escaped: it can neither end the line, nor look like
another one, nor make the JSON invalid. What a line is about is passed as `extra`, see FIELDS.

With JSON, what libraries write to standard error is captured and logged too, so that every line
is JSON.
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

stderr_log = logging.getLogger("stderr")
"""Logger of the lines that libraries write to standard error."""

MAX_LINE_BYTES = 1 << 16
"""A longer line of a library is split into several."""

FIELDS = ("model", "version", "request_id", "trace_id")
"""Fields that a line may have beside its message: pass them as `extra`."""

INDENT = "    "
"""Before each line of an exception, so that none of them looks like a line of the log."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PLAIN_VALUE = re.compile(r'[^\s"=\[\]]+')


def set_up(
    log_format: str, level: str, process: int | None = None, *, starts_processes: bool = False
) -> None:
    """Send all logs to standard error.

    In JSON, uncaught exceptions, warnings and what libraries write to standard error become lines
    of the log too.

    Args:
        log_format: "human" or "json".
        level: Name of the least level that is logged.
        process: Number of this process, if it is one of several.
        starts_processes: Leave standard error alone, because child processes inherit it.
    """
    ensure_standard_streams()
    capture = log_format == "json" and not starts_processes
    handler = _Handler(capture_stderr() if capture else None)
    handler.setFormatter((JsonFormatter if log_format == "json" else HumanFormatter)(process))
    logging.basicConfig(level=level, handlers=[handler])
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


def report_fatal(error: Exception) -> None:
    """Report why the process cannot serve: as a JSON log line if so set up, else as plain text."""
    handlers = logging.getLogger().handlers
    if any(isinstance(handler.formatter, JsonFormatter) for handler in handlers):
        logging.getLogger("neurona_server").critical("%s", error)
    else:
        print(f"neurona-serve: {error}", file=sys.stderr)


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


def capture_stderr() -> TextIO:
    """Log what is written to file descriptor 2 from now on, until the process ends.

    Not for a process that starts others: they would inherit the captured descriptor.

    Returns:
        The original standard error, for the log itself.
    """
    original = os.dup(2)
    reader, writer = os.pipe()
    # A writer may hold the GIL, which the reading thread needs: a full pipe must not block it.
    # What does not fit is lost.
    os.set_blocking(writer, False)
    os.dup2(writer, 2)
    os.close(writer)
    thread = threading.Thread(target=_log_lines, args=(reader,), name="stderr", daemon=True)
    thread.start()

    def restore() -> None:
        os.dup2(original, 2)  # closes the pipe: its reader reads the rest and ends
        thread.join(1.0)

    atexit.register(restore)
    return open(original, "w", buffering=1, encoding="utf-8", closefd=False)


def _log_lines(reader: int) -> None:
    with open(reader, "rb") as lines:
        while line := lines.readline(MAX_LINE_BYTES):
            text = _COLOURS.sub("", line.decode(errors="replace").rstrip())
            if text:
                stderr_log.warning("%s", text)


class HumanFormatter(logging.Formatter):
    """One line of text for each record, and indented lines for its exception."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = "" if process is None else f"process {process}: "

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
        fields = _fields(record)
        # The message names model and version already.
        ids = " ".join(f"{name}={_quote(fields[name])}" for name in FIELDS[2:] if name in fields)
        line = printable(
            f"{time} {record.levelname} {self._process}{record.name}: {_message(record)}"
            + (f" [{ids}]" if ids else "")
        )
        return "\n".join([line, *(INDENT + printable(one) for one in _exception(record))])


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object.

    It has time (RFC 3339, UTC), level, logger and message, and process, FIELDS and exception where
    there are any.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        entry: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            **self._process,
            **_fields(record),
        }
        if exception := _exception(record):
            entry["exception"] = "\n".join(exception)
        return json.dumps({key: _valid(v) if isinstance(v, str) else v for key, v in entry.items()})


class _Handler(logging.StreamHandler[TextIO]):
    """A handler that drops lines that cannot be written.

    Reporting that would fail the same way, and each report would be one more captured line that
    cannot be written.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _fields(record: logging.LogRecord) -> Mapping[str, str | int]:
    values = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in values.items() if isinstance(value, str | int)}


def _quote(value: str | int) -> str:
    """Quote an id unless it is plain: callers choose theirs, and one could look like two."""
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a line must not vanish because its arguments do not fit
        return str(record.msg)


def _exception(record: logging.LogRecord) -> list[str]:
    text = record.exc_text or ""
    if record.exc_info and record.exc_info[0] is not None:
        text = logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        text = f"{text}\n{record.stack_info}".strip()
    return text.split("\n") if text else []


def _valid(text: str) -> str:
    """Escape lone surrogates: Python accepts them in text, other JSON readers do not."""
    return text.encode(errors="backslashreplace").decode()


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    logging.getLogger("neurona_server").critical(
        "uncaught exception", exc_info=(kind, error, trace)
    )


def _log_uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None:
        _log_uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)
