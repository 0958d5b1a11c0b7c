"""No content of neurona.toml, flags or variables makes a traceback: all errors are ConfigErrors."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurona_server.config.options import list_options
from neurona_server.config.sources import load
from neurona_server.errors import ConfigError

NAMES = [option.name for option in list_options()]
DEEP = 100_000
TOML_VALUES = [
    *('"a\\u0000b"', '""', '"\\U0010ffff"', '"\\n"', '"é:1"', f'"{"x" * 100_000}"'),
    *("0", "-1", f"0x{'f' * 5000}", "1" * 4000, "1" * 5000, "1e400", "nan", "-inf", "1.5", "true"),
    *("2020-01-01", "10:00:00", "2020-01-01T00:00:00Z", "[]", "[[]]", '[1, "a", [2]]', "{}"),
    *("{a = 1}", "[{a = 1}]", '"a..b:80"', '"unix:\\u0000"', f'"{"9" * 5000}"'),
    *(f'"127.0.0.1:{"9" * 5000}"', f'"latest {"9" * 5000}"', '"=\\u0000"', '"http://a..b:1"'),
    f"{'[' * 200}{']' * 200}",
]
FILES = [
    *(b"\xff", b"\0", b"\xef\xbb\xbf=", b"\xff\xfea", b"=", b"[", b'"', b"a" * 1000),
    *(b"[[a]]", b"[a]\n[a]"),
    *(b"[" * DEEP, b"a=" + b"[" * DEEP, b"a=" + b"{a=" * DEEP, b".".join([b"a"] * DEEP) + b"=1"),
    *(b'a="\\ud800"', b'a="\xed\xa0\x80"', b'"\\u0000"=1', b'"' + b"k" * 10_000 + b'"=1'),
    b"repository = 1\nrepository = 2",
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def check_load(arguments=(), environment=None):
    """Load options; an error must be a ConfigError of one short line."""
    try:
        load(["--repository", "models", *arguments], environment or {})
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 600
        return message
    return ""


@pytest.mark.parametrize("value", TOML_VALUES, ids=lambda value: value[:20])
def test_values_of_every_kind(value):
    for name in NAMES:
        Path("neurona.toml").write_text(f"{name} = {value}\n")
        check_load()
        Path("neurona.toml").write_text(f"{name} = [{value}, {value}]\n")
        check_load()


@pytest.mark.parametrize("content", FILES, ids=lambda content: repr(content[:12]))
def test_files_of_every_kind(content):
    Path("neurona.toml").write_bytes(content)
    assert check_load()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_random_files(content):
    Path("neurona.toml").write_bytes(content)
    check_load()


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(NAMES),
    st.one_of(st.text(), st.from_regex(r"[-+]?[0-9_.e]{1,30}"), st.text("\0\udcff\ud800é:=,[]*")),
)
def test_random_texts_of_flags_and_variables(name, text):
    check_load([f"--{name.replace('_', '-')}={text}"])
    check_load([], {f"NEURONA_{name.upper()}": text})


def test_texts_that_are_no_utf_8_are_named():
    for name in ("tokens_file", "address", "load_model", "threads"):
        message = check_load([], {f"NEURONA_{name.upper()}": "a\udcff"})
        assert message.startswith(f"option {name}")
        assert "\\udcff" in message
    assert "NEURONA_TREADS" in check_load([], {"NEURONA_TREADS": "\udcff"})
    check_load([], {"NEURONA_THREAD\udcff": "1"})


def put_nothing(path):
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def put_loop(path):
    path.symlink_to(path.name)


def put_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize(
    "put", [Path.mkdir, os.mkfifo, put_nothing, put_loop, put_socket], ids=lambda put: put.__name__
)
def test_what_is_no_file_is_named_and_does_not_block(put):
    path = Path("options.toml")
    put(path)
    message = check_load(["--config", "options.toml"])
    assert message.startswith("cannot read options.toml: ")


@pytest.mark.parametrize("name", ["/dev/zero", "/proc/self/mem", "/dev/full", "a\0b", "x" * 300])
def test_names_that_are_no_files(name):
    assert check_load([], {"NEURONA_CONFIG": name})


def test_a_file_of_any_size_is_not_read_into_memory():
    with Path("neurona.toml").open("wb") as file:
        file.truncate(1 << 40)
    assert "neurona.toml is too large" in check_load()
