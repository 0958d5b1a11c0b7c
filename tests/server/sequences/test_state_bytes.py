"""States as bytes: read as they were written, and by nobody else."""

import struct
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from neurona_server.errors import InvalidArgumentError
from neurona_server.sequences.state_bytes import MAX_STEPS, SequenceState, StateCodec

DIGEST = bytes(range(16))
STATE = SequenceState(np.arange(6, dtype=np.float32).reshape(2, 3), 7)


def codec(model="lstm", version=3, digest=DIGEST, size=3):
    return StateCodec(model, version, digest, size)


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9)),
    st.integers(0, MAX_STEPS),
    st.text(min_size=1, max_size=20),
)
def test_a_state_is_read_as_it_was_written(values, steps, name):
    one = codec(name, size=values.shape[1])
    state = one.decode(one.encode(SequenceState(values, steps)))
    np.testing.assert_array_equal(state.values, values)  # NaN included
    assert state.steps == steps
    assert state.values.dtype == np.float32
    assert state.values.flags.writeable


@given(st.data())
def test_any_changed_byte_is_detected(data):
    whole = codec().encode(STATE)
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda one: one != whole[place]))
    with pytest.raises(InvalidArgumentError, match=r"^state .*\(expected "):
        codec().decode(whole[:place] + bytes([value]) + whole[place + 1 :])


@pytest.mark.parametrize("length", [*range(0, 98, 7), 97])
def test_truncated_bytes_are_detected(length):
    whole = codec().encode(STATE)
    assert length < len(whole)
    with pytest.raises(InvalidArgumentError, match=r"^state (truncated|unknown)"):
        codec().decode(whole[:length])


def test_appended_bytes_are_detected():
    whole = codec().encode(STATE)
    with pytest.raises(InvalidArgumentError, match=f"extended.*expected {len(whole)} bytes"):
        codec().decode(whole + b"x")


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (codec("gru"), "state of another model: 'lstm' version 3 .expected 'gru' version 3"),
        (codec(version=4), "state of another model: 'lstm' version 3 .expected 'lstm' version 4"),
        (codec(digest=bytes(16)), "state of another file: 'lstm' version 3"),
        (codec(size=4), "state invalid: 2 rows of 3 numbers"),
    ],
)
def test_the_state_of_another_model_is_rejected(other, error):
    with pytest.raises(InvalidArgumentError, match=error):
        other.decode(codec().encode(STATE))


@pytest.mark.parametrize("data", [b"", b"{}", bytes(200), b"PK\x03\x04" * 30])
def test_what_is_no_state_is_rejected(data):
    with pytest.raises(InvalidArgumentError, match="state unknown"):
        codec().decode(data)


@pytest.mark.parametrize("rows", [0, 1, 1 << 31])
def test_a_forged_number_of_rows_reads_nothing_beyond_the_bytes(rows):
    content = bytearray(codec().encode(STATE)[:-16])
    content[44:48] = struct.pack("<I", rows)
    forged = bytes(content) + blake2b(content, digest_size=16).digest()
    with pytest.raises(InvalidArgumentError, match=f"state invalid: {rows} rows"):
        codec().decode(forged)


@pytest.mark.parametrize("steps", [MAX_STEPS + 1, 2**64 - 1])
def test_a_forged_number_of_steps_leaves_room_for_more(steps):
    forged = codec().encode(SequenceState(STATE.values, steps))
    with pytest.raises(InvalidArgumentError, match=f"state invalid: it is that after {steps} st"):
        codec().decode(forged)
