from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from neurona_server.errors import LoadError
from neurona_server.models.repository.validation import convert


class Color:
    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def parse(cls, value: object) -> "Color":
        if value not in ("red", "green"):
            raise ValueError("expected a color")
        return cls(str(value))


class Tensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    axes: tuple[str, ...] = ()


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    threads: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None
    least: Annotated[int, msgspec.Meta(ge=1)] = 1
    most: Annotated[int, msgspec.Meta(le=9)] = 1
    delay: Annotated[float, msgspec.Meta(ge=0, le=1e8)] = 0.0
    mode: Literal["auto", "always", "never"] = "auto"
    softmax: bool = False
    text: Annotated[str, msgspec.Meta(min_length=1)] = "-"
    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ()
    tensors: dict[str, Tensor] = {}
    by_label: dict[
        Annotated[str, msgspec.Meta(pattern="^[a-z]+$", description="lower-case letters")], int
    ] = {}
    folder: Path | None = None
    color: Color | None = None


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"threads": 3}, "threads", 3),
        ({"delay": 3}, "delay", 3.0),
        ({"mode": "never"}, "mode", "never"),
        ({"labels": ["a", "b"]}, "labels", ("a", "b")),
        ({"tensors": {"x": {"name": "y"}}}, "tensors", {"x": Tensor("y")}),
        ({"folder": "/srv"}, "folder", Path("/srv")),
        ({}, "threads", None),
    ],
)
def test_valid_values_are_converted(values, field, expected):
    assert getattr(convert(values, Settings, "", LoadError), field) == expected


def test_custom_types_are_parsed():
    assert convert({"color": "red"}, Settings, "", LoadError).color.name == "red"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thread": 1}, "unknown key 'thread'; did you mean 'threads'?"),
        ({"zzz": 1}, "unknown key 'zzz'"),
        ({"threads": 65}, "threads is 65 (expected an integer from 0 to 64"),
        ({"threads": True}, "threads is True (expected an integer from 0 to 64"),
        ({"threads": "3"}, "threads is '3' (expected an integer from 0 to 64"),
        ({"threads": 1.5}, "threads is 1.5 (expected an integer from 0 to 64"),
        ({"threads": 10**30}, f"threads is {10**30} (expected an integer from 0 to 64"),
        ({"threads": 10**5000}, "threads is a number with too many digits (expected an integer"),
        ({"least": 0}, "least is 0 (expected an integer of at least 1"),
        ({"most": 10}, "most is 10 (expected an integer of at most 9"),
        ({"delay": float("nan")}, "delay is nan (expected a number from 0 to 100000000"),
        ({"mode": "allways"}, "expected auto, always or never); did you mean 'always'?"),
        ({"mode": 1}, "mode is 1 (expected auto, always or never"),
        ({"softmax": 1}, "softmax is 1 (expected true or false"),
        ({"text": ""}, "text is '' (expected a non-empty string"),
        ({"text": "a\nb" * 99, "softmax": 1}, "softmax is 1 (expected true or false"),
        ({"labels": "ab"}, "labels is 'ab' (expected a non-empty list"),
        ({"labels": []}, "labels is [] (expected a non-empty list"),
        ({"labels": ["a", 1]}, "labels[1] is 1 (expected a string"),
        ({"tensors": 1}, "tensors is 1 (expected a table"),
        ({"tensors": {"x": 1}}, "tensors.x is 1 (expected a table"),
        ({"tensors": {"x": {}}}, "missing key 'name' in tensors.x"),
        (
            {"tensors": {"a b": {"name": "y", "axs": []}}},
            "unknown key 'axs' in tensors.'a b'; did you mean 'axes'?",
        ),
        ({"by_label": {"A": 1}}, "a key of by_label is 'A' (expected lower-case letters"),
        ({"by_label": {"a": "1"}}, "by_label.a is '1' (expected an integer"),
        ({"color": "blue"}, "color is 'blue' (expected a color"),
    ],
)
def test_invalid_values_are_named_with_what_was_expected(values, message):
    with pytest.raises(LoadError) as caught:
        convert(values, Settings, "", LoadError)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_begin_with_what_contains_the_values():
    with pytest.raises(LoadError, match=r"^token 3\.text is 1 \(expected a non-empty string\)$"):
        convert({"text": 1}, Settings, "token 3", LoadError)
    with pytest.raises(LoadError, match="^unknown key 'a' in token 3$"):
        convert({"a": 1}, Settings, "token 3", LoadError)


def test_values_can_be_kept_out_of_messages():
    for values in ({"text": 12345}, {"labels": ["a", 12345]}, {"mode": "12345"}):
        with pytest.raises(LoadError) as caught:
            convert(values, Settings, "", LoadError, show_values=False)
        assert "12345" not in str(caught.value)
        assert "expected" in str(caught.value)
    with pytest.raises(LoadError, match=r"^unknown key in tensors\.x \(expected name, axes\)$"):
        convert({"tensors": {"x": {"12345": 1}}}, Settings, "", LoadError, show_values=False)
