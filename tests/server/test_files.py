"""Files that people write, in the encodings that their editors and shells choose."""

import hashlib
import io

import pytest
from support.certificates import CertificateAuthority

from neurona_server.config.sources import load
from neurona_server.errors import ConfigError
from neurona_server.files import decode_text
from neurona_server.models.repository.scanner import read_settings
from neurona_server.rpc.security.access import Right
from neurona_server.rpc.security.tls import Certificates
from neurona_server.rpc.security.tokens import Access, hash_token

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]  # the last three with a byte order mark
TOKEN = "a token of Müller".replace(" ", "-") + "-long-enough"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_options_tokens_and_settings_may_have_a_byte_order_mark(tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neurona.toml").write_bytes('repository = "müller"\r\n'.encode(encoding))
    assert [str(path) for path in load([], {}).repository] == ["müller"]
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens = f'[[tokens]]\r\nname = "ü"\r\nsha256 = "{digest}"\r\nrights = ["predict"]\r\n'
    (tmp_path / "tokens.toml").write_bytes(tokens.encode(encoding))
    access = Access(tmp_path / "tokens.toml")
    metadata = [("authorization", f"Bearer {TOKEN}")]
    assert access.grant(Right.PREDICT, metadata).name == "ü"
    settings = 'task = "classification"\r\nlabels_file = "labels.txt"\r\n'
    (tmp_path / "model.toml").write_bytes(settings.encode(encoding))
    (tmp_path / "labels.txt").write_bytes("Tür\r\nTor\r\n".encode(encoding))
    assert read_settings(tmp_path).labels == ("Tür", "Tor")


def test_certificates_and_tokens_on_standard_input_may_have_a_byte_order_mark(
    tmp_path, monkeypatch, capsys
):
    certificate, key = CertificateAuthority(tmp_path, "ca").issue("localhost")
    for path in (certificate, key):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    Certificates(certificate, key)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"\ufeff{TOKEN}\r\n"))
    assert hash_token() == 0
    assert capsys.readouterr().out.strip() == hashlib.sha256(TOKEN.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = 'M\xfcller'\n", "line 2: byte 0xfc is not UTF-8 (expected UTF-8)"),
        (b"\xff\xfea\0\n\0\x00\xd8", "line 2: byte 0x00 is not UTF-16 (expected UTF-8)"),
        (b"\xff\xfe\0\0a\0\0", "line 1: byte 0x61 is not UTF-32 (expected UTF-8)"),
    ],
)
def test_another_encoding_is_told_with_its_line(tmp_path, monkeypatch, content, message):
    with pytest.raises(ValueError, match="line") as caught:
        decode_text(content)
    assert str(caught.value) == message
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neurona.toml").write_bytes(content)
    with pytest.raises(ConfigError) as rejected:
        load([], {})
    assert str(rejected.value) == f"invalid TOML in neurona.toml: {message}"
