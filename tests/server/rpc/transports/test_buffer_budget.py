"""The memory of messages that are received and answered is limited over all connections."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from support import http2
from support.server_process import ServerProcess
from support.uploads import Uploads

from neurona_server.errors import BuffersFullError, ConfigError
from neurona_server.rpc.call import ANY_MESSAGE_BYTES, Streaming, Unary
from neurona_server.rpc.transports.auto import open_transport
from neurona_server.rpc.transports.buffer_budget import BufferBudget
from neurona_server.rpc.transports.listener import ListenerOptions, buffer_limit

MIB = 1 << 20
BUDGET = 64 * MIB
HEALTH = "/grpc.health.v1.Health/Check"
PREDICT = "/neurona.v1.Prediction/Predict"
STREAM = "/neurona.v1.Prediction/PredictStream"


@pytest.fixture(scope="module")
def server(repository, transport):
    flags = ("--transport", transport, "--max-message-bytes", 8 * MIB)
    with ServerProcess(repository, *flags, "--max-buffered-bytes", BUDGET) as server:
        yield server


def memory(server, name):
    """Return a field of /proc/PID/status in bytes."""
    with open(f"/proc/{server.pid}/status") as file:
        return int(re.search(rf"{name}:\s+(\d+)", file.read())[1]) << 10


def upload(server, path, *, connections, calls, size, seconds):
    """Send incomplete messages, and ask for the health meanwhile.

    Returns the connections, the growth of the memory while they sent, and the longest wait for an
    answer.
    """
    before = memory(server, "VmRSS")
    uploads = [Uploads(server.port, path, calls, size) for _ in range(connections)]
    growth, waits = 0, []
    with ThreadPoolExecutor(connections) as pool:
        running = [pool.submit(each.run, seconds) for each in uploads]
        while not all(each.done() for each in running):
            start = time.monotonic()
            server.channel.unary_unary(HEALTH)(b"", timeout=20)
            waits.append(time.monotonic() - start)
            growth = max(growth, memory(server, "VmRSS") - before)
            time.sleep(0.01)
    return uploads, growth, max(waits)


def test_incomplete_messages_of_methods_without_tensors_are_refused(server):
    (upload_1,), growth, wait = upload(
        server, HEALTH, connections=1, calls=32, size=8 * MIB, seconds=20
    )
    upload_1.close()
    assert len(upload_1.statuses) == 32
    assert {status for status, _ in upload_1.statuses.values()} == {8}
    # of the 256 that the messages would have: up to 120 with what gRPC has read ahead of an answer
    assert growth < 160 * MIB
    assert wait < 2


@pytest.mark.parametrize("path", [PREDICT, STREAM])
def test_incomplete_messages_stay_within_the_budget(server, path):
    uploads, growth, wait = upload(server, path, connections=4, calls=16, size=8 * MIB, seconds=4)
    statuses = [status for each in uploads for status in each.statuses.values()]
    assert any(number == 8 and b"max_buffered_bytes" in frame for number, frame in statuses)
    assert any(b"retry-after-ms" in frame for _, frame in statuses)
    assert growth < 200 * MIB  # of the 512 that the messages would have
    assert wait < 2
    for each in uploads:
        each.close()
    assert 'neurona_rejected_calls_total{reason="buffers_full"}' in server.metrics()


def test_a_slow_message_within_the_budget_is_received(server, wait_until):
    """A caller that sends slowly is served, also beside a connection that takes all it gets."""
    upload_1 = Uploads(server.port, PREDICT, 1, MIB)
    upload_1.run(1)
    assert not upload_1.statuses
    assert not upload_1.closed
    upload_1.close()


def hold_calls(transport, *, calls, size, response=b"", budget=8 * MIB):
    """Make calls to a method that answers them all in the end; return the errors.

    Each call has arrived, or been refused, when the next one is made.
    """
    held = []
    options = ListenerOptions(max_message_bytes=MIB, max_buffered_bytes=budget)
    methods = {"/test/Hold": Unary(held.append, None, ANY_MESSAGE_BYTES)}
    listener = open_transport(transport, methods, options)
    port = listener.start("127.0.0.1:0")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_unary("/test/Hold")
            futures = []

            def make_call():
                futures.append(method.future(bytes(size), timeout=30))
                end = time.monotonic() + 20
                while len(held) + sum(each.done() for each in futures) < len(futures):
                    assert time.monotonic() < end
                    time.sleep(0.0005)

            for _ in range(calls):
                make_call()
            answered = list(held)
            for call in answered:
                call.reply(response)
            errors = [each.exception() for each in futures]
            # Everything is released: a call fits again.
            held.clear()
            futures.clear()
            make_call()
            held[0].reply(b"")
            futures[0].result()
    finally:
        listener.stop(1.0)
    return [each for each in errors if each is not None]


def test_large_requests_that_wait_are_counted(transport):
    errors = hold_calls(transport, calls=20, size=MIB - 100)
    # Of 6 MiB, without those that conversions take, one connection may hold the half.
    assert len(errors) == 17
    assert {each.code() for each in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert "max_buffered_bytes" in errors[0].details()
    assert ("retry-after-ms", "1000") in errors[0].trailing_metadata()


def test_small_requests_are_not_counted(transport):
    assert not hold_calls(transport, calls=1000, size=10_000)


def test_large_responses_are_counted(transport):
    """The responses of all calls at once, while their requests are small."""
    errors = hold_calls(transport, calls=400, size=100, response=bytes(MIB // 2))
    assert len(errors) < 400
    assert {each.code() for each in errors} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_each_connection_leaves_room_for_others():
    budget = BufferBudget(1000 + 2 * 10, 10)
    budget.charge("a", 500)
    with pytest.raises(BuffersFullError):
        budget.charge("a", 10)
    budget.charge("b", 250)
    with pytest.raises(BuffersFullError):
        budget.charge("b", 10)
    budget.charge("c", 125)
    budget.release("a", 500)
    budget.charge("b", 100)
    for peer, size in (("b", 350), ("c", 125)):
        budget.release(peer, size)
    assert budget.held_bytes == 0
    budget.charge("d", 5000)  # a message alone always fits


def test_a_budget_for_less_than_a_few_messages_is_rejected():
    assert buffer_limit(8 * MIB, MIB, processes=2) == 4 * MIB
    with pytest.raises(ConfigError, match="max_buffered_bytes: 7340032 .expected at least 8388608"):
        buffer_limit(7 * MIB, MIB, processes=2)
    assert buffer_limit(0, 1 << 30) == 4 << 30  # however little memory there is


class Unread:
    """A `Stream` with a response for each request, which it has at once."""

    congested = False

    def __init__(self, call):
        self.call = call
        self.responses = []
        self.half_closed = False

    def receive(self, message):
        self.responses += [bytes(MIB // 2)] * int(message)

    def half_close(self):
        self.half_closed = True

    def take_message(self):
        return self.responses.pop() if self.responses else None

    @property
    def buffered_bytes(self):
        return sum(map(len, self.responses))

    @property
    def finished(self):
        return self.half_closed and not self.responses

    def drain(self):
        self.half_closed = True

    def cancel(self):
        self.responses.clear()


def test_unread_responses_of_streams_are_counted(transport, wait_until):
    options = ListenerOptions(max_message_bytes=MIB, max_buffered_bytes=8 * MIB)
    listener = open_transport(transport, {"/test/Unread": Streaming(Unread, None)}, options)
    port = listener.start("127.0.0.1:0")
    try:
        # Without updates of windows nothing but the first 64 KiB can be sent.
        connection = http2.Connection(port)
        streams = [
            connection.call("/test/Unread", http2.message(b"2"), end=False) for _ in range(6)
        ]
        statuses = connection.read_statuses(streams[3:])
        assert set(statuses.values()) == {8}
        wait_until(lambda: 2 * MIB < listener.guard.buffered_bytes < 6 * MIB)
        connection.close()
        wait_until(lambda: listener.guard.buffered_bytes == 0)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.stream_stream("/test/Unread")
            assert sum(map(len, method(iter([b"2", b"2"]), timeout=20))) == 2 * MIB
    finally:
        listener.stop(1.0)


def test_a_response_after_its_caller_has_left_charges_nothing(transport, wait_until):
    left, calls = [], []

    def start(call):
        call.on_cancel(lambda: left.append(call))
        calls.append(call)

    options = ListenerOptions(max_message_bytes=MIB, max_buffered_bytes=8 * MIB)
    methods = {"/test/Late": Unary(start, None, ANY_MESSAGE_BYTES)}
    listener = open_transport(transport, methods, options)
    port = listener.start("127.0.0.1:0")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            future = channel.unary_unary("/test/Late").future(bytes(MIB // 2), timeout=20)
            wait_until(lambda: calls)
            future.cancel()
            wait_until(lambda: left and listener.budget.held_bytes == 0)
            calls[0].reply(bytes(MIB // 2))
            assert listener.budget.held_bytes == 0
    finally:
        listener.stop(1.0)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_idle_stream_holds_no_bytes(transport, kind, tmp_path, wait_until):
    """Neither the headers of other calls nor what its next message may have."""
    options = ListenerOptions(max_message_bytes=64 * MIB)
    methods = {
        "/test/Unread": Streaming(Unread, None, ANY_MESSAGE_BYTES),
        "/test/Unary": Unary(lambda call: call.reply(b""), None),
    }
    listener = open_transport(transport, methods, options)
    address = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/socket"
    port = listener.start(address)
    address = f"127.0.0.1:{port}" if kind == "tcp" else address
    idle = threading.Event()

    def never():
        idle.wait(60)
        yield from ()

    try:
        with grpc.insecure_channel(address) as channel:
            streams = [channel.stream_stream("/test/Unread")(never()) for _ in range(8)]
            budget = listener.budget
            wait_until(lambda: len(budget.receiving) == len(streams))
            wait_until(lambda: budget.record_above < 0)  # they are observed
            unary = channel.unary_unary("/test/Unary")
            for _ in range(2000 if kind == "tcp" else 10):
                unary(b"", timeout=20, metadata=[("authorization", "Bearer " + 64 * "a")])
            assert budget.record_above < 0
            time.sleep(0.3)  # some looks of the guard
            # Of 2000 calls 200 KB, twice; of 8 messages 512 MiB, twice.
            assert budget.incomplete_bytes < (64 << 10 if kind == "tcp" else 512 * MIB)
            idle.set()
            for stream in streams:
                stream.cancel()
    finally:
        idle.set()
        listener.stop(1.0)
