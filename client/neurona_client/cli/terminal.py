"""What commands print: tables, colours where they are wanted, progress on long work."""

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


class Keys:
    """Of the terminal at the standard input, if that is one; else only time passes.

    Ctrl-C stays what it is. Where there is no termios (Windows), keys are not read.
    """

    def __init__(self) -> None:
        self._file = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[Any] | None = None
        self._waking, self._wake = os.pipe()
        self._window: Any = None

    def __enter__(self) -> Self:
        if self._file >= 0:
            try:
                import termios
                import tty
            except ImportError:
                self._file = -1
            else:
                self._before = termios.tcgetattr(self._file)
                tty.setcbreak(self._file)
        if hasattr(signal, "SIGWINCH"):
            self._window = signal.signal(signal.SIGWINCH, self._resized)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)
        if hasattr(signal, "SIGWINCH"):
            signal.signal(signal.SIGWINCH, self._window)
        os.close(self._waking)
        os.close(self._wake)

    def pressed(self, timeout: float) -> str:
        """A key, or "" after that many seconds or when the window has another size."""
        files = [self._waking] + ([self._file] if self._file >= 0 else [])
        ready = select.select(files, [], [], timeout)[0]
        if self._waking in ready:
            os.read(self._waking, 1024)
        if self._file in ready:
            read = os.read(self._file, 1)
            if not read:  # the terminal is gone; it would be ready for ever
                self._file = -1
            return read.decode("ascii", "replace")
        return ""

    def _resized(self, _number: int, _frame: FrameType | None) -> None:
        os.write(self._wake, b"w")


BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"
GAP = "  "
PAUSE = 0.1
"""Seconds in which a progress bar is drawn once at the most."""


def is_live(file: TextIO) -> bool:
    """Whether a person looks at it, on a terminal that can move its cursor."""
    return file.isatty() and os.environ.get("TERM") != "dumb"


def coloured(text: str, *styles: str, file: TextIO | None = None) -> str:
    """As it is where it is not for a terminal, or where NO_COLOR says so (no-color.org)."""
    if not styles or os.environ.get("NO_COLOR") or not is_live(file or sys.stdout):
        return text
    return f"\x1b[{';'.join(styles)}m{text}\x1b[0m"


def width() -> int | None:
    """Columns of the terminal; None where what is printed goes elsewhere, and is not cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def plain(text: str) -> str:
    """In one line, without what would move a terminal's cursor: a server or a file says it."""
    return "".join(one if one.isprintable() else " " for one in text)


def cut(text: str, room: int | None) -> str:
    if room is None or len(text) <= room:
        return text
    return text[: max(0, room - 1)] + "…"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    room: int | None = None,
) -> list[str]:
    """Lines with aligned columns, those of `right` to the right. Where there is no room for
    all of a line, it ends with an ellipsis."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = []
    for number, row in enumerate([list(header), *cells]):
        parts = [
            cell.rjust(size) if place in right else cell.ljust(size)
            for place, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        line = cut(GAP.join(parts).rstrip(), room)
        lines.append(coloured(line, BOLD) if number == 0 else line)
    return lines


class Progress:
    """A bar on the standard error; nothing where that is no terminal."""

    def __init__(self, what: str, total: float) -> None:
        self._what = what
        self._total = total
        self._live = is_live(sys.stderr)
        self._drawn = 0.0

    def show(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        if not self._live or now < self._drawn + PAUSE:
            return
        self._drawn = now
        share = min(1.0, done / self._total) if self._total else 1.0
        columns = shutil.get_terminal_size().columns
        size = max(5, min(30, columns - len(self._what) - len(note) - 12))
        bar = "█" * round(size * share) + "░" * (size - round(size * share))
        line = cut(f"{self._what} {bar} {share:4.0%} {note}", columns - 1)
        sys.stderr.write(f"\r{line}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._live and self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def progress(what: str, total: float) -> Iterator[Progress]:
    """Gone from the terminal at the end, however that comes."""
    bar = Progress(what, total)
    try:
        yield bar
    finally:
        bar.clear()
