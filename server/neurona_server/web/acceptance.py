"""What a caller understands, by the headers of its request (RFC 9110, section 12.5)."""


def quality(header: str, *names: str) -> float:
    """How much it wants the best of `names`, 0.0 to 1.0; 0.0: not at all.

    Parameters other than q are passed over. A value that cannot be read counts as 0.0.
    """
    best = 0.0
    for part in header.split(","):
        name, *parameters = [piece.strip().lower() for piece in part.split(";")]
        if name in names:
            wanted = [one[2:] for one in parameters if one.startswith("q=")]
            best = max(best, _number(wanted[0]) if wanted else 1.0)
    return best


def wants_openmetrics(accept: str) -> bool:
    return 0.0 < quality(accept, "application/openmetrics-text") >= quality(accept, "text/plain")


def takes_gzip(accept_encoding: str) -> bool:
    named = [part.partition(";")[0].strip().lower() for part in accept_encoding.split(",")]
    return quality(accept_encoding, "gzip" if "gzip" in named else "*") > 0.0


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 <= value <= 1.0 else 0.0
