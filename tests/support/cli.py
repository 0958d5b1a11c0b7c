"""How tests run the command `neurona`."""

import os
import sys
from pathlib import Path

NEURONA = Path(sys.executable).with_name("neurona")

TERMINAL_SIZE = ("COLUMNS", "LINES")
"""pytest-xdist sets them, and they take precedence over the size of a terminal."""


def environment(**variables: str) -> dict[str, str]:
    """The environment of a command: that of the tests without options of Neurona's commands."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("NEURONA_") and name not in TERMINAL_SIZE
    }
    return inherited | variables
