"""JSON that every reader accepts: the format of --json.

The file is alone because most subcommands print it.
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value on standard output, as a line unless it is indented.

    JSON has no NaN and no infinities: they become the strings "NaN", "Infinity" and "-Infinity", as
    in the JSON of protobuf. Characters that standard output cannot encode become escapes.
    """
    print(to_json(value, encoding=sys.stdout.encoding or "utf-8", indent=indent), flush=True)


def to_json(value: Any, *, encoding: str = "utf-8", indent: int | None = None) -> str:
    """Return a value as JSON that can be encoded; see `print_json`."""
    is_unicode = encoding.lower().replace("_", "-").startswith("utf-")
    try:
        text = json.dumps(value, ensure_ascii=not is_unicode, allow_nan=False, indent=indent)
    except ValueError:
        value = _without_special_floats(value)
        text = json.dumps(value, ensure_ascii=not is_unicode, indent=indent)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # a lone surrogate, such as in the name of a file
        text = json.dumps(_without_special_floats(value), indent=indent)
    return text


def _without_special_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _without_special_floats(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_special_floats(one) for one in value]
    return value
