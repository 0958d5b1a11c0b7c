"""TLS certificates from files, which are reloaded when they are renewed.

gRPC asks for changes at every handshake: new connections use a renewed certificate, and existing
connections stay. While the files are invalid or half written, the last valid certificate is used.
"""

import codecs
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from neurona_server.errors import ConfigError
from neurona_server.rpc.security.reloaded_files import ReloadedFiles

REPLACEMENT_PAUSE = 0.1
"""Seconds without a new handshake before gRPC gets a renewed certificate.

It frees what it made of the last one while a handshake of another thread may be about to use that,
for some microseconds after it has asked for changes."""

_Pems = tuple[bytes, ...]


class Certificates:
    """The server's certificate and key, and the CA of its callers if they need certificates."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the PEM files.

        Args:
            certificate: The server's certificate, with intermediate ones if there are any.
            key: Its private key, without a password.
            client_ca: The CA that must have signed callers' certificates; None if callers need
                no certificates.

        Raises:
            ConfigError: A file cannot be read or is invalid; the message names it.
        """
        files = [certificate, key, *([client_ca] if client_ca else [])]

        def check(pems: list[bytes]) -> _Pems:
            pems = [pem.removeprefix(codecs.BOM_UTF8) for pem in pems]  # editors on Windows
            _check_pems(files, pems)
            return tuple(pems)

        self._pems = ReloadedFiles("TLS certificate", files, check)
        self._client_ca = client_ca
        # gRPC has only a bare pointer to the credentials that it asks.
        self._credentials: list[grpc.ServerCredentials] = []
        self._http_context: tuple[_Pems, ssl.SSLContext] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for one address, which use the current files at every handshake.

        Each address needs its own: gRPC keeps a certificate for each, and asks for changes of it.
        """
        fetcher = _ConfigurationFetcher(lambda: self._pems.content)
        credentials = grpc.dynamic_ssl_server_credentials(
            fetcher.first,
            fetcher,  # type: ignore[arg-type]  # the stubs do not know that it may return None
            require_client_authentication=bool(self._client_ca),
        )
        self._credentials.append(credentials)
        return credentials

    def http_context(self) -> ssl.SSLContext:
        """Return the context of the current files for a connection of HTTP/1.1.

        Only one thread may call this.
        """
        pems = self._pems.content
        if self._http_context is None or self._http_context[0] is not pems:
            self._http_context = pems, _make_http_context(pems)
        return self._http_context[1]


class _ConfigurationFetcher:
    """Gives gRPC the certificate of one address, again whenever it has changed.

    gRPC calls it at each handshake, in the thread of the handshake. It holds a lock of the address
    meanwhile, so there is one call at a time.
    """

    def __init__(self, current: Callable[[], _Pems]) -> None:
        self._current = current
        self._given = current()
        self._last_call = 0.0
        self.first = _make_configuration(self._given)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration if it has changed since the last call, else None.

        A configuration that gRPC got belongs to it, and replaces what it made of the last one, so
        none is given twice.
        """
        pems = self._current()
        if pems is not self._given:
            # gRPC's lock keeps further handshakes out of here until those before have gone on.
            quiet = time.monotonic() - self._last_call
            time.sleep(max(0.0, REPLACEMENT_PAUSE - quiet))
        self._last_call = time.monotonic()
        if pems is self._given:
            return None
        self._given = pems
        return _make_configuration(pems)


def _make_configuration(pems: _Pems) -> grpc.ServerCertificateConfiguration:
    certificate, key, *client_ca = pems
    return grpc.ssl_server_certificate_configuration(
        [(key, certificate)], root_certificates=client_ca[0] if client_ca else None
    )


def _make_http_context(pems: _Pems) -> ssl.SSLContext:
    certificate, key, *client_ca = pems
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with _memory_file(certificate) as chain_path, _memory_file(key) as key_path:
        context.load_cert_chain(chain_path, key_path, password="")
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca[0].decode("ascii"))
    return context


def _check_pems(files: Sequence[Path], pems: Sequence[bytes]) -> None:
    """Check the content of the files, because gRPC would only say that a handshake failed."""
    certificate, key, *_ = files
    for file, content in zip(files, pems, strict=True):
        if file is not key:
            with _config_errors(f"{file} is not a PEM file of certificates"):
                trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                trust.load_verify_locations(cadata=content.decode("ascii"))
    with (
        _config_errors(f"{key} is not a PEM file of the key of {certificate}"),
        _memory_file(pems[0]) as chain_path,
        _memory_file(pems[1]) as key_path,
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(chain_path, key_path, password="")


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """Give OpenSSL, which reads files only, the path of one that holds exactly `content`."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pem")
        with open(descriptor, "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{descriptor}"
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pem"
        path.write_bytes(content)
        yield str(path)


@contextmanager
def _config_errors(message: str) -> Iterator[None]:
    """Raise ConfigError with the message and OpenSSL's reason for an error of the block."""
    try:
        yield
    except (ssl.SSLError, ValueError) as error:  # ValueError: not even ASCII
        reason = getattr(error, "reason", None)
        raise ConfigError(f"{message}{f' ({reason})' if reason else ''}") from error
