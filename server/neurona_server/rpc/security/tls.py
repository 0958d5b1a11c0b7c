"""TLS from files, which may be renewed while the server runs.

gRPC asks for the certificate at every handshake: a renewed one is used by the connections that
come after it, and those that are there stay. Files that are broken, or half written, leave the
old certificate where it is.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from neurona_server.errors import ConfigError
from neurona_server.rpc.security.reloading import ReloadedFiles, content


class Certificates:
    """Raises ConfigError, naming the file, when they cannot be used.

    With a `client_ca`, callers must show a certificate that it signed.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._files = [certificate, key, *([client_ca] if client_ca else [])]
        self._renewed = ReloadedFiles("TLS certificate", self._files, self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """They ask for the certificate at every handshake, in threads of gRPC."""
        return grpc.dynamic_ssl_server_credentials(
            self._renewed.current(),
            self._renewed.current,
            require_client_authentication=bool(self._client_ca),
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        contents = [content(file) for file in self._files]
        self._check(contents)
        if [content(file) for file in self._files] != contents:
            raise ConfigError(f"{self._certificate} changed while it was read; try again")
        certificate, key = contents[:2]
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=contents[2] if self._client_ca else None
        )

    def _check(self, contents: list[bytes]) -> None:
        """gRPC would say of a broken file only that the handshake failed."""
        for file, text in zip(self._files, contents, strict=True):
            if file != self._key:
                with _named(f"{file} is no PEM file of certificates"):
                    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    trust.load_verify_locations(cadata=text.decode("ascii"))
        with _named(f"{self._key} is no PEM file of the key of {self._certificate}"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password of ours, OpenSSL would ask the terminal for one.
            context.load_cert_chain(self._certificate, self._key, password="")


@contextmanager
def _named(fault: str) -> Iterator[None]:
    try:
        yield
    except (ssl.SSLError, ValueError) as error:  # ValueError: not even ASCII
        reason = getattr(error, "reason", None)
        raise ConfigError(f"{fault}{f' ({reason})' if reason else ''}") from error
