"""--json is JSON: without NaN and infinities, and in characters that the output can encode."""

import json
import math

import pytest

from neurona_client.cli.json_output import to_json


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0.5, 1, None, True, "a"], [0.5, 1, None, True, "a"]),
        ({"a": [math.nan, {"b": math.inf}], "c": (-math.inf, 1e308)}, None),
        ([[]], [[]]),
    ],
)
def test_numbers_that_json_lacks_are_text(value, expected):
    expected = expected or {"a": ["NaN", {"b": "Infinity"}], "c": ["-Infinity", 1e308]}
    assert json.loads(to_json(value), parse_constant=refuse) == expected


@pytest.mark.parametrize("text", ["Köln", "日本", "\N{GRINNING FACE}", "a\udcf6b", "\ud800", '"\n'])
@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "cp1252", "ascii", "latin-1", "utf-16"])
def test_text_can_be_encoded_and_read_again(text, encoding):
    line = to_json({"name": text, "value": math.nan}, encoding=encoding)
    assert "\n" not in line
    read = json.loads(line.encode(encoding).decode(encoding))
    assert read == {"name": text, "value": "NaN"}


def test_text_that_utf_8_holds_is_readable():
    assert to_json("Köln") == '"Köln"'
