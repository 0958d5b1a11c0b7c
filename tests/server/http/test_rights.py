"""TLS, tokens, hosts and origins."""

import contextlib
import hashlib
import shutil
import ssl
import time

import pytest
from support.certificates import CertificateAuthority
from support.http_caller import JSON, PREDICT, serve, trusting

from neurona_server.rpc.security import reloaded_files

LIST = "/neurona.v1.Models/List"


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return CertificateAuthority(tmp_path_factory.mktemp("tls"), "ours")


def test_certificates_of_both_sides_are_checked_and_reloaded(ca, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(reloaded_files, "CHECK_INTERVAL", 0.02)
    files = tmp_path / "server.crt", tmp_path / "server.key"
    for source, target in zip(ca.issue("first"), files, strict=True):
        shutil.copy(source, target)
    flags = ["--tls-certificate", files[0], "--tls-key", files[1]]
    context = trusting(ca.certificate, ca.issue("caller"))
    with serve(repository, *flags, "--tls-client-ca", ca.certificate, context=context) as caller:
        assert caller.send("/healthz")[0] == 200
        assert caller.predict(rows=1000)[0] == 200
        with contextlib.suppress(OSError), _connect(caller, trusting(ca.certificate)) as one:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert not one.recv(1 << 16).startswith(b"HTTP")  # it has shown no certificate
        assert b"HTTP/1.1 200" not in caller.send_raw(b"GET /healthz HTTP/1.0\r\n\r\n")
        renewed = ca.issue("renewed")
        for source, target in zip(renewed, files, strict=True):
            shutil.copy(source, target)
        expected = ssl.PEM_cert_to_DER_cert(renewed[0].read_text())
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with _connect(caller, context) as one:
                if one.getpeercert(binary_form=True) == expected:
                    return
        raise AssertionError("the renewed certificate is not used")


def _connect(caller, context):
    return context.wrap_socket(caller.connect(), server_hostname="localhost")


TOKENS = {"predicts": ["predict"], "describes": ["describe"]}


@pytest.fixture(scope="module")
def protected(repository, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    entries = [
        f'[[tokens]]\nname = "{name}"\nrights = {rights}\nmodels = ["classifier"]\n'
        f'sha256 = "{hashlib.sha256(_token(name).encode()).hexdigest()}"\n'
        for name, rights in TOKENS.items()
    ]
    file.write_text("".join(entries))
    with serve(repository, "--tokens-file", file) as caller:
        yield caller


def _token(name):
    return f"{name}-0123456789-0123456789"


def test_a_token_gives_its_rights(protected):
    def headers(name):
        return {"Authorization": f"Bearer {_token(name)}"}

    assert protected.predict(**headers("predicts"))[0] == 200
    assert protected.predict(model="regressor", **headers("predicts"))[0] == 403
    assert protected.post_json(LIST, {}, **headers("predicts"))[0] == 403
    status, answer = protected.post_json(LIST, {}, **headers("describes"))
    assert status == 200
    assert [one["model"] for one in answer["models"]] == ["classifier"]
    status, reply, content = protected.predict()
    assert (status, reply["WWW-Authenticate"]) == (401, "Bearer")
    assert b"missing token" in content
    assert protected.predict(Authorization="Bearer nothing-nothing-nothing")[0] == 401
    assert protected.predict(Authorization="Basic YTpi")[0] == 401
    assert protected.send("/healthz")[0] == 200


def test_a_request_without_a_right_is_rejected_before_its_body(protected):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with protected.connect() as one:
        one.sendall(head.encode())
        assert one.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[("localhost:8000", 200), ("10.0.0.1", 200), ("neurona", 200), ("[::1]:1", 200)],
        *[("serving.example.com", 200), ("attacker.com", 421), ("127.0.0.1.attacker.com", 421)],
    ],
)
def test_a_web_page_cannot_call_under_a_name_of_its_own(caller, host, status):
    assert caller.post_json(LIST, {}, Host=host)[0] == status
    assert caller.send("/nothing", Host=host)[0] == (404 if status == 200 else 421)
    assert caller.send("/healthz", Host=host)[0] == 200


def test_a_page_of_another_site_cannot_post_without_tokens(caller, protected):
    own = f"127.0.0.1:{caller.port}"
    for origin, status in [
        (f"http://{own}", 200),
        ("https://serving.example.com", 200),
        ("https://attacker.com", 403),
        ("http://127.0.0.1:1", 403),
        ("null", 403),
        ("http://", 403),
    ]:
        assert caller.post_json(LIST, {}, Origin=origin, Host=own)[0] == status
    headers = {"Authorization": f"Bearer {_token('describes')}"}
    assert protected.post_json(LIST, {}, Origin="https://a.com", **headers)[0] == 200


def test_responses_are_for_nobody_else(caller):
    _, headers, _ = caller.send(LIST, b"{}", Content_Type=JSON)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Access-Control-Allow-Origin"] is None
