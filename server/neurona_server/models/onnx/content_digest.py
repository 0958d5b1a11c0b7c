"""What tells the content of a model's files from any other, wherever they are.

The file is alone because neither the model's file nor its external data know of each other.
"""

from hashlib import blake2b
from pathlib import Path

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx.external_data import find_external
from neurona_server.models.onnx.model_file import read_outline
from neurona_server.sequences.state_bytes import DIGEST_BYTES

_CHUNK_BYTES = 1 << 20


def content_digest(path: Path, cancellation: LoadCancellation) -> bytes:
    """Return the digest of a model's file and its external data, DIGEST_BYTES long.

    Raises:
        LoadError: A file cannot be read, or the load is cancelled.
    """
    external = find_external(path, read_outline(path).external)
    digest = blake2b(digest_size=DIGEST_BYTES)
    for file in [path, *[external[location] for location in sorted(external)]]:
        part = blake2b()  # of each file alone: where one ends counts, too
        try:
            with file.open("rb") as content:
                while chunk := content.read(_CHUNK_BYTES):
                    cancellation.raise_if_cancelled()
                    cancellation.note_progress()
                    part.update(chunk)
        except OSError as error:
            raise LoadError(f"its file {file.name!r} cannot be read: {error.strerror}") from error
        digest.update(part.digest())
    return digest.digest()
