"""neurona health: statuses, several servers, TLS and tokens."""

import hashlib
import os
import signal

import pytest
from support.certificates import CertificateAuthority
from support.server_process import ServerProcess

BEARER = "a-secret-that-nobody-can-guess"


@pytest.mark.parametrize("name", ["", "classifier", "classifier/2", "neurona.v1.Prediction"])
def test_a_serving_service_prints_serving(neurona, name):
    done = neurona("health", *filter(None, [name]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")


def test_an_unknown_model_fails(neurona, served):
    done = neurona("health", "nothing")
    assert done.returncode == 1
    assert done.stdout == ""
    reason = "NOT_FOUND: unknown service or model 'nothing'"
    assert done.stderr == f"neurona: {served.address}: {reason}\n"


def test_an_unreachable_server_is_one_line_on_standard_error(neurona):
    done = neurona("health", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("neurona: 127.0.0.1:1: UNAVAILABLE: ")
    assert done.stderr.count("\n") == 1


def test_all_of_several_servers_must_serve(neurona, served):
    done = neurona("health", "--address", f"{served.address},{served.address}")
    assert done.returncode == 0
    assert done.stdout == f"{served.address}: SERVING\n" * 2
    done = neurona("health", "--address", f"127.0.0.1:1,{served.address}")
    assert done.returncode == 1
    assert done.stdout == f"{served.address}: SERVING\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("helth",), "helth"),
        (("health", "--timeout", "0"), "invalid duration '0' (expected seconds above 0)"),
        (("health", "--timeout", "nan"), "invalid duration 'nan' (expected seconds above 0)"),
        (("health", "--address", ","), "invalid address ','"),
        (("health", "--ca", "/nowhere"), "cannot read /nowhere: No such file"),
        (("health", "--key", __file__), "--certificate and --key are required together"),
    ],
)
def test_an_invalid_command_line_exits_with_2(neurona, arguments, message):
    done = neurona(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NEURONA_TLS": "perhaps"}, "NEURONA_TLS is 'perhaps' (expected true or false)"),
        ({"NEURONA_TOKEN": "two words"}, "invalid token (expected ASCII without spaces)"),
        ({"NEURONA_TOKEN_FILE": "/nowhere"}, "cannot read /nowhere"),
    ],
)
def test_an_invalid_environment_exits_with_2_and_does_not_print_the_token(
    neurona, variables, message
):
    done = neurona("health", variables=variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert "two words" not in done.stderr


def test_tls_and_tokens_by_flag_and_by_environment(neurona, repository, tmp_path):
    authority = CertificateAuthority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    client_certificate, client_key = authority.issue("client")
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(BEARER.encode()).hexdigest()
    tokens.write_text(f'[[tokens]]\nname = "a"\nsha256 = "{digest}"\nrights = ["describe"]\n')
    flags = ["--tls-certificate", certificate, "--tls-key", key]
    flags += ["--tls-client-ca", authority.certificate, "--tokens-file", tokens]
    with ServerProcess(
        repository,
        *flags,
        trusted_ca=authority.certificate,
        client_certificate=(client_certificate, client_key),
    ) as server:
        to = ["health", "--address", server.address]
        files = [
            "--ca",
            authority.certificate,
            "--certificate",
            client_certificate,
            "--key",
            client_key,
        ]
        done = neurona(*to, *files)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
        variables = {
            "NEURONA_CA": str(authority.certificate),
            "NEURONA_CLIENT_CERTIFICATE": str(client_certificate),
            "NEURONA_CLIENT_KEY": str(client_key),
            "NEURONA_SERVER_NAME": "localhost",
            "NEURONA_TOKEN": BEARER,
        }
        done = neurona(*to, variables=variables)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
        for path in (authority.certificate, client_certificate, client_key):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        token = tmp_path / "token.txt"  # as Windows PowerShell writes it
        token.write_bytes(f"{BEARER}\r\n".encode("utf-16"))
        done = neurona("models", *to[1:], *files, "--token-file", token)
        assert done.returncode == 0, done.stderr
        variables["NEURONA_SERVER_NAME"] = "elsewhere"
        done = neurona(*to, variables=variables)
        assert done.returncode == 1
        assert done.stderr.startswith(f"neurona: {server.address}: UNAVAILABLE: ")


def test_a_closed_standard_output_exits_with_141_and_prints_nothing(neurona):
    reading, writing = os.pipe()
    os.close(reading)
    done = neurona("health", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
