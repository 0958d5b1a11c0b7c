"""TLS certificates from files, which are reloaded when they are renewed.

gRPC asks for the certificate at every handshake: new connections use a renewed one, and existing
connections stay. While the files are invalid or half written, the last valid certificate is used.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from neurona_server.errors import ConfigError
from neurona_server.rpc.security.reloaded_files import ReloadedFiles, read_file


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
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._files = [certificate, key, *([client_ca] if client_ca else [])]
        self._configuration = ReloadedFiles("TLS certificate", self._files, self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that use the current files at every handshake, in gRPC's threads."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration.current(),
            self._configuration.current,
            require_client_authentication=bool(self._client_ca),
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        contents = [read_file(file) for file in self._files]
        self._check(contents)
        if [read_file(file) for file in self._files] != contents:
            raise ConfigError(f"{self._certificate} changed while it was read; try again")
        certificate, key = contents[:2]
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=contents[2] if self._client_ca else None
        )

    def _check(self, contents: list[bytes]) -> None:
        """Check the files, because gRPC would only say that a handshake failed."""
        for file, content in zip(self._files, contents, strict=True):
            if file != self._key:
                with _config_errors(f"{file} is not a PEM file of certificates"):
                    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    trust.load_verify_locations(cadata=content.decode("ascii"))
        with _config_errors(f"{self._key} is not a PEM file of the key of {self._certificate}"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")


@contextmanager
def _config_errors(message: str) -> Iterator[None]:
    """Raise ConfigError with the message and OpenSSL's reason for an error of the block."""
    try:
        yield
    except (ssl.SSLError, ValueError) as error:  # ValueError: not even ASCII
        reason = getattr(error, "reason", None)
        raise ConfigError(f"{message}{f' ({reason})' if reason else ''}") from error
