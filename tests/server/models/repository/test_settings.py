import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_server.errors import LoadError
from neurona_server.models.repository.scanner import read_settings
from neurona_server.models.repository.settings import VersionPolicy


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", {1, 2, 5}),
        ("latest", {5}),
        ("latest 2", {2, 5}),
        ("latest 9", {1, 2, 5}),
        ([1, 5], {1, 5}),
        ([5, 5, 7], {5}),
    ],
)
def test_policy_chooses_from_the_versions_on_disk(value, expected):
    assert VersionPolicy.parse(value).choose([5, 1, 2]) == expected


def test_highest_version_is_served_by_default():
    assert VersionPolicy().choose([3, 1]) == {3}
    assert VersionPolicy().choose([]) == set()


@pytest.mark.parametrize(
    "value", ["", "latest 0", "latest -1", "newest", "latest2", [], [0], [True], ["1"], 2, None, {}]
)
def test_invalid_policies_are_rejected(value):
    with pytest.raises(ValueError, match='expected "all", "latest", "latest N" or a list'):
        VersionPolicy.parse(value)


PIECES = st.sampled_from(
    [
        *("name", "input", "dims", "max_batch_size", "version_policy", "all", "parameters", "key"),
        *("labels", "inputs", "traffic", "shadow", "values", "axes", "instances", "task", "value"),
        *("{", "}", "[", "]", "[[", "]]", ":", "=", ",", ".", ";", "#", '"', "'", "\n", " ", "-"),
        *("1", "-1", "1e999", "nan", "9" * 5000, "true", "1979-05-27", "\\u0000", "\ud7ff", "\0"),
    ]
)


@pytest.mark.parametrize("name", ["model.toml", "config.pbtxt"])
@settings(max_examples=100, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode()),
    )
)
def test_any_content_is_read_or_rejected_in_one_line(name, content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        error = None
        try:
            read_settings(Path(folder))
        except LoadError as raised:
            error = str(raised)
    assert error is None or (error.startswith(f"{name}: ") and error.isprintable())
