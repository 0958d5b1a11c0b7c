"""Certificates for tests of TLS; alone, because tests of client and server use it."""

import datetime
from pathlib import Path

import trustme

NAMES = ("127.0.0.1", "::1", "localhost")


class CertificateAuthority:
    """Issues certificates, and is trusted by those who have the file `certificate`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._ca = trustme.CA(organization_name=name)
        self.certificate = folder / f"{name}.crt"
        self._ca.cert_pem.write_to_path(self.certificate)

    def issue(self, name: str, *, expired: bool = False) -> tuple[Path, Path]:
        """Issue a certificate for this machine and return the files of it and of its key."""
        now = datetime.datetime.now(datetime.UTC)
        issued = self._ca.issue_cert(
            *NAMES,
            common_name=name,
            not_before=now - datetime.timedelta(days=30),
            not_after=now + datetime.timedelta(days=-1 if expired else 30),
        )
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key
