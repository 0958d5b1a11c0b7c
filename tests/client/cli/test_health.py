import hashlib
import os
import signal

import pytest
from support.certificates import CertificateAuthority
from support.server_process import ServerProcess

BEARER = "a-secret-that-nobody-can-guess"


@pytest.mark.parametrize("name", ["", "classifier", "classifier/2", "neurona.v1.Prediction"])
def test_what_serves_is_said_to_serve(neurona, name):
    done = neurona("health", *filter(None, [name]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")


def test_a_model_that_there_is_none_of_does_not_serve(neurona, served):
    done = neurona("health", "nothing")
    assert done.returncode == 1
    assert done.stdout == ""
    reason = "NOT_FOUND: nothing called 'nothing' is served"
    assert done.stderr == f"neurona: {served.address}: {reason}\n"


def test_nobody_there_is_one_line(neurona):
    done = neurona("health", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("neurona: 127.0.0.1:1: UNAVAILABLE: ")
    assert done.stderr.count("\n") == 1


def test_all_of_several_addresses_must_serve(neurona, served):
    done = neurona("health", "--address", f"{served.address},{served.address}")
    assert done.returncode == 0
    assert done.stdout == f"{served.address}: SERVING\n" * 2
    done = neurona("health", "--address", f"127.0.0.1:1,{served.address}")
    assert done.returncode == 1
    assert done.stdout == f"{served.address}: SERVING\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "COMMAND"),
        (("helth",), "helth"),
        (("health", "--timeout", "0"), "'0' is not a number of seconds above 0"),
        (("health", "--timeout", "nan"), "'nan' is not a number of seconds above 0"),
        (("health", "--address", ","), "the address is ','"),
        (("health", "--ca", "/nowhere"), "cannot read /nowhere: No such file"),
        (("health", "--key", __file__), "--certificate and --key go together"),
    ],
)
def test_a_wrong_command_line_is_status_2(neurona, arguments, said):
    done = neurona(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"NEURONA_TLS": "perhaps"}, "NEURONA_TLS is 'perhaps'; expected true or false"),
        ({"NEURONA_TOKEN": "two words"}, "the token has spaces"),
        ({"NEURONA_TOKEN_FILE": "/nowhere"}, "cannot read /nowhere"),
    ],
)
def test_a_wrong_environment_is_status_2_and_shows_no_token(neurona, variables, said):
    done = neurona("health", variables=variables)
    assert done.returncode == 2
    assert said in done.stderr
    assert "two words" not in done.stderr


def test_tls_and_tokens_by_flag_and_by_environment(neurona, repository, tmp_path):
    authority = CertificateAuthority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    mine, my_key = authority.issue("client")
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(BEARER.encode()).hexdigest()
    tokens.write_text(f'[[tokens]]\nname = "a"\nsha256 = "{digest}"\nrights = ["describe"]\n')
    flags = ["--tls-certificate", certificate, "--tls-key", key]
    flags += ["--tls-client-ca", authority.certificate, "--tokens-file", tokens]
    with ServerProcess(
        repository, *flags, trusted_ca=authority.certificate, client_certificate=(mine, my_key)
    ) as server:
        to = ["health", "--address", server.address]
        shown = ["--ca", authority.certificate, "--certificate", mine, "--key", my_key]
        done = neurona(*to, *shown)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
        variables = {
            "NEURONA_CA": str(authority.certificate),
            "NEURONA_CLIENT_CERTIFICATE": str(mine),
            "NEURONA_CLIENT_KEY": str(my_key),
            "NEURONA_SERVER_NAME": "localhost",
            "NEURONA_TOKEN": BEARER,
        }
        done = neurona(*to, variables=variables)
        assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr
        variables["NEURONA_SERVER_NAME"] = "elsewhere"
        done = neurona(*to, variables=variables)
        assert done.returncode == 1
        assert done.stderr.startswith(f"neurona: {server.address}: UNAVAILABLE: ")


def test_a_reader_that_has_seen_enough_hears_no_complaint(neurona):
    reading, writing = os.pipe()
    os.close(reading)
    done = neurona("health", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
