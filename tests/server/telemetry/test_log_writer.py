"""A reader of the log that stalls costs lines, never time."""

import os
import threading
import time

import pytest

from neurona_server.telemetry import log_writer
from neurona_server.telemetry.log_writer import LogWriter


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def notice(count):
    return b"%d lost\n" % count


def read_all(reader, writer):
    """Read until the writer is closed, in a thread; return a function that waits for the lines."""
    parts = []

    def read():
        while part := os.read(reader, 1 << 16):
            parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()

    def lines():
        os.close(writer)
        thread.join()
        return b"".join(parts).split(b"\n")[:-1]

    return lines


def test_lines_are_written_in_order(pipe):
    reader, writer = pipe
    log = LogWriter(writer, notice)
    lines = read_all(reader, writer)
    for number in range(1000):
        log.put(b"%d\n" % number)
    assert log.flush(30)
    assert lines() == [b"%d" % number for number in range(1000)]
    assert log.dropped == 0


def test_a_reader_that_stalls_blocks_nobody_and_finds_the_number_of_lost_lines(pipe):
    reader, writer = pipe
    log = LogWriter(writer, notice)
    text = b"x" * 992
    started = time.monotonic()
    for number in range(5000):  # 5 MB
        log.put(b"%07d%s\n" % (number, text))
    assert not log.flush(0.01)
    assert time.monotonic() - started < 10
    dropped = log.dropped
    assert 3000 < dropped < 5000
    lines = read_all(reader, writer)
    assert log.flush(30)
    log.put(b"later\n")
    assert log.flush(30)
    *received, lost, later = lines()
    assert [int(line[:7]) for line in received] == list(range(5000 - dropped))
    assert (lost, later) == (b"%d lost" % dropped, b"later")


def test_lines_after_a_gap_come_after_its_notice(pipe, monkeypatch):
    monkeypatch.setattr(log_writer, "MAX_QUEUE_BYTES", 4000 + 4 * log_writer.LINE_OVERHEAD)
    reader, writer = pipe
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"-" * 4095 + b"\n"):
            pass  # the pipe is full
    except BlockingIOError:
        os.set_blocking(writer, True)
    log = LogWriter(writer, notice)
    for number in range(10):
        log.put(b"%d%s\n" % (number, b"x" * 990))
    lines = read_all(reader, writer)
    assert log.flush(30)
    log.put(b"end\n")
    assert log.flush(30)
    received = [line[:1] for line in lines() if line[:1] != b"-"]
    assert received[-2:] == [b"%d" % log.dropped, b"e"]  # "N lost" and "end"
    assert received[:-2] == [b"%d" % number for number in range(10 - log.dropped)]


def test_a_descriptor_that_does_not_block_gets_whole_lines(pipe):
    reader, writer = pipe
    os.set_blocking(writer, False)
    log = LogWriter(writer, notice)
    for _ in range(8):
        log.put(b"y" * 99_999 + b"\n")
    time.sleep(0.05)  # the pipe is full now
    lines = read_all(reader, writer)
    assert log.flush(30)
    assert [len(line) for line in lines()] == [99_999] * 8


def test_a_line_that_is_longer_than_the_queue_is_written(pipe):
    reader, writer = pipe
    log = LogWriter(writer, notice)
    lines = read_all(reader, writer)
    length = 2 * log_writer.MAX_QUEUE_BYTES
    log.put(b"x" * length + b"\n")
    assert log.flush(30)
    log.put(b"later\n")
    assert log.flush(30)
    assert [len(line) for line in lines()] == [length, 5]
    assert not log.dropped


def test_lines_that_cannot_be_written_are_counted():
    reader, writer = os.pipe()
    os.close(reader)
    log = LogWriter(writer, notice)
    log.put(b"x\n")
    assert log.flush(30)
    assert log.dropped == 1
    os.close(writer)
