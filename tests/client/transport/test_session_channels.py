"""Sessions have connections of their own, not more on one than servers allow."""

import grpc
import pytest

from neurona_client.transport.session_channels import MAX_STREAMS_PER_CONNECTION, SessionChannels


@pytest.fixture
def channels():
    channels = SessionChannels(lambda: grpc.insecure_channel("127.0.0.1:1"))
    yield channels
    channels.close()


def test_a_channel_is_full_before_another_one_is_opened(channels):
    acquired = [channels.acquire() for _ in range(2 * MAX_STREAMS_PER_CONNECTION + 1)]
    counts = [acquired.count(channel) for channel in dict.fromkeys(acquired)]
    assert counts == [MAX_STREAMS_PER_CONNECTION, MAX_STREAMS_PER_CONNECTION, 1]
    assert channels.stream_count == len(acquired)


def test_channels_that_are_not_used_any_more_are_closed(channels):
    acquired = [channels.acquire() for _ in range(3 * MAX_STREAMS_PER_CONNECTION)]
    for channel in acquired[5:]:
        channels.release(channel)
    assert channels.stream_count == 5
    assert channels.acquire() is acquired[0]
    for unused in {*acquired} - {acquired[0]}:
        with pytest.raises(ValueError, match="closed channel"):
            unused.unary_unary("/x")(b"", timeout=1)
    assert channels.stream_count == 6


def test_no_channel_is_opened_after_the_end(channels):
    acquired = channels.acquire()
    channels.close()
    channels.release(acquired)
    assert channels.stream_count == 0
    with pytest.raises(ValueError, match="closed"):
        channels.acquire()
