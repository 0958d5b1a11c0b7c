"""The text of a file, whichever program wrote it.

A byte order mark says that text is UTF-16 or UTF-32 (as Excel's "Unicode text" and Windows
PowerShell write it) or UTF-8; without one it is UTF-8. Nothing is guessed: in a wrong encoding
names would silently become other names.
"""

from __future__ import annotations

import codecs
import re

from neurona_client.files.content import FileContentError

_BYTE_ORDER_MARKS = (  # UTF-32 before UTF-16, whose mark is the beginning of its
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_OTHER_FILES = (  # first bytes of files that people take for text
    (b"PK\x03\x04", "a ZIP archive, such as an Excel workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a file of numpy"),
    *((bytes([0x80, protocol]), "a pickle, which could run code") for protocol in range(2, 6)),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"%PDF-", "a PDF document"),
)
_LINE_END = re.compile("\r\n|\r|\n")


def decode_text(content: bytes) -> str:
    """Decodes the content of a text file.

    Args:
        content: of the file; with a byte order mark UTF-8, UTF-16 or UTF-32, else UTF-8.

    Returns:
        The text without the mark.

    Raises:
        FileContentError: with the line of the first byte that is no such text.
    """
    for beginning, kind in _OTHER_FILES:
        if content.startswith(beginning):
            raise FileContentError(f"{kind} (expected text, such as CSV in UTF-8)")
    encoding, title, start = "utf-8", "UTF-8", 0
    for mark, marked_encoding, marked_title in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            encoding, title, start = marked_encoding, marked_title, len(mark)
            break
    body = content[start:]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        line = _count_lines(body[: error.start].decode(encoding, "replace"))
        if encoding != "utf-8":
            raise FileContentError(f"line {line}: invalid {title}: {error.reason}") from error
        reason = _describe_byte(body, error.start)
        raise FileContentError(f"line {line}: {reason} (expected UTF-8)") from error
    text = text.removeprefix("\ufeff")  # of a program that wrote the mark twice
    position = text.find("\0")
    if position >= 0:
        raise FileContentError(
            f"line {_count_lines(text[:position])}: a NUL character, as in UTF-16 without a byte "
            "order mark or in a file that is no text (expected UTF-8)"
        )
    return text


def text_lines(content: bytes) -> list[tuple[int, str]]:
    """Returns the lines that are not blank, each with its number.

    White space at both ends is dropped, and each run of it inside a line is one space.

    Args:
        content: of a text file, as `decode_text` takes it.

    Raises:
        FileContentError: see `decode_text`.
    """
    lines = enumerate(_LINE_END.split(decode_text(content)), start=1)
    return [(number, " ".join(line.split())) for number, line in lines if line.strip()]


def _count_lines(text_before: str) -> int:
    """Returns the number of the line in which this text ends."""
    return len(_LINE_END.findall(text_before)) + 1


def _describe_byte(body: bytes, position: int) -> str:
    byte = body[position]
    if body.count(b"\0", 0, 4096) > 16:
        return f"byte 0x{byte:02x} is no text in UTF-8"
    try:
        character = bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return f"byte 0x{byte:02x} is not UTF-8"
    return f"byte 0x{byte:02x} is not UTF-8; it is {character!r} in Windows-1252"
