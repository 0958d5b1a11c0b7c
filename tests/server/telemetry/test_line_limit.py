"""Lines that callers cause are written once in a minute, without what callers sent."""

import logging

import pytest

from neurona_server.telemetry.line_limit import LineLimit


class RecordingHandler(logging.Handler):
    """Keeps the records that its limit has admitted."""

    def __init__(self):
        super().__init__()
        self.limit = LineLimit()
        self.addFilter(self.limit)
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def messages(self):
        return [record.getMessage() for record in self.records]


@pytest.fixture
def log():
    handler, root = RecordingHandler(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def test_similar_lines_of_a_library_are_written_once(log):
    for number in range(20):
        logging.getLogger("asyncio").error("accept %d of 0x%x failed", number, number)
    logging.getLogger("asyncio").error("something else")
    logging.getLogger("stderr").warning("%s", "accept 7 of 0x7 failed")
    assert log.messages == [*("accept 0 of 0x0 failed", "something else", "accept 7 of 0x7 failed")]
    assert log.limit.suppressed == 19


def test_lines_of_our_packages_are_limited_where_callers_cause_them(log):
    logging.getLogger().setLevel(logging.INFO)
    for _ in range(3):
        logging.getLogger("neurona_server.rpc.status").error("uncaught")
        logging.getLogger("neurona_server.rpc.status").info("reloaded")
        logging.getLogger("neurona_server.models.lifecycle.reconciler").error("not loaded")
    for number in range(3):
        logging.getLogger("neurona_server.rpc.security.files").error("line %d is wrong", number)
    assert [log.messages.count(text) for text in ("uncaught", "reloaded", "not loaded")] == [
        *(1, 3, 3)
    ]
    assert log.messages[-3:] == [f"line {number} is wrong" for number in range(3)]


def test_the_number_of_suppressed_lines_is_logged(log, monkeypatch):
    for _ in range(3):
        logging.getLogger("asyncio").error("failed")
    log.limit._limit._end("asyncio: failed")
    assert log.messages == [
        "failed",
        "suppressed 2 similar log lines in the last 1e+06 s: asyncio: failed",
    ]


@pytest.mark.parametrize("replaced", [False, True])
def test_what_callers_sent_is_not_logged(log, replaced):
    logger = logging.getLogger("grpc._test")
    if replaced:
        log.limit.replace_exception_method(logger)
    for _ in range(3):
        try:
            b"Bearer secret\xff".decode()
        except UnicodeDecodeError:
            logger.exception("Invalid encoding on %s", b"Bearer secret\xff")
    (record,) = log.records
    assert record.getMessage() == "Invalid encoding on (14 bytes)"
    assert not record.exc_info
    assert log.limit.suppressed == 2
    try:
        raise KeyError("x")
    except KeyError:
        logger.exception("a bug: %s", 1)
    assert log.records[1].exc_info
    assert log.messages[1] == "a bug: 1"


def test_there_is_a_maximum_of_kinds(log):
    for number in range(1000):
        logging.getLogger("asyncio").error("x" * (number % 500))
    assert len(log.records) < 300


def test_a_line_whose_arguments_do_not_fit_passes(log):
    record = logging.makeLogRecord({"name": "asyncio", "msg": "%d of %d", "args": ("x",)})
    assert log.limit.filter(record)
