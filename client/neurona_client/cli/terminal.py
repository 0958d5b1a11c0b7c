"""Output of commands: tables, colours, progress bars; and keys that are pressed."""

import contextlib
import io
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

BOLD, DIM, RED, YELLOW = "1", "2", "31", "33"
COLUMN_GAP = "  "
PROGRESS_INTERVAL_SECONDS = 0.1


def prepare_streams() -> None:
    """Have standard output and standard error accept all text.

    What their encoding lacks is written as escapes, and a closed stream swallows what it gets.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Have standard output swallow what it holds, which its reader no longer wants or takes."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def encodable(text: str, plain: str, file: TextIO | None = None) -> str:
    """Return a text, or a plain one where the encoding of the output (stdout) lacks it."""
    try:
        text.encode((file or sys.stdout).encoding or "ascii")
    except UnicodeEncodeError:
        return plain
    return text


def is_interactive(file: TextIO) -> bool:
    """Whether the output goes to a terminal that can move its cursor."""
    return file.isatty() and os.environ.get("TERM") != "dumb"


def coloured(text: str, *styles: str, file: TextIO | None = None) -> str:
    """Add styles, unless the output is not a terminal or NO_COLOR is set (no-color.org)."""
    if not styles or os.environ.get("NO_COLOR") or not is_interactive(file or sys.stdout):
        return text
    return f"\x1b[{';'.join(styles)}m{text}\x1b[0m"


def terminal_width() -> int | None:
    """Return the columns of the terminal; None if the output goes elsewhere, untruncated."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def printable(text: str) -> str:
    """Return text of a server or file on one line, without control characters."""
    return "".join(one if one.isprintable() else " " for one in text)


def truncate(text: str, width: int | None) -> str:
    """Shorten text to a number of columns with an ellipsis; None: any length."""
    if width is None or len(text) <= width:
        return text
    ellipsis = encodable("…", "...")
    return text[: max(0, width - len(ellipsis))] + ellipsis


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right_aligned: Sequence[int] = (),
    width: int | None = None,
) -> list[str]:
    """Format a table.

    Args:
        header: titles of the columns.
        rows: cells of each row.
        right_aligned: numbers of the columns that are aligned to the right.
        width: columns of the terminal; a longer line ends with an ellipsis.

    Returns:
        The lines, that of the header first.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = []
    for row_number, row in enumerate([list(header), *cells]):
        padded = [
            cell.rjust(size) if column in right_aligned else cell.ljust(size)
            for column, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        line = truncate(COLUMN_GAP.join(padded).rstrip(), width)
        lines.append(coloured(line, BOLD) if row_number == 0 else line)
    return lines


class ProgressBar:
    """A bar on standard error; prints nothing if that is not a terminal."""

    def __init__(self, title: str, total: float) -> None:
        self._title = title
        self._total = total
        self._is_interactive = is_interactive(sys.stderr)
        self._last_draw = 0.0

    def show(self, done: float, note: str = "") -> None:
        """Draw the bar, unless it was drawn a moment ago."""
        now = time.monotonic()
        if not self._is_interactive or now < self._last_draw + PROGRESS_INTERVAL_SECONDS:
            return
        self._last_draw = now
        share = min(1.0, done / self._total) if self._total else 1.0
        columns = shutil.get_terminal_size().columns
        size = max(5, min(30, columns - len(self._title) - len(note) - 12))
        filled = round(size * share)
        bar = "█" * filled + "░" * (size - filled)
        bar = encodable(bar, "#" * filled + "." * (size - filled), sys.stderr)
        line = truncate(f"{self._title} {bar} {share:4.0%} {note}", columns - 1)
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the bar from the terminal."""
        if self._is_interactive and self._last_draw:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[ProgressBar]:
    """Show a progress bar that is removed at the end, also after an exception."""
    bar = ProgressBar(title, total)
    try:
        yield bar
    finally:
        bar.clear()


class KeyReader:
    """Reads keys from standard input if that is a terminal; otherwise only waits.

    Ctrl-C raises KeyboardInterrupt as usual. Without termios (Windows), no keys are read.
    """

    def __init__(self) -> None:
        self._file = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._terminal_attributes: list[Any] | None = None
        self._wake_reader, self._wake_writer = os.pipe()
        self._previous_handler: Any = None

    def __enter__(self) -> Self:
        if self._file >= 0:
            try:
                import termios
                import tty
            except ImportError:
                self._file = -1
            else:
                self._terminal_attributes = termios.tcgetattr(self._file)
                tty.setcbreak(self._file)
        if hasattr(signal, "SIGWINCH"):
            self._previous_handler = signal.signal(signal.SIGWINCH, self._on_resize)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._terminal_attributes is not None:
            import termios

            termios.tcsetattr(self._file, termios.TCSADRAIN, self._terminal_attributes)
        if hasattr(signal, "SIGWINCH"):
            signal.signal(signal.SIGWINCH, self._previous_handler)
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def read_key(self, timeout: float) -> str:
        """Return a key, or "" after `timeout` seconds or when the window was resized."""
        files = [self._wake_reader] + ([self._file] if self._file >= 0 else [])
        ready = select.select(files, [], [], timeout)[0]
        if self._wake_reader in ready:
            os.read(self._wake_reader, 1024)
        if self._file in ready:
            key = os.read(self._file, 1)
            if not key:  # the terminal is closed; it would be ready forever
                self._file = -1
            return key.decode("ascii", "replace")
        return ""

    def _on_resize(self, _signal_number: int, _frame: FrameType | None) -> None:
        os.write(self._wake_writer, b"w")
