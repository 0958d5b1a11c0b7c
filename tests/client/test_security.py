"""TLS, mutual TLS and tokens, as a client uses them."""

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
FULL, BLIND = "full-token-of-many-letters", "blind-token-of-many-letters"
IMPATIENT = Retries(patience=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    ours, others = CertificateAuthority(folder, "ours"), CertificateAuthority(folder, "others")
    return ours, others, ours.issue("server"), ours.issue("client")


@pytest.fixture(params=[True, False], ids=["coalescing", "unary"])
def coalesce(request):
    return request.param


def test_a_server_is_trusted_by_its_authority(make_server, made, coalesce):
    ours, others, server, _ = made
    started = make_server(options=ListenerOptions(certificates=Certificates(*server, None)))
    address = f"127.0.0.1:{started.port}"
    with Client(address, tls=Tls(ours.certificate), coalesce=coalesce, timeout=20) as client:
        assert client.predict("classifier", ROW).label == "cat"
        assert client.predict("classifier", ROW).label == "cat"
    for wrong in (Tls(others.certificate), True, None):
        with (
            Client(address, tls=wrong, retries=IMPATIENT) as client,
            pytest.raises(neurona_client.UnreachableError),
        ):
            client.predict("classifier", ROW)


def test_a_server_may_ask_for_the_clients_certificate(make_server, made, coalesce):
    ours, _, server, own = made
    certificates = Certificates(*server, ours.certificate)
    started = make_server(options=ListenerOptions(certificates=certificates))
    address = f"127.0.0.1:{started.port}"
    tls = Tls(ours.certificate, *own)
    with Client(address, tls=tls, coalesce=coalesce, timeout=20) as client:
        assert client.predict("classifier", ROW).label == "cat"
    with (
        Client(address, tls=Tls(ours.certificate), retries=IMPATIENT) as client,
        pytest.raises(neurona_client.UnavailableError),
    ):
        client.predict("classifier", ROW)


@pytest.fixture
def guarded(make_server, tmp_path):
    file = tmp_path / "tokens.toml"
    entries = [
        f'[[tokens]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
        f"rights = {rights}\n"
        for name, token, rights in (
            ("full", FULL, ["predict", "describe"]),
            ("blind", BLIND, ["predict"]),
        )
    ]
    file.write_text("".join(entries))
    return f"127.0.0.1:{make_server(options=ListenerOptions(access=Access(file))).port}"


def test_a_token_opens_the_door(guarded, coalesce):
    with Client(guarded, token=FULL, coalesce=coalesce, timeout=20) as client:
        for _ in range(3):
            assert client.predict("classifier", ROW).label == "cat"
    for token in (None, "another-token"):
        with (
            Client(guarded, token=token, coalesce=coalesce, timeout=20) as client,
            pytest.raises(neurona_client.UnauthenticatedError),
        ):
            client.predict("classifier", ROW)


def test_who_may_not_describe_still_predicts_with_arrays_by_name(guarded, coalesce):
    with Client(guarded, token=BLIND, coalesce=coalesce, timeout=20) as client:
        for _ in range(3):
            assert client.predict("classifier", {"x": ROW[np.newaxis]}).label == "cat"
        with pytest.raises(neurona_client.PermissionDeniedError):
            client.describe("classifier")
        with pytest.raises(neurona_client.InvalidInputError, match="give a dict of numpy arrays"):
            client.predict("classifier", ROW)
        with pytest.raises(neurona_client.InvalidInputError, match="expected"):
            client.predict("classifier", {"x": np.ones((1, 5), np.float32)})


@pytest.mark.parametrize(
    "target",
    ["example.com:8001", "dns:///models:8001", "10.0.0.1:8001", "dns://10.0.0.1/localhost:8001"],
)
def test_a_token_is_not_sent_in_plaintext_to_other_machines(target):
    with pytest.raises(ValueError, match="in plaintext"):
        Client(["localhost:1", target], token=FULL)
    Client(target, token=FULL, token_in_plaintext=True).close()
    Client(target, token=FULL, tls=True).close()


@pytest.mark.parametrize(
    "target", ["localhost:1", "dns:///localhost:1", "127.0.0.9:1", "[::1]:1", "unix:/tmp/none"]
)
def test_a_token_may_stay_on_this_machine(target):
    Client(target, token=FULL).close()


def test_options_that_cannot_be_meant_are_refused():
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
    with pytest.raises(ValueError, match="needs its key"):
        Tls(certificate="c.pem")
    with pytest.raises(ValueError, match="at least 1"):
        Retries(attempts=0)
    with pytest.raises(FileNotFoundError):
        Client(tls=Tls("nowhere.pem"))
