"""Reads small files that people write: options, tokens, certificates, settings of models.

They may be anything: none may block the server for ever, fill its memory or raise what is no
ConfigError. The file is alone because options, security and models, which do not know each other,
need it.
"""

import codecs
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from neurona_server.errors import ConfigError, printable

MAX_FILE_BYTES = 32 << 20
"""Bytes of a file: some 100,000 tokens."""

MAX_DOTS = 100
"""Dots in a key, for which tomllib takes memory and time in proportion to their square."""

_KEY_ENDS = re.compile(r"[=#\n,{}\[\]]")

_BYTE_ORDER_MARKS = (  # that of UTF-16 is the beginning of that of UTF-32
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # not on Windows


def read_file(path: Path) -> bytes:
    """Return the content of a regular file; others, like pipes, could block.

    Raises:
        ConfigError: It cannot be read, is no regular file or larger than MAX_FILE_BYTES.
    """
    shown = printable(str(path))
    try:
        _check_regular(os.stat(path), shown)  # a device may act when it is opened
        descriptor = os.open(path, _FLAGS)
        with open(descriptor, "rb") as file:
            _check_regular(os.fstat(descriptor), shown)  # it may have been replaced meanwhile
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {shown}: {error.strerror}") from error
    except ValueError as error:  # a NUL, or what the file system cannot encode
        raise ConfigError(f"cannot read {shown}: invalid name") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{shown} is too large (expected at most {MAX_FILE_BYTES} bytes)")
    return content


def decode_text(content: bytes) -> str:
    """Return the text of a file: UTF-8, or what its byte order mark says, without the mark.

    Windows PowerShell writes UTF-16 with a mark, and editors on Windows write UTF-8 with one.

    Raises:
        ValueError: It is no such text; with the line of the first invalid byte.
    """
    marked = (one for one in _BYTE_ORDER_MARKS if content.startswith(one[0]))
    mark, encoding = next(marked, (b"", "utf-8"))
    content = content.removeprefix(mark)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, "replace").count("\n") + 1
        invalid = f"byte 0x{content[error.start]:02x} is not {encoding.upper()[:6].rstrip('-')}"
        raise ValueError(f"line {line}: {invalid} (expected UTF-8)") from error


def parse_toml(content: bytes, path: Path) -> dict[str, Any]:
    """Return the values of a TOML file.

    Raises:
        ConfigError: The content is not TOML, or nested too deeply.
    """
    shown = printable(str(path))
    try:
        text = decode_text(content)
        if any(part.count(".") > MAX_DOTS for part in _KEY_ENDS.split(text)):
            raise ConfigError(
                f"invalid TOML in {shown}: more than {MAX_DOTS} dots in a key or text"
            )
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"invalid TOML in {shown}: values are nested too deeply") from None
    except ValueError as error:  # not TOML, or no text
        raise ConfigError(f"invalid TOML in {shown}: {printable(str(error))}") from error


def _check_regular(state: os.stat_result, shown: str) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise ConfigError(f"cannot read {shown}: not a regular file")
