import shutil
import socket
import ssl

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import in_process_server
from support.certificates import CertificateAuthority

from neurona_server.errors import ConfigError
from neurona_server.rpc.health import Health
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.listener import ListenerOptions

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def certificate_files(tmp_path_factory):
    """The files of the tests: of a certificate and its key, or of a CA's certificate."""
    folder = tmp_path_factory.mktemp("tls")
    ours, others = CertificateAuthority(folder, "ours"), CertificateAuthority(folder, "others")
    return {
        "ca": ours.certificate,
        "other ca": others.certificate,
        "right": ours.issue("right"),
        "renewed": ours.issue("renewed"),
        "expired": ours.issue("expired", expired=True),
        "wrong CA": others.issue("wrong"),
    }


class Transport:
    """A transport with TLS that serves only the health service; its files can be replaced."""

    def __init__(self, folder, certificate_files, server="right", client_ca=None):
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.client_ca = folder / "client-ca.crt" if client_ca else None
        self.install(*certificate_files[server])
        if client_ca:
            shutil.copy(certificate_files[client_ca], self.client_ca)
        self.health = Health()
        self.health.set({"": True})
        certificates = Certificates(self.certificate, self.key, self.client_ca)
        options = ListenerOptions(certificates=certificates)
        self.listener = open_transport(in_process_server.TRANSPORT, self.health.methods(), options)
        self.port = self.listener.start("127.0.0.1:0")
        self.certificate_files = certificate_files
        self.channels = []

    def install(self, certificate, key):
        shutil.copy(certificate, self.certificate)
        shutil.copy(key, self.key)

    def connect(self, ca="ca", client=None):
        chain, key = (
            (file.read_bytes() for file in self.certificate_files[client])
            if client
            else (None, None)
        )
        credentials = grpc.ssl_channel_credentials(
            self.certificate_files[ca].read_bytes(), private_key=key, certificate_chain=chain
        )
        # Else a channel shares the connection of one with the same configuration.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options)
        self.channels.append(channel)
        return channel

    def served_certificate(self):
        """The certificate that the server shows to a new connection, as DER."""
        context = ssl.create_default_context(cafile=self.certificate_files["ca"])
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            return tls.getpeercert(binary_form=True)

    def close(self):
        for channel in self.channels:
            channel.close()
        self.listener.stop(5.0)


@pytest.fixture
def make_transport(tmp_path, certificate_files):
    transports = []

    def make(**options):
        transports.append(Transport(tmp_path, certificate_files, **options))
        return transports[-1]

    yield make
    for transport in transports:
        transport.close()


def check(channel):
    return HealthStub(channel).Check(HealthCheckRequest(), timeout=10).status


def der(pem):
    return ssl.PEM_cert_to_DER_cert(pem.read_text())


def assert_no_connection(channel):
    with pytest.raises(grpc.RpcError) as caught:
        check(channel)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_caller_that_trusts_the_ca_is_served(make_transport):
    assert check(make_transport().connect()) == SERVING


def test_a_caller_that_trusts_another_ca_does_not_connect(make_transport):
    assert_no_connection(make_transport().connect(ca="other ca"))


def test_an_expired_server_certificate_is_not_trusted(make_transport):
    assert_no_connection(make_transport(server="expired").connect())


def test_a_plaintext_caller_does_not_connect(make_transport):
    with grpc.insecure_channel(f"127.0.0.1:{make_transport().port}") as channel:
        assert_no_connection(channel)


def test_a_caller_with_a_valid_certificate_is_served(make_transport):
    assert check(make_transport(client_ca="ca").connect(client="right")) == SERVING


@pytest.mark.parametrize("client", [None, "expired", "wrong CA"])
def test_a_caller_without_a_valid_certificate_does_not_connect(make_transport, client):
    assert_no_connection(make_transport(client_ca="ca").connect(client=client))


def test_new_connections_use_a_renewed_certificate_and_existing_ones_stay(
    make_transport, certificate_files
):
    transport = make_transport()
    channel = transport.connect()
    watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=30)
    assert next(watch).status == SERVING
    assert transport.served_certificate() == der(certificate_files["right"][0])
    transport.install(*certificate_files["renewed"])
    assert transport.served_certificate() == der(certificate_files["renewed"][0])
    assert check(transport.connect()) == SERVING
    transport.health.set({"": False})
    assert next(watch).status == NOT_SERVING  # over the existing connection
    assert check(channel) == NOT_SERVING


def test_new_connections_use_another_client_ca(make_transport, certificate_files):
    transport = make_transport(client_ca="ca")
    shutil.copy(certificate_files["other ca"], transport.client_ca)
    assert_no_connection(transport.connect(client="right"))
    assert check(transport.connect(client="wrong CA")) == SERVING


@pytest.mark.parametrize("broken", ["certificate", "key", "gone", "another key"])
def test_invalid_files_keep_the_certificate_and_are_logged_once(
    make_transport, certificate_files, broken, caplog
):
    transport = make_transport()
    if broken == "gone":
        transport.key.unlink()
    elif broken == "another key":
        shutil.copy(certificate_files["renewed"][1], transport.key)
    else:
        (transport.certificate if broken == "certificate" else transport.key).write_text("not PEM")
    for _ in range(3):
        assert transport.served_certificate() == der(certificate_files["right"][0])
    (record,) = [r for r in caplog.records if r.name.startswith("neurona") and r.levelno >= 40]
    assert "TLS certificate not reloaded, keeping the last valid one" in record.getMessage()
    assert (
        str(transport.certificate if broken == "certificate" else transport.key)
        in record.getMessage()
    )
    transport.install(*certificate_files["renewed"])
    assert transport.served_certificate() == der(certificate_files["renewed"][0])


@pytest.mark.parametrize(
    ("broken", "content", "message"),
    [
        ("certificate", b"not PEM", r"tls.crt is not a PEM file of certificates"),
        ("certificate", b"\xff\x00", r"tls.crt is not a PEM file of certificates"),
        ("certificate", None, r"cannot read .*tls.crt: No such file"),
        ("key", b"not PEM", r"tls.key is not a PEM file of the key of .*tls.crt"),
        ("key", None, r"cannot read .*tls.key: No such file"),
        ("ca", b"", r"ca.crt is not a PEM file of certificates"),
    ],
)
def test_an_invalid_file_at_start_is_named(tmp_path, certificate_files, broken, content, message):
    files = {"certificate": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
    paths = {name: tmp_path / file for name, file in files.items()}
    for name, source in zip(
        paths, (*certificate_files["right"], certificate_files["ca"]), strict=True
    ):
        shutil.copy(source, paths[name])
    if content is None:
        paths[broken].unlink()
    else:
        paths[broken].write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Certificates(paths["certificate"], paths["key"], paths["ca"])


def test_a_key_with_a_password_is_an_error_without_a_prompt(tmp_path, certificate_files):
    key = serialization.load_pem_private_key(
        certificate_files["right"][1].read_bytes(), password=None
    )
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="locked.key is not a PEM file of the key of"):
        Certificates(certificate_files["right"][0], locked)
