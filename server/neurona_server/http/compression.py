"""Compressed bodies of requests and responses, gzip and deflate, with a limit.

A body of a few kilobytes may be one of gigabytes once it is decompressed, so that ends at a limit.
The file is alone because both directions and all routes share its limits.
"""

import gzip
import zlib
from http import HTTPStatus

from neurona_server.errors import TooLargeError, quoted
from neurona_server.http.error_responses import HttpError
from neurona_server.web.messages import accepts_encoding

SLOW_BYTES = 64 << 10
"""Bytes from which on compressing or decompressing them takes longer than a millisecond."""

LEVEL = 1
"""Higher levels need several times the CPU for a few percent."""

MIN_COMPRESSED_BYTES = 1 << 10
"""Smaller responses are not compressed: they fit into a packet."""

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def check_encoding(encoding: str) -> str:
    """Return the encoding of a body, "" if it is not compressed.

    Raises:
        HttpError: The header Content-Encoding has another value than gzip, deflate or identity.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return ""
    if name not in _WINDOW_BITS:
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"unsupported Content-Encoding {quoted(encoding)} (expected gzip, deflate or identity)",
            Accept_Encoding="gzip, deflate",
        )
    return name


def decompress(content: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body.

    Raises:
        TooLargeError: It has more than `limit` bytes. No more are decompressed.
        HttpError: It is damaged, or something follows it.
    """
    bits = _WINDOW_BITS[encoding]
    if encoding == "deflate" and not _has_zlib_head(content):
        bits = -15  # as some send it, without the head that RFC 9110 requires
    decompressor = zlib.decompressobj(bits)
    try:
        result = decompressor.decompress(content, limit + 1)
    except zlib.error:
        raise _damaged(encoding) from None
    if len(result) > limit:
        raise TooLargeError(f"the body has more than {limit} bytes once it is decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise _damaged(encoding)
    return result


def choose_encoding(accept_encoding: str) -> str:
    """Return the encoding of a response for a header Accept-Encoding: gzip, deflate or ""."""
    if not accept_encoding:
        return ""
    return next(
        (name for name in ("gzip", "deflate") if accepts_encoding(accept_encoding, name)), ""
    )


def compress(content: bytes, encoding: str) -> bytes:
    """Compress the body of a response."""
    if encoding == "gzip":
        return gzip.compress(content, LEVEL, mtime=0)
    return zlib.compress(content, LEVEL)


def _has_zlib_head(content: bytes) -> bool:
    return len(content) > 1 and content[0] & 15 == 8 and (content[0] << 8 | content[1]) % 31 == 0


def _damaged(encoding: str) -> HttpError:
    return HttpError(
        HTTPStatus.BAD_REQUEST, f"damaged body (expected one that {encoding} has compressed)"
    )
