"""No tokens file and no metadata of a call makes a traceback, or shows a token."""

import hashlib
import logging
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import http2

from neurona_server.errors import ConfigError, NeuronaError, UnauthenticatedError
from neurona_server.rpc.security import reloaded_files
from neurona_server.rpc.security.access import Right
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.transports.listener import ListenerOptions

FULL = "a-token-of-many-letters"
VALID = (
    f'[[tokens]]\nname = "a"\nsha256 = "{hashlib.sha256(FULL.encode()).hexdigest()}"\n'
    'rights = ["predict"]\n'
).encode()
VALUES = [
    *(b'"a\\u0000"', b'""', b"0", b"-1", b"0x" + b"f" * 5000, b"1" * 5000, b"nan", b"1.5", b"true"),
    *(b"2020-01-01", b"10:00:00", b"[]", b"[[]]", b"{}", b"{a = 1}", b"[{}]", b"[0, {}]", b"inf"),
    *(
        b'"' + b"f" * 63 + b'"',
        b'"' + b"f" * 64 + b'\\n"',
        '"' + "\uff11" * 64 + '"',
        b"[" * 100_000,
    ),
    *(f'"{FULL}"', f'{{"{FULL}" = 1}}', f'["{FULL}"]', b"[" * 200 + b"]" * 200),
]
FILES = [
    *(b"", b"\xff", b"\0", b"=", b"tokens = 1", b"tokens = [1]", b"tokens = {}", b"tokens = [[]]"),
    *(b"[tokens]", b"[[tokens]]", b"[[tokens]]\n[[tokens.name]]", VALID + VALID, VALID + b"\xff"),
    *(b".".join([b"a"] * 100_000) + b"=1", b"[[tokens]]\n" * 3000, FULL.encode()),
    *(f'"{FULL}" = 1'.encode(), f"{FULL} = 1".encode(), b"\xef\xbb\xbf" + VALID),
    *(
        b"[[tokens]]\n%s = %s\n" % (key, value if isinstance(value, bytes) else value.encode())
        for key in (b"name", b"sha256", b"rights", b"models", b"other")
        for value in VALUES
    ),
]


def check_file(path):
    """Read a tokens file; an error must be a ConfigError of one line without the token."""
    message = "none"
    try:
        Access(path)
    except ConfigError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 600
    assert FULL not in message
    assert "f" * 60 not in message


def test_files_of_every_kind(tmp_path):
    path = tmp_path / "tokens.toml"
    for content in FILES:
        path.write_bytes(content)
        check_file(path)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.integers(0, len(VALID)))
def test_damaged_files(tmp_path, content, position):
    path = tmp_path / "tokens.toml"
    for damaged in (content, VALID[:position] + content + VALID[position:]):
        path.write_bytes(damaged)
        check_file(path)


def test_a_file_that_changes_into_anything_keeps_the_tokens(
    tmp_path, monkeypatch, caplog, wait_until
):
    monkeypatch.setattr(reloaded_files, "CHECK_INTERVAL", 0.01)
    path = tmp_path / "tokens.toml"
    path.write_bytes(VALID)
    access = Access(path)
    changes = [
        lambda: path.write_bytes(b"a=" + b"[" * 100_000),
        lambda: (path.unlink(), path.mkdir()),
        lambda: (path.rmdir(), path.symlink_to(path)),
        lambda: (path.unlink(), os.mkfifo(path)),
        path.unlink,
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"\xff"),
    ]
    for change in changes:
        caplog.clear()
        change()
        wait_until(lambda: "tokens not reloaded" in caplog.text)
        assert not any(record.exc_info for record in caplog.records)
        assert access.grant(Right.PREDICT, [("authorization", f"Bearer {FULL}")]).name == "a"
    path.write_bytes(VALID.replace(b'"a"', b'"b"'))
    wait_until(
        lambda: access.grant(Right.PREDICT, [("authorization", f"Bearer {FULL}")]).name == "b"
    )


@pytest.fixture(scope="module")
def access(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_bytes(VALID)
    return Access(path)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["authorization", "Authorization", "authorization-bin", "x", ""]),
            st.one_of(
                st.binary(),
                st.text(),
                st.text("Bearer \t\0\ud800\x1cé"),
                st.sampled_from([f"Bearer {FULL}\0", f"Bearer {FULL} ", f"Bearer\t{FULL}"]),
            ),
        ),
        max_size=4,
    )
)
def test_metadata_of_every_kind_is_unauthenticated(access, metadata):
    for right in Right:
        with pytest.raises(UnauthenticatedError):
            access.grant(right, metadata)


HEADERS = ("authorization", "authorization-bin", "traceparent", "x-request-id", "grpc-timeout",
           "grpc-encoding", "triton_grpc_error", "x", "x-bin")  # fmt: skip
CONTENTS = [
    *(b"", b" ", b"\x80\xff", b"\xed\xa0\x80", "é".encode(), b"Bearer", b"Bearer \xff\xfe", b"%00"),
    *(
        b"Bearer " + FULL.encode() + b"\xff",
        b"a" * 120,
        b"AAAA",
        b"!!!",
        b"=",
        b"99999999999999S",
    ),
    *(
        b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00",
        b"00-" + b"f" * 32 + b"-\xff",
        b"gzip",
        b"1n",
    ),
]


@pytest.mark.parametrize("header", HEADERS)
def test_headers_of_every_kind_end_only_their_call(make_server, access, header, caplog):
    server = make_server(options=ListenerOptions(1 << 20, access=access))
    own = [] if header == "authorization" else [("authorization", f"Bearer {FULL}")]
    for content in CONTENTS:
        for count in (1, 2) if header == "authorization" else (1,):
            connection = http2.Connection(server.port)
            send_call(connection, [*own, *[(header, content)] * count])
            connection.close()
    live = server.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    assert live(b"", timeout=20)
    for record in caplog.records:
        if record.name.startswith("neurona"):
            assert record.levelno < logging.ERROR
            assert FULL not in record.getMessage()


def send_call(connection, pairs):
    """Make a call with headers of any bytes, and wait for its end."""
    headers = http2.block(
        *((":method", "POST"), (":scheme", "http"), (":authority", "test")),
        *((":path", "/neurona.v1.Prediction/Predict"), ("te", "trailers")),
        *(("content-type", "application/grpc"), *pairs),
    )
    connection.send(
        http2.encode_frame(http2.HEADERS, http2.END_HEADERS, 1, headers)
        + http2.encode_frame(http2.DATA, http2.END_STREAM, 1, http2.message(b""))
    )
    assert connection.read_response(1)


def test_every_error_of_metadata_is_of_the_server(access):
    for value in ("Bearer " + "x" * 10_000, "Bearer \ud800", b"\xff", "Bearer a b"):
        with pytest.raises(NeuronaError) as caught:
            access.grant(Right.PREDICT, [("authorization", value)])
        assert len(str(caught.value)) < 200
