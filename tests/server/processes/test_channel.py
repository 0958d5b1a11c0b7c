"""Messages between supervisor and worker, and what a broken peer sends."""

import os
import threading

import pytest

from neurona_server.processes.channel import Channel, Command, MetricsReport
from neurona_server.processes.snapshot import FamilySnapshot


def channel_pair():
    """Both ends of a channel, and the file descriptor of the second."""
    first, connection = Channel.pair()
    return first, Channel(connection), connection.fileno()


def test_messages_of_any_size_arrive():
    receiver, sender, _ = channel_pair()
    family = FamilySnapshot("x" * (1 << 20), "gauge", {(("model", "m"),): {("g", ""): 1.0}})
    report = MetricsReport({"g": family}, requested=True)
    thread = threading.Thread(target=sender.send, args=[report])
    thread.start()
    assert receiver.receive() == report
    thread.join()
    sender.send(Command.STOP)
    sender.close()
    assert receiver.receive() is Command.STOP
    assert receiver.receive() is None
    receiver.send(Command.STOP)  # the peer is gone: does nothing
    receiver.close()


@pytest.mark.parametrize(
    "broken",
    [
        b"\0\0",  # the peer died in the middle of a header
        b"\0\0\0\x10half of a",  # in the middle of a message
        b"\xff\xff\xff\xff" + b"\x7f" * 8,  # a size beyond all memory
        b"\0\0\0\x04junk",  # no pickle
        b"\0\0\0\x04\x80\x04N.",  # a pickle of None, which is no message
    ],
)
def test_a_broken_message_ends_the_channel(broken):
    receiver, sender, descriptor = channel_pair()
    os.write(descriptor, broken)
    sender.close()
    assert receiver.receive() is None
    receiver.close()


def test_a_channel_is_closed_after_the_message_that_is_being_sent():
    receiver, sender, _ = channel_pair()

    class ClosesTheChannel:
        def __reduce__(self):
            closing = threading.Thread(target=sender.close)
            closing.start()
            closing.join(0.2)  # it waits for the end of this message
            threads.append(closing)
            return str, ()

    threads = []
    sender.send(ClosesTheChannel())
    threads[0].join()
    assert receiver.receive() is None  # an empty text is no message
    sender.send(Command.STOP)  # does nothing
    receiver.close()
