"""Certificates for tests, made with the openssl command."""

import subprocess
from pathlib import Path

EXTENSIONS = "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost"


class Authority:
    """It signs certificates, and is trusted by those who have its `certificate`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = folder / f"{name}.key"
        self.certificate = folder / f"{name}.crt"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "30", "-subj", f"/CN={name}"),
            *("-keyout", self._key, "-out", self.certificate),
        )

    def sign(self, name: str, *, days: int = 30) -> tuple[Path, Path]:
        """The files of a certificate and its key; with negative `days` it has expired."""
        certificate, key, request = (self._folder / f"{name}{e}" for e in (".crt", ".key", ".csr"))
        extensions = self._folder / "extensions"
        extensions.write_text(EXTENSIONS)
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        _openssl(
            *("x509", "-req", "-in", request, "-out", certificate, "-days", str(days)),
            *("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"),
            *("-extfile", extensions),
        )
        return certificate, key


def _openssl(*arguments: object) -> None:
    command = ["openssl", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
