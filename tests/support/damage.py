"""Damaged input: bytes that were valid, with errors of any kind."""


def damage(rng, message):
    """Return damaged bytes, which may still be valid.

    Args:
        rng: a `random.Random`.
        message: valid bytes.
    """
    raw = bytearray(message)
    for _ in range(rng.choice([1, 1, 2, 5])):
        kind = rng.randrange(6)
        at = rng.randrange(len(raw) + 1)
        if kind == 0:
            del raw[at:]
        elif kind == 1:
            raw[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            del raw[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            raw[at : at + 1] = b"\xff\xff\xff\xff\x0f"  # a length of 4 GiB
        elif kind == 4:
            raw[at:at] = b"\x0b" * rng.randrange(1, 200)  # groups in groups
        elif raw:
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
    return bytes(raw)
