"""The text of a file, whichever program wrote it.

A byte order mark says that text is UTF-16 or UTF-32 (as Excel's "Unicode text" and Windows
PowerShell write it) or UTF-8; without one it is UTF-8. `detect_text` also reads Windows-1252, the
superset of Latin-1 that spreadsheets write in western Europe and America, where the text looks like
it. No other encoding is guessed: names would silently become other names.
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
_UTF8_CHARACTER = re.compile(rb"[\xc3-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}")
_WORD = re.compile(r"[^\W\d_]{3,}")  # shorter ones may be codes, such as "ä"
# What is no letter or is written as a capital inside a word: the letters of other encodings.
_OTHER_ENCODING = re.compile(
    r"[^\W\d_][\u201a\u201e\u2026\u2020\u2021\u02c6\u2030\u2039\u201c\u201d\u2022\u02dc\u2122\u203a]"
    r"[^\W\d_]|[a-z][\u0160\u0152\u017d\u0178]"
)


def decode_text(content: bytes) -> str:
    """Decodes the content of a text file.

    Args:
        content: of the file; with a byte order mark UTF-8, UTF-16 or UTF-32, else UTF-8.

    Returns:
        The text without the mark.

    Raises:
        FileContentError: with the line of the first byte that is no such text.
    """
    return _decode(content)[0]


def detect_text(content: bytes) -> tuple[str, str]:
    """Decodes the content of a text file that may also be Windows-1252.

    Args:
        content: see `decode_text`.

    Returns:
        The text without a byte order mark, and the encoding: UTF-8, UTF-16, UTF-32 or
        Windows-1252.

    Raises:
        FileContentError: with the line of the first byte that is no such text.
    """
    try:
        return _decode(content)
    except FileContentError:
        text = _decode_windows_1252(content)
        if text is None:
            raise
        return text, "Windows-1252"


def _decode(content: bytes) -> tuple[str, str]:
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
    return text, title


def _decode_windows_1252(content: bytes) -> str | None:
    """Decodes text that looks like Windows-1252; None if it looks like anything else.

    Words with other letters than ASCII have mostly ASCII letters in the languages of western
    Europe; in Cyrillic or Japanese encodings read as Windows-1252 they have next to none.
    """
    has_mark = any(content.startswith(mark) for mark, *_ in _BYTE_ORDER_MARKS)
    is_other_file = any(content.startswith(beginning) for beginning, _ in _OTHER_FILES)
    if has_mark or is_other_file or _UTF8_CHARACTER.search(content):
        return None
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    if any(character < " " and character not in "\t\n\r" for character in set(text)):
        return None
    words = [word for word in _WORD.findall(text) if not word.isascii()]
    ascii_letters = sum(letter.isascii() for word in words for letter in word)
    if 2 * ascii_letters < sum(map(len, words)) or _OTHER_ENCODING.search(text):
        return None
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
