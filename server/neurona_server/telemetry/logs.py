"""The log: readable text, or one JSON object per line for machines.

Text that callers sent may be part of a line, escaped: it can neither end the line, nor look like
another one, nor make the JSON invalid. What a line is about is passed as `extra`, see FIELDS.

Lines are written to standard error by a thread of its own (log_writer), and those that callers can
cause are limited (line_limit). What libraries write to standard error is captured and logged too
(standard_error), and so are warnings and uncaught exceptions.
"""

import contextlib
import json
import logging
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from neurona_server.errors import printable
from neurona_server.telemetry import standard_error
from neurona_server.telemetry.line_limit import GRPC_DECODER, LineLimit
from neurona_server.telemetry.log_writer import LogWriter

log = logging.getLogger(__name__)

FIELDS = ("model", "version", "request_id", "trace_id")
"""Fields that a line may have beside its message: pass them as `extra`."""

PACKAGE = "neurona_server"
"""The logger of the server's own lines."""

INDENT = "    "
"""Before each line of an exception, so that none of them looks like a line of the log."""

_PLAIN_VALUE = re.compile(r'[^\s"=\[\]]+')


LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
"""The levels that callers can turn on and off; CRITICAL is an ERROR here."""

FLUSH_SECONDS = 1.0
"""Seconds in which the last lines must be written when the process ends."""


class LevelFilter(logging.Filter):
    """Drops the server's own lines of some levels, whatever is logged of the levels below."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped: frozenset[int] = frozenset()
        """Levels of LEVELS."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.dropped or not record.name.startswith(PACKAGE):
            return True
        return next((one for one in LEVELS if record.levelno >= one), 0) not in self.dropped


level_filter = LevelFilter()
"""The filter of the process."""


def enabled_levels() -> frozenset[int]:
    """Return the levels of LEVELS that are logged."""
    logged = {level for level in LEVELS if logging.getLogger(PACKAGE).isEnabledFor(level)}
    return frozenset(logged - level_filter.dropped)


def enable_levels(levels: frozenset[int]) -> None:
    """Log these levels of LEVELS and no others, until the process ends."""
    level_filter.dropped = frozenset(LEVELS) - levels
    logging.getLogger(PACKAGE).setLevel(min(levels, default=logging.CRITICAL + 1))


def set_up(
    log_format: str, level: str, process: int | None = None, *, starts_processes: bool = False
) -> None:
    """Send all logs to standard error.

    Args:
        log_format: "human" or "json".
        level: Name of the least level that is logged.
        process: Number of this process, if it is one of several.
        starts_processes: Leave standard error alone, because child processes inherit it.
    """
    standard_error.ensure_standard_streams()
    original = 2 if starts_processes else standard_error.capture()
    if log_format == "human" and not starts_processes:  # a traceback is not a line of JSON
        standard_error.report_crashes(original)
    formatter = (JsonFormatter if log_format == "json" else HumanFormatter)(process)
    handler = _Handler(original, formatter, captures=not starts_processes)
    handler.limit.replace_exception_method(logging.getLogger(GRPC_DECODER))
    logging.basicConfig(level=level, handlers=[handler])
    # The level of callers' choice (LogSettings) must not make gRPC log what callers send.
    logging.getLogger("grpc").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_uncaught_in_thread


def report_fatal(error: Exception) -> None:
    """Report why the process cannot serve: as a JSON log line if so set up, else as plain text."""
    report_end(str(error))


def report_unexpected(error: Exception) -> None:
    """Report in one line an error that nothing expects, because of which the process ends.

    Where it arose is part of a JSON log line; else Python's development mode shows it.
    """
    reason = " ".join(str(error).split())
    text = f"internal error: {type(error).__name__}: {reason}"
    handler = _handler()
    if handler is not None and isinstance(handler.formatter, JsonFormatter):
        logging.getLogger(PACKAGE).critical("%s", text, exc_info=error)
        handler.flush()
        return
    if sys.flags.dev_mode:
        traceback.print_exception(error)
    report_end(f"{text} (PYTHONDEVMODE=1 shows where)")


def report_end(text: str) -> None:
    """Report why the process is about to end, and wait FLUSH_SECONDS at most until it is written.

    As a JSON log line if the log is so set up, else as plain text. It is the last line: what
    libraries have written before comes before it.
    """
    handler = _handler()
    if handler is not None and handler.captures:
        standard_error.log_captured_lines()
    if handler is None:
        _write_unless_blocked(f"neurona-serve: {printable(text)}\n")
    elif isinstance(handler.formatter, JsonFormatter):
        logging.getLogger("neurona_server").critical("%s", text)
        handler.flush()
    else:
        handler.write(f"neurona-serve: {printable(text)}")
        handler.flush()


def flush() -> None:
    """Wait until the log is written, what libraries have written included, before os._exit.

    That takes END_SECONDS of standard_error and FLUSH_SECONDS at most.
    """
    if (handler := _handler()) is not None:
        if handler.captures:
            standard_error.log_captured_lines()
        handler.flush()


def lines_not_written() -> Mapping[str, int]:
    """Return the number of lines that were not written since the start, by reason.

    The reasons are unread (standard error was not read in time) and repeated (similar lines).
    """
    handler = _handler()
    if handler is None:
        return {"unread": 0, "repeated": 0}
    return {"unread": handler.writer.dropped, "repeated": handler.limit.suppressed}


def _handler() -> "_Handler | None":
    handlers = logging.getLogger().handlers
    return next((handler for handler in handlers if isinstance(handler, _Handler)), None)


def _write_unless_blocked(line: str) -> None:
    """Write to standard error before the log is set up, unless nobody reads it."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], FLUSH_SECONDS)[1]:
            os.write(2, line.encode(errors="backslashreplace"))


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


class _Handler(logging.Handler):
    """Formats records, and hands them to the thread that writes them."""

    def __init__(self, descriptor: int, formatter: logging.Formatter, *, captures: bool) -> None:
        super().__init__()
        self.captures = captures
        """Whether standard error is captured, and so passed to this handler."""
        self.limit = LineLimit()
        self.writer = LogWriter(descriptor, self._format_notice)
        self.setFormatter(formatter)
        self.addFilter(level_filter)
        self.addFilter(self.limit)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # a bug of a formatter must not end what logs
            self.handleError(record)
            return
        self.write(line)

    def write(self, line: str) -> None:
        """Queue a line that is formatted already."""
        with self.lock or contextlib.nullcontext():
            self.writer.put(f"{line}\n".encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Wait FLUSH_SECONDS at most until all lines are written; logging calls this at the end."""
        self.writer.flush(FLUSH_SECONDS)

    def _format_notice(self, count: int) -> bytes:
        # Not logged: this is the thread that writes, and must wait for no lock.
        text = "%d log %s dropped: standard error was not read in time"
        arguments = count, "line" if count == 1 else "lines"
        record = log.makeRecord(log.name, logging.WARNING, __file__, 0, text, arguments, None)
        return f"{self.format(record)}\n".encode()


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


def _log_unraisable(hook: "sys.UnraisableHookArgs") -> None:
    if hook.exc_value is not None:
        logging.getLogger("neurona_server").error(
            "%s",
            hook.err_msg or "uncaught exception in a destructor",
            exc_info=(hook.exc_type, hook.exc_value, hook.exc_traceback),
        )
