import json
import os
import pty
import select
import signal
import subprocess
import termios
import time

import pytest
from support.cli import NEURONA, environment
from support.server_process import ServerProcess

from neurona_client.cli.metrics_page import Page, parse, quantile, rates


@pytest.fixture
def watching():
    """`neurona watch` in a terminal of its own: the process, and what reads its screen."""
    started = []

    def watch(address, *flags, **variables):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        process = subprocess.Popen(
            [NEURONA, "watch", "--metrics-address", address, "--every", "0.2", *flags],
            env=environment(TERM="xterm", **variables),
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(theirs)
        started.append((process, ours))
        return process, ours

    yield watch
    for process, ours in started:
        process.kill()
        process.communicate()
        os.close(ours)


def read_until(ours, text):
    seen = ""
    end = time.monotonic() + 20
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([ours], [], [], 1)[0]:
            seen += os.read(ours, 65536).decode()
    return seen


def test_a_live_table_that_q_ends_with_the_terminal_as_it_was(watching, served):
    process, ours = watching(served.metrics_address)
    seen = read_until(ours, "classifier")
    assert seen.startswith("\x1b[?1049h\x1b[?25l")
    assert "REQ/S" in seen
    assert "P99 ms" in seen
    termios.tcsetwinsize(ours, (24, 40))
    os.kill(process.pid, signal.SIGWINCH)
    read_until(ours, "MODEL       REQ/S  ERR/S  P99 ms")
    os.write(ours, b"q")
    assert process.wait(timeout=20) == 0
    assert read_until(ours, "\x1b[?1049l").endswith("\x1b[?25h\x1b[?1049l")
    assert process.stderr.read() == b""


def test_ctrl_c_ends_it_and_no_color_is_respected(watching, served):
    process, ours = watching(served.metrics_address, NO_COLOR="1")
    seen = read_until(ours, "classifier")
    assert "\x1b[1m" not in seen
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    read_until(ours, "\x1b[?1049l")
    assert process.stderr.read() == b""


def test_it_goes_on_when_the_server_is_restarted(watching, repository):
    with ServerProcess(repository) as server:
        _, ours = watching(server.metrics_address)
        read_until(ours, "classifier")
        server.stop()
        read_until(ours, "cannot be read: Connection refused; trying again")
        server.start()
        read_until(ours, "classifier")


def test_once_is_plain(neurona, served):
    where = ("--metrics-address", served.metrics_address)
    done = neurona("watch", "--once", "--every", "0.1", *where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:3] == ["MODEL", "VERSION", "REQ/S"]
    assert "\x1b" not in done.stdout
    found = json.loads(neurona("watch", "--once", "--json", "--every", "0.1", *where).stdout)
    assert {one["model"] for one in found} >= {"classifier", "regressor"}
    done = neurona("watch", "--once", "--metrics-address", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "http://127.0.0.1:1/metrics cannot be read: Connection refused" in done.stderr


def page(at, ok, failed, buckets):
    name = 'model="a \\"b\\"",version="1"'
    lines = [f'neurona_model_info{{{name},provider="CPU",task="tensors"}} 1.0']
    lines += [f'neurona_requests_total{{{name},outcome="ok"}} {ok}']
    lines += [f'neurona_requests_total{{{name},outcome="failed"}} {failed}']
    lines += [
        f'neurona_request_duration_seconds_bucket{{{name},le="{bound}"}} {count}'
        for bound, count in buckets.items()
    ]
    return Page(at, parse(["# HELP x", *lines, "no sample"]))


def test_rates_are_of_the_time_between_two_looks():
    before = page(10.0, 100, 1, {"0.1": 50, "0.2": 100, "+Inf": 100})
    now = page(12.0, 300, 5, {"0.1": 150, "0.2": 300, "+Inf": 300})
    (found,) = rates(before, now)
    assert found.model == 'a "b"'
    assert found.requests == 102
    assert found.errors == 2
    assert found.p50 == pytest.approx(0.1)
    assert found.p99 == pytest.approx(0.198)


def test_a_server_that_began_anew_counts_from_nothing():
    before = page(10.0, 1000, 0, {"0.1": 1000, "+Inf": 1000})
    now = page(11.0, 7, 0, {"0.1": 7, "+Inf": 7})
    assert rates(before, now)[0].requests == 7


def test_quantiles_are_those_of_prometheus():
    inf = float("inf")
    assert quantile(0.5, {1.0: 0, 2.0: 10, inf: 10}) == 1.5
    assert quantile(0.99, {1.0: 1, inf: 100}) == 1.0
    assert quantile(0.5, {}) != quantile(0.5, {})  # NaN
