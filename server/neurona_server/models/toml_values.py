"""What the keys of model.toml may hold: each reader takes the key's path and its value.

They raise LoadError that names the key, what came and what was expected.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from neurona_server.errors import LoadError, quoted
from neurona_server.models.settings import LATEST, Which

Read = Callable[[str, Any], Any]

MOST_VERSION = 10**18 - 1
"""The highest number that a folder of a version has."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) *%?")
_LABEL_EXPECTED = "expected a letter, then up to 63 letters, digits, dots, dashes or underscores"


def wrong(where: str, value: object, expected: str) -> LoadError:
    try:
        shown = quoted(value) if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        shown = "a number with too many digits"
    return LoadError(f"{where} is {shown[:110]}; {expected}")


def close_match(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, [*known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def table(keys: Mapping[str, Read]) -> Read:
    """A table with these keys, each of them optional."""

    def read(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(where, value, "expected a table")
        for key in value:
            if key not in keys:
                place = f"{where} has" if where else "it has"
                raise LoadError(f"{place} an unknown key {quoted(key)}{close_match(key, keys)}")
        prefix = f"{where}." if where else ""
        return {key: keys[key](prefix + key, item) for key, item in value.items()}

    return read


def table_by_name(item: Read, name: Read | None = None) -> Read:
    """A table whose keys are names; `name` reads them."""

    def read(where: str, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise wrong(where, value, "expected a table")
        found: dict[Any, Any] = {}
        for key, entry in value.items():
            path = f"{where}.{key}" if _LABEL.fullmatch(key) else f"{where}.{quoted(key)}"
            read_key = name(f"a key of {where}", key) if name else key
            if read_key in found:  # 2 and 02
                raise LoadError(f"{where} names {read_key} twice; expected it once")
            found[read_key] = item(path, entry)
        return found

    return read


def whole(least: int, most: int) -> Read:
    def read(where: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise wrong(where, value, f"expected a whole number from {least} to {most}")
        return value

    return read


def milliseconds(where: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1e8:  # not a number fails too
        raise wrong(where, value, "expected milliseconds from 0 to 100000000")
    return float(value)


def percent(where: str, value: Any) -> float:
    number = value
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        number = float(match[1])
    if type(number) not in (int, float) or not 0 <= number <= 100:
        raise wrong(where, value, "expected percent from 0 to 100")
    return float(number)


def text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(where, value, "expected a text")
    return value


def flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, value, "expected true or false")
    return value


def one_of(meanings: Mapping[str, Any]) -> Read:
    def read(where: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in meanings:
            match = close_match(value, meanings) if isinstance(value, str) else ""
            raise wrong(where, value, f"expected {', '.join(meanings)}{match}")
        return meanings[value]

    return read


def list_of(item: Read, what: str) -> Read:
    def read(where: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise wrong(where, value, f"expected a list of {what}")
        return tuple(item(f"{where}[{index}]", entry) for index, entry in enumerate(value))

    return read


def label_name(where: str, value: Any) -> str:
    if value == LATEST:
        raise wrong(where, value, "that one is built in; expected another name")
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise wrong(where, value, _LABEL_EXPECTED)
    return value


def which(where: str, value: Any) -> Which:
    """A version as a number, or in a text of digits; else a label."""
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value) else value
    if type(number) is int and 0 < number <= MOST_VERSION:
        return number
    if isinstance(value, str) and _LABEL.fullmatch(value):
        return value
    raise wrong(where, value, "expected a version or a label")
