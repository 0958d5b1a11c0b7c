"""Keys that are pressed, one by one, without a wait for the line's end."""

import os
import select
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self


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
