"""TLS, mutual TLS and tokens, from the side of the client."""

import hashlib

import numpy as np
import pytest
from support.certificates import CertificateAuthority

import neurona_client
from neurona_client import Client, Retries, Tls
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.transports.listener import ListenerOptions

ROW = np.ones(4, np.float32)
FULL_TOKEN, PREDICT_TOKEN = "full-token-of-many-letters", "predict-token-of-many-letters"
SECURE_TOKEN = "a-token-of-this-service"  # noqa: S105  of `secure_demo_server`
SHORT_RETRIES = Retries(unreachable_timeout=0.3)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = CertificateAuthority(folder, "authority")
    stranger = CertificateAuthority(folder, "stranger")
    return authority, stranger, authority.issue("server"), authority.issue("client")


@pytest.fixture(params=[True, False], ids=["coalescing", "unary"])
def coalesce(request):
    return request.param


def test_a_server_with_a_certificate_of_the_trusted_authority_is_accepted(
    make_server, certificates, coalesce
):
    authority, stranger, server, _ = certificates
    started = make_server(options=ListenerOptions(certificates=Certificates(*server, None)))
    address = f"127.0.0.1:{started.port}"
    with Client(address, tls=Tls(authority.certificate), coalesce=coalesce, timeout=20) as client:
        assert client.predict("classifier", ROW).label == "cat"
        assert client.predict("classifier", ROW).label == "cat"
    for wrong in (Tls(stranger.certificate), True, None):
        with (
            Client(address, tls=wrong, retries=SHORT_RETRIES) as client,
            pytest.raises(neurona_client.UnreachableError),
        ):
            client.predict("classifier", ROW)


def test_a_server_may_require_a_client_certificate(make_server, certificates, coalesce):
    authority, _, server, client_pair = certificates
    server_certificates = Certificates(*server, authority.certificate)
    started = make_server(options=ListenerOptions(certificates=server_certificates))
    address = f"127.0.0.1:{started.port}"
    tls = Tls(authority.certificate, *client_pair)
    with Client(address, tls=tls, coalesce=coalesce, timeout=20) as client:
        assert client.predict("classifier", ROW).label == "cat"
    with (
        Client(address, tls=Tls(authority.certificate), retries=SHORT_RETRIES) as client,
        pytest.raises(neurona_client.UnavailableError),
    ):
        client.predict("classifier", ROW)


@pytest.fixture
def guarded_address(make_server, tmp_path):
    file = tmp_path / "tokens.toml"
    entries = [
        f'[[tokens]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        f"rights = {rights}\n"
        for name, token, rights in (
            ("full", FULL_TOKEN, ["predict", "describe"]),
            ("predict", PREDICT_TOKEN, ["predict"]),
        )
    ]
    file.write_text("".join(entries))
    return f"127.0.0.1:{make_server(options=ListenerOptions(access=Access(file))).port}"


def test_a_call_needs_a_known_token(guarded_address, coalesce):
    with Client(guarded_address, token=FULL_TOKEN, coalesce=coalesce, timeout=20) as client:
        for _ in range(3):
            assert client.predict("classifier", ROW).label == "cat"
    for token in (None, "another-token"):
        with (
            Client(guarded_address, token=token, coalesce=coalesce, timeout=20) as client,
            pytest.raises(neurona_client.UnauthenticatedError),
        ):
            client.predict("classifier", ROW)


def test_a_token_without_the_right_to_describe_predicts_with_arrays_by_name(
    guarded_address, coalesce
):
    with Client(guarded_address, token=PREDICT_TOKEN, coalesce=coalesce, timeout=20) as client:
        for _ in range(3):
            assert client.predict("classifier", {"x": ROW[np.newaxis]}).label == "cat"
        with pytest.raises(neurona_client.PermissionDeniedError):
            client.describe("classifier")
        with pytest.raises(neurona_client.InvalidInputError, match="pass a dict of numpy arrays"):
            client.predict("classifier", ROW)
        with pytest.raises(neurona_client.InvalidInputError, match="expected"):
            client.predict("classifier", {"x": np.ones((1, 5), np.float32)})


@pytest.mark.parametrize(
    "target",
    ["example.com:8001", "dns:///models:8001", "10.0.0.1:8001", "dns://10.0.0.1/localhost:8001"],
)
def test_a_token_is_not_sent_in_plaintext_to_other_machines(target):
    with pytest.raises(ValueError, match="in plaintext"):
        Client(["localhost:1", target], token=FULL_TOKEN)
    Client(target, token=FULL_TOKEN, token_in_plaintext=True).close()
    Client(target, token=FULL_TOKEN, tls=True).close()


@pytest.mark.parametrize(
    "target", ["localhost:1", "dns:///localhost:1", "127.0.0.9:1", "[::1]:1", "unix:/tmp/none"]
)
def test_a_token_may_stay_on_this_machine(target):
    Client(target, token=FULL_TOKEN).close()


def test_invalid_options_are_rejected():
    for options in (
        {"target": ""},
        {"target": []},
        {"token": "two words"},
        {"token": ""},
        {"max_pending_bytes": 0},
        {"max_pending_requests": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
    ):
        with pytest.raises(ValueError, match=r"expected|token"):
            Client(**options)
    with pytest.raises(ValueError, match="missing key"):
        Tls(certificate="c.pem")
    with pytest.raises(ValueError, match="at least 1"):
        Retries(max_attempts=0)
    with pytest.raises(FileNotFoundError):
        Client(tls=Tls("nowhere.pem"))


def test_a_session_uses_tls_and_the_token(secure_demo_server):
    server, folder = secure_demo_server
    tls = Tls(ca=folder / "ca.pem")
    for token, works in ((SECURE_TOKEN, True), (None, False), ("another-token", False)):
        with (
            Client(server.address, tls=tls, token=token, timeout=20) as client,
            client.session("lstm") as session,
        ):
            if works:
                session.send(np.zeros(8, np.float32))
                assert session.receive().label
            else:
                with pytest.raises(neurona_client.UnauthenticatedError):
                    session.send(np.zeros(8, np.float32))
