import contextlib
import os
import shutil
import socket
import ssl
import threading
import time

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from support import in_process_server
from support.certificates import CertificateAuthority

from neurona_server.errors import ConfigError
from neurona_server.rpc.health import Health
from neurona_server.rpc.security import reloaded_files
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.listener import ListenerOptions

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
def _frequent_checks(monkeypatch):
    monkeypatch.setattr(reloaded_files, "CHECK_INTERVAL", 0.02)


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

    def __init__(
        self,
        folder,
        certificate_files,
        server="right",
        client_ca=None,
        address="127.0.0.1:0",
    ):
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
        self.port = self.listener.start(address)
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
        return shown_certificate(self.port, self.certificate_files["ca"])

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


def shown_certificate(port, ca):
    """Return the certificate that a server shows to a new connection, as DER."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        return tls.getpeercert(binary_form=True)


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
    make_transport, certificate_files, wait_until
):
    transport = make_transport()
    channel = transport.connect()
    watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=30)
    assert next(watch).status == SERVING
    assert transport.served_certificate() == der(certificate_files["right"][0])
    transport.install(*certificate_files["renewed"])
    renewed = der(certificate_files["renewed"][0])
    wait_until(lambda: transport.served_certificate() == renewed)
    assert check(transport.connect()) == SERVING
    transport.health.set({"": False})
    assert next(watch).status == NOT_SERVING  # over the existing connection
    assert check(channel) == NOT_SERVING


def test_new_connections_use_another_client_ca(make_transport, certificate_files, wait_until):
    transport = make_transport(client_ca="ca")
    shutil.copy(certificate_files["other ca"], transport.client_ca)

    def is_refused():
        with contextlib.suppress(grpc.RpcError):
            return check(transport.connect(client="right")) != SERVING
        return True

    wait_until(is_refused)
    assert check(transport.connect(client="wrong CA")) == SERVING


def put_folder(path):
    path.unlink()
    path.mkdir()


def put_pipe(path):
    path.unlink()
    os.mkfifo(path)


def put_sparse_file(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("broken", "change"),
    [
        ("certificate", lambda path: path.write_text("not PEM")),
        ("key", lambda path: path.write_text("not PEM")),
        ("key", lambda path: path.unlink()),
        ("key", put_folder),
        ("key", put_pipe),  # a reader would wait for a writer
        ("certificate", put_pipe),
        ("certificate", put_sparse_file),
    ],
)
def test_invalid_files_keep_the_certificate_and_are_logged_once(
    make_transport, certificate_files, broken, change, caplog, wait_until
):
    transport = make_transport()
    path = getattr(transport, broken)
    change(path)

    def errors():
        return [r for r in caplog.records if r.name.startswith("neurona") and r.levelno >= 40]

    wait_until(errors)
    for _ in range(3):
        time.sleep(0.05)  # several checks
        assert transport.served_certificate() == der(certificate_files["right"][0])
    (record,) = errors()
    assert "TLS certificate not reloaded, keeping the last valid one" in record.getMessage()
    assert str(path) in record.getMessage()
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    transport.install(*certificate_files["renewed"])
    renewed = der(certificate_files["renewed"][0])
    wait_until(lambda: transport.served_certificate() == renewed)


def test_a_key_of_another_certificate_is_not_used(
    make_transport, certificate_files, caplog, wait_until
):
    transport = make_transport()
    shutil.copy(certificate_files["renewed"][1], transport.key)
    wait_until(lambda: "is not a PEM file of the key of" in caplog.text)
    assert transport.served_certificate() == der(certificate_files["right"][0])


def test_files_that_do_not_respond_stop_no_handshake(
    make_transport, certificate_files, monkeypatch, wait_until
):
    transport = make_transport()
    reached, respond = threading.Event(), threading.Event()
    read_file = reloaded_files.read_file

    def read_slowly(path):
        reached.set()
        respond.wait(60)
        return read_file(path)

    monkeypatch.setattr(reloaded_files, "read_file", read_slowly)
    transport.install(*certificate_files["renewed"])
    assert reached.wait(60)
    for _ in range(20):
        assert transport.served_certificate() == der(certificate_files["right"][0])
        assert check(transport.connect()) == SERVING
    respond.set()
    renewed = der(certificate_files["renewed"][0])
    wait_until(lambda: transport.served_certificate() == renewed)


def test_every_address_gets_its_own_certificate_and_every_renewal(
    make_transport, certificate_files, wait_until
):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        second = one.getsockname()[1]
    transport = make_transport(address=f"127.0.0.1:0,127.0.0.1:{second},localhost:0")
    for name in ("right", "renewed", "right"):
        transport.install(*certificate_files[name])
        expected = der(certificate_files[name][0])
        for port in (transport.port, second):
            wait_until(
                lambda port=port, expected=expected: (
                    shown_certificate(port, certificate_files["ca"]) == expected
                )
            )
            assert shown_certificate(port, certificate_files["ca"]) == expected


def test_renewals_while_many_threads_shake_hands(make_transport, certificate_files, wait_until):
    """gRPC's threads use what it made of the last certificate until the moment of the renewal."""
    transport = make_transport()
    stop, counts, errors = threading.Event(), [], []

    def connect():
        count = 0
        try:
            while not stop.is_set():
                transport.served_certificate()
                count += 1
        except OSError as error:
            errors.append(error)
        counts.append(count)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for name in ("renewed", "right") * 3:
        transport.install(*certificate_files[name])
        expected = der(certificate_files[name][0])
        wait_until(lambda expected=expected: transport.served_certificate() == expected)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert min(counts) >= 6  # as many as renewals, in each thread


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


@pytest.mark.parametrize("put", [put_folder, put_pipe, put_sparse_file])
def test_a_file_at_start_that_is_none_is_an_error_at_once(tmp_path, certificate_files, put):
    certificate = tmp_path / "tls.crt"
    certificate.touch()
    put(certificate)
    with pytest.raises(ConfigError, match=r"tls.crt"):
        Certificates(certificate, certificate_files["right"][1])


def test_a_file_that_does_not_respond_at_start_is_an_error(certificate_files, monkeypatch):
    monkeypatch.setattr(reloaded_files, "FIRST_READ_TIMEOUT", 0.1)
    respond = threading.Event()
    monkeypatch.setattr(reloaded_files, "read_file", lambda _: respond.wait(60) and b"")
    with pytest.raises(ConfigError, match=r"cannot read .*right.crt: no answer within 0.1 s"):
        Certificates(*certificate_files["right"])
    respond.set()
