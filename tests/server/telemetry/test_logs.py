"""One record is one line of the log, whatever callers sent."""

import json
import logging
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurona_server.errors import printable
from neurona_server.telemetry import logs
from neurona_server.telemetry.logs import HumanFormatter, JsonFormatter


def make_record(message, *args, exc_info=None, **extra):
    record = logging.getLogger("neurona_server.x").makeRecord(
        "neurona_server.x", logging.WARNING, __file__, 1, message, args, exc_info, extra=extra
    )
    record.created = datetime(2026, 11, 23, 20, 2, 3, 250000, UTC).timestamp()
    return record


def raised(error):
    try:
        raise error
    except type(error):
        return sys.exc_info()


def test_json_has_time_level_logger_message_and_fields():
    line = JsonFormatter(3).format(
        make_record(
            "%s failed", "m/1", model="m", version=1, request_id="r-1", trace_id="0" * 31 + "1"
        )
    )
    assert json.loads(line) == {
        "time": "2026-11-23T20:02:03.250000Z",
        "level": "WARNING",
        "logger": "neurona_server.x",
        "message": "m/1 failed",
        "process": 3,
        "model": "m",
        "version": 1,
        "request_id": "r-1",
        "trace_id": "0" * 31 + "1",
    }


def test_json_has_the_exception_as_a_field():
    line = JsonFormatter().format(make_record("no", exc_info=raised(ValueError("a\nb"))))
    entry = json.loads(line)
    assert "\n" not in line
    assert entry["exception"].startswith("Traceback")
    assert entry["exception"].endswith("ValueError: a\nb")
    assert "process" not in entry


def test_text_has_the_ids_after_the_message():
    line = HumanFormatter(2).format(make_record("m/1 failed", model="m", request_id="r-1"))
    assert line.endswith(" WARNING process 2: neurona_server.x: m/1 failed [request_id=r-1]")
    assert HumanFormatter().format(make_record("x")).endswith(" WARNING neurona_server.x: x")


def test_an_id_cannot_look_like_two():
    forged = 'a trace_id=b] "x"'
    line = HumanFormatter().format(make_record("no", request_id=forged, trace_id="c"))
    assert line.endswith(f" no [request_id={json.dumps(forged)} trace_id=c]")


def test_no_line_of_an_exception_looks_like_a_line_of_the_log():
    forged = "x\n2026-11-23 20:02:03,000 INFO neurona_server.app: all is well\x1b[2J"
    lines = (
        HumanFormatter().format(make_record("no", exc_info=raised(ValueError(forged)))).split("\n")
    )
    assert len(lines) > 3
    assert all(line.startswith("    ") for line in lines[1:])
    assert "\\x1b[2J" in lines[-1]


@given(st.text(st.characters(exclude_categories=[])), st.text(st.characters(exclude_categories=[])))
def test_any_text_stays_one_line_of_json_or_text(text, name):
    record = make_record("model %s: %s", name, text, model=name, request_id=text, trace_id=name)
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    json.dumps(entry, ensure_ascii=False).encode()  # no half of a surrogate pair
    escaped = {name: name.encode(errors="backslashreplace").decode() for name in (text, name)}
    assert entry["message"] == f"model {escaped[name]}: {escaped[text]}"
    assert (entry["model"], entry["request_id"]) == (escaped[name], escaped[text])
    human = HumanFormatter().format(record)
    assert human.isprintable()
    assert printable(text) in human


def test_a_line_whose_arguments_do_not_fit_is_written_anyway():
    assert json.loads(JsonFormatter().format(make_record("%d of %d", "x")))["message"] == "%d of %d"


UNCAUGHT = """
import os, threading, warnings
from neurona_server.telemetry import logs

logs.set_up("json", "INFO")
thread = threading.Thread(target=int, args=["in a thread"])
thread.start()
thread.join()
warnings.warn("mind the gap")
logs.report_fatal(ValueError("no model"))
os.write(2, b"\\x1b[31mfrom a library\\x1b[m\\n\\xff")
raise KeyError("here")
"""


def test_uncaught_exceptions_are_lines_of_the_log():
    command = [sys.executable, "-c", UNCAUGHT]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    server, libraries = [], []
    for entry in map(json.loads, result.stderr.splitlines()):
        (libraries if entry["logger"] == "stderr" else server).append(entry)
    assert [entry["message"] for entry in libraries] == ["from a library", "\ufffd"]
    first, second, third, fourth = server
    assert first["message"] == fourth["message"] == "uncaught exception"
    assert first["exception"].endswith("'in a thread'")
    assert "mind the gap" in second["message"]
    assert third["message"] == "no model"
    assert fourth["exception"].endswith("KeyError: 'here'")
    assert first["level"] == third["level"] == fourth["level"] == "CRITICAL"


def test_a_start_that_fails_is_reported_as_plain_text(capfd):
    logs.report_fatal(ValueError("no model"))
    assert capfd.readouterr().err == "neurona-serve: no model\n"


UNEXPECTED = """
import sys
from neurona_server import cli

def fail(config):
    raise KeyError("a\\nb")

cli.App = fail
sys.argv[1:] = ["--repository", ".", "--log-format", *sys.argv[1:]]
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("log_format", "mode"), [("human", ""), ("human", "1"), ("json", "")])
def test_an_error_at_the_start_that_nothing_expects_is_one_line(log_format, mode):
    result = subprocess.run(
        [sys.executable, "-c", UNEXPECTED, log_format],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONDEVMODE": mode},
    )
    assert result.returncode == 1
    *before, last = result.stderr.splitlines()
    text = "internal error: KeyError: 'a\\nb'"
    if log_format == "json":
        entry = json.loads(last)
        assert entry["message"] == text
        assert "in fail" in entry["exception"]
        assert not before
    else:
        assert last == f"neurona-serve: {text} (PYTHONDEVMODE=1 shows where)"
        assert ("in fail" in "".join(before)) == bool(mode)


UNWRITABLE = """
import logging, os, threading
from neurona_server.telemetry import logs

logs.set_up("json", "INFO")
messages, ended = [], threading.Event()

def keep(record):
    messages.append(record.getMessage())
    if messages[-1] == "end":
        ended.set()
    return True

logging.getLogger("stderr").addFilter(keep)
logging.info("this cannot be written")
os.write(2, b"end\\n")
ended.wait()
print(messages)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_lines_that_cannot_be_written_are_dropped_without_a_report():
    command = [sys.executable, "-c", UNWRITABLE]
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60
        )
    assert result.stdout == "['end']\n"


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_process_with_a_closed_standard_error(log_format):
    code = (
        "import logging, os; from neurona_server.telemetry import logs\n"
        f"logs.set_up({log_format!r}, 'INFO')\n"
        "logging.info('nobody reads this'); os.write(2, b'nor this')\n"
        "print(min(os.pipe()) > 2, os.get_inheritable(2))"
    )
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code]
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "True True\n")


CRASH = """
import faulthandler
from neurona_server.telemetry import logs

logs.set_up({!r}, "INFO")

def the_function_that_crashes():
    faulthandler._sigabrt()

the_function_that_crashes()
"""


@pytest.mark.parametrize(("log_format", "traced"), [("human", True), ("json", False)])
def test_a_crash_writes_its_traceback_where_lines_need_not_be_json(log_format, traced):
    command = [sys.executable, "-c", CRASH.format(log_format)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGABRT
    assert ("in the_function_that_crashes" in result.stderr) == traced


LAST_LINES = """
import logging, os, sys
from neurona_server.telemetry import logs

logs.set_up("human", "INFO")
for number in range(5000):
    logging.getLogger("neurona_server").info("line %d", number)
os.write(2, b"from a library\\n")
if sys.argv[1] == "exit":
    sys.exit(3)
if sys.argv[1] == "fatal":
    logs.report_fatal(ValueError("no model"))
    os._exit(3)
logs.flush()
os._exit(3)
"""


@pytest.mark.parametrize("end", ["exit", "fatal", "flush"])
def test_the_last_lines_are_written_before_the_process_ends(end):
    command = [sys.executable, "-c", LAST_LINES, end]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    lines = result.stderr.splitlines()
    assert [line.rpartition(" ")[2] for line in lines if "neurona_server: line" in line] == [
        str(number) for number in range(5000)
    ]
    assert ("neurona-serve: no model" in lines) == (end == "fatal")
    if end == "exit":
        assert any("stderr: from a library" in line for line in lines)


def test_an_exception_in_a_destructor_is_a_line_of_the_log():
    code = (
        "from neurona_server.telemetry import logs\n"
        "logs.set_up('json', 'INFO')\n"
        "class Fault:\n"
        "    def __del__(self):\n"
        "        raise KeyError('lost')\n"
        "Fault()\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    (entry,) = map(json.loads, result.stderr.splitlines())
    assert entry["exception"].endswith("KeyError: 'lost'")


def test_a_stop_that_does_not_drain_loses_no_line_of_a_library():
    code = (
        "import os, sys; from neurona_server.app import exit_status; "
        "from neurona_server.telemetry import logs; logs.set_up('human', 'INFO'); "
        "[os.write(2, b'line %d\\n' % i) for i in range(100)]; sys.exit(exit_status(False))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert result.stderr.count("stderr: line ") == 1
    assert result.stderr.endswith("stderr: line 0\n")
