"""Validates configuration values with msgspec, with messages for the people who write them.

msgspec checks the values; when it rejects them, the first invalid one is searched again, to name
its place, its value and the expected value: msgspec leaves out the value and the keys of
mappings.
"""

import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from neurona_server.errors import close_match, quoted

MAX_VALUE_LENGTH = 110
"""Characters of a value that a message shows."""

T = TypeVar("T")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def convert(
    values: Mapping[str, Any],
    kind: type[T],
    where: str,
    error: Callable[[str], Exception],
    *,
    show_values: bool = True,
) -> T:
    """Convert `values` to a `kind`, a msgspec struct that forbids unknown fields.

    A type that msgspec does not know is made from the value by its `parse` class method, or
    else by calling it; a ValueError of it says what was expected. What is expected of a field
    is worked out from its type and bounds, unless `msgspec.Meta(description=...)` says it.

    Args:
        values: What the file, the flags or the environment hold, by key.
        kind: The struct to make.
        where: Path of `values` in messages, "" for a whole file.
        error: Makes the exception from a message.
        show_values: False keeps values and unknown keys out of messages, for files that hold
            secrets.

    Raises:
        error: A value or a key is invalid. The message is one line like "threads is -1
            (expected an integer from 0 to 1024)" or "unknown key 'thread'; did you mean
            'threads'?".
    """
    search = _Search(show_values=show_values)
    failure = search.try_to_convert(values, kind)
    if isinstance(failure, _Converted):
        return failure.value  # type: ignore[no-any-return]
    problem = search.find_problem(_ValuePart(values, kind, where)) or failure
    raise error(problem)


def invalid_value(where: str, value: object, expected: str, hint: str = "") -> str:
    """Return the message "WHERE is VALUE (EXPECTED)HINT" on one line, with a long value cut."""
    try:
        shown = quoted(value) if isinstance(value, str) else repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        shown = "a number with too many digits"
    except RecursionError:
        shown = "a deeply nested value"
    return f"{where} is {shown[:MAX_VALUE_LENGTH]} ({expected}){hint}"


def join_path(where: str, key: str) -> str:
    """Return the path of `key` inside the table at `where`."""
    shown = key if _BARE_KEY.fullmatch(key) else quoted(key)
    return f"{where}.{shown}" if where else shown


class _Converted(NamedTuple):
    value: Any


class _ValuePart(NamedTuple):
    value: Any
    kind: Any
    where: str


class _Search:
    """Finds the first invalid value, depth first, by converting ever smaller parts."""

    def __init__(self, *, show_values: bool) -> None:
        self._show_values = show_values

    def try_to_convert(self, value: Any, kind: Any) -> _Converted | str:
        """Return the converted value, or why msgspec rejects it."""
        try:
            return _Converted(msgspec.convert(value, kind, dec_hook=_parse_custom))
        except msgspec.ValidationError as error:
            return str(error)

    def find_problem(self, part: _ValuePart) -> str | None:
        """Return the message about the first invalid value in `part`, None if all are valid."""
        failure = self.try_to_convert(part.value, part.kind)
        if isinstance(failure, _Converted):
            return None
        kind, _ = _unwrap(part.kind)
        show_keys = self._show_values  # a secret may have been written as a key
        if problem := _find_wrong_key(part.value, kind, part.where, show_keys=show_keys):
            return problem
        for inner in _parts_of(part, kind):
            if problem := self.find_problem(inner):
                return problem
        expected = _describe_expected(part.kind, failure)
        hint = _find_close_choice(part.kind, part.value)
        if self._show_values:
            return invalid_value(part.where or "the value", part.value, expected, hint)
        return f"{part.where}: {expected}{hint}" if part.where else f"{expected}{hint}"


def _parse_custom(kind: type[Any], value: Any) -> Any:
    return getattr(kind, "parse", kind)(value)


def _unwrap(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Return the type without `Annotated` and `| None`, and its annotations."""
    metas: list[msgspec.Meta] = []
    while True:
        if get_origin(kind) is Annotated:
            kind, *annotations = get_args(kind)
            metas += [one for one in annotations if isinstance(one, msgspec.Meta)]
        elif get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind):
            kinds = [one for one in get_args(kind) if one is not type(None)]
            kind = Union[tuple(kinds)]  # noqa: UP007  made at run time
        else:
            return kind, metas


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _find_wrong_key(values: Any, kind: Any, where: str, *, show_keys: bool) -> str | None:
    if not _is_struct(kind) or not isinstance(values, Mapping):
        return None
    inside = f" in {where}" if where else ""
    fields = msgspec.structs.fields(kind)
    names = [field.name for field in fields]
    for key in values:
        if key not in names:
            if not show_keys:
                return f"unknown key{inside} (expected {', '.join(names)})"
            return f"unknown key {quoted(key)}{inside}{close_match(key, names)}"
    for field in fields:
        if field.required and field.name not in values:
            return f"missing key {field.name!r}{inside}"
    return None


def _parts_of(part: _ValuePart, kind: Any) -> Iterator[_ValuePart]:
    value, where = part.value, part.where
    if _is_struct(kind):
        if isinstance(value, Mapping):
            kinds = get_type_hints(kind, include_extras=True)
            yield from (_ValuePart(v, kinds[k], join_path(where, k)) for k, v in value.items())
    elif get_origin(kind) is dict:
        if isinstance(value, Mapping):
            key_kind, value_kind = get_args(kind)
            for key, item in value.items():
                yield _ValuePart(key, key_kind, f"a key of {where}")
                yield _ValuePart(item, value_kind, join_path(where, key))
    elif get_origin(kind) in (list, tuple, set, frozenset) and isinstance(value, list | tuple):
        item_kind = get_args(kind)[0]
        yield from (_ValuePart(v, item_kind, f"{where}[{i}]") for i, v in enumerate(value))


def _describe_expected(kind: Any, failure: str) -> str:
    """Return "expected ..." for a `kind` that rejects a value with the message `failure`."""
    kind, metas = _unwrap(kind)
    described = next((meta.description for meta in metas if meta.description), None)
    expected = described or _describe(kind, metas)
    if not expected:
        return failure.partition(" - at ")[0]  # what `parse` of a custom type raised
    return f"expected {expected}"


def _find_close_choice(kind: Any, value: Any) -> str:
    """Return "; did you mean '...'?" if a string resembles a choice of a literal, else ""."""
    kind, _ = _unwrap(kind)
    if get_origin(kind) is Literal and isinstance(value, str):
        return close_match(value, map(str, get_args(kind)))
    return ""


def _describe(kind: Any, metas: list[msgspec.Meta]) -> str:
    """Return a noun phrase for the values of a type, "" for a custom type."""
    nonempty = "non-empty " if any(meta.min_length for meta in metas) else ""
    origin = get_origin(kind)
    if origin is Literal:
        *others, last = map(str, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if _is_struct(kind) or origin is dict:
        return "a table"
    if origin in (list, tuple, set, frozenset):
        return f"a {nonempty}list"
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: f"a {nonempty}string",
    }
    return names[kind] + _describe_bounds(metas) if kind in names else ""


def _describe_bounds(metas: list[msgspec.Meta]) -> str:
    least = next((_format(meta.ge) for meta in metas if meta.ge is not None), "")
    most = next((_format(meta.le) for meta in metas if meta.le is not None), "")
    if least and most:
        return f" from {least} to {most}"
    return f" of at least {least}" if least else f" of at most {most}" if most else ""


def _format(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:.15g}"
