"""What a file contains: how it begins, and the error when it is not what its kind expects.

It is alone because all readers of this package need it.
"""

import re
from pathlib import Path

_START_BYTES = 16


class FileContentError(ValueError):
    """The content of a file cannot be read as its kind.

    The message is one line without the file's name, which the caller knows: what was found, and
    what was expected.
    """


def begins_with(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Whether the first 16 bytes of a file match, whatever its name.

    Args:
        path: Of the file; anything but a regular file does not match.
        pattern: What they begin with.
    """
    if not path.is_file():  # a pipe would lose what is read here
        return False
    try:
        with path.open("rb") as file:
            return pattern.match(file.read(_START_BYTES)) is not None
    except OSError:  # one that may not be read, which the caller reports
        return False
