"""Signals end the process even if its standard error cannot be written."""

import os
import subprocess
import sys

import pytest

STARTING = """
import os, signal, time
from neurona_server.processes.signals import StopSignals

signals = StopSignals()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""

SERVING = """
import os, signal, time
from neurona_server.processes.signals import StopSignals

signals = StopSignals()
signals.mark_serving()
os.kill(os.getpid(), signal.SIGTERM)
signals.wait()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
"""


def full_pipe():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, bytes(4096)):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


def no_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return (writer,)


@pytest.mark.parametrize(("code", "status"), [(STARTING, 0), (SERVING, 1)], ids=["first", "second"])
@pytest.mark.parametrize("opened", [full_pipe, no_reader])
def test_a_blocked_or_closed_standard_error_does_not_keep_the_process(code, status, opened):
    ends = opened()
    result = subprocess.run([sys.executable, "-c", code], check=False, stderr=ends[-1], timeout=15)
    for one in ends:
        os.close(one)
    assert result.returncode == status
