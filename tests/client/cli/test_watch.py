"""neurona watch: the live table in a terminal, plain output, and rates from metrics."""

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

from neurona_client.cli.metrics_page import MetricsPage, compute_rates, parse_metrics, quantile


@pytest.fixture
def start_watch():
    """Starts `neurona watch` in a terminal; gives the process and the terminal's other end."""
    started = []

    def start(address, *flags, **variables):
        terminal, child_terminal = pty.openpty()
        termios.tcsetwinsize(child_terminal, (24, 100))
        process = subprocess.Popen(
            [NEURONA, "watch", "--metrics-address", address, "--every", "0.2", *flags],
            env=environment(TERM="xterm", **variables),
            stdin=child_terminal,
            stdout=child_terminal,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(child_terminal)
        started.append((process, terminal))
        return process, terminal

    yield start
    for process, terminal in started:
        process.kill()
        process.communicate()
        os.close(terminal)


def read_until(terminal, text):
    screen = ""
    end = time.monotonic() + 20
    while text not in screen:
        assert time.monotonic() < end, screen
        if select.select([terminal], [], [], 1)[0]:
            screen += os.read(terminal, 65536).decode()
    return screen


def test_q_ends_the_live_table_and_restores_the_terminal(start_watch, served):
    process, terminal = start_watch(served.metrics_address)
    screen = read_until(terminal, "classifier")
    assert screen.startswith("\x1b[?1049h\x1b[?25l")
    assert "REQ/S" in screen
    assert "P99 ms" in screen
    termios.tcsetwinsize(terminal, (24, 40))
    os.kill(process.pid, signal.SIGWINCH)
    read_until(terminal, "MODEL       REQ/S  ERR/S  P99 ms")
    os.write(terminal, b"q")
    assert process.wait(timeout=20) == 0
    assert read_until(terminal, "\x1b[?1049l").endswith("\x1b[?25h\x1b[?1049l")
    assert process.stderr.read() == b""


def test_ctrl_c_ends_the_live_table_and_no_color_is_respected(start_watch, served):
    process, terminal = start_watch(served.metrics_address, NO_COLOR="1")
    screen = read_until(terminal, "classifier")
    assert "\x1b[1m" not in screen
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    read_until(terminal, "\x1b[?1049l")
    assert process.stderr.read() == b""


@pytest.mark.long
@pytest.mark.slow
def test_the_live_table_continues_after_a_restart_of_the_server(start_watch, repository):
    with ServerProcess(repository) as server:
        _, terminal = start_watch(server.metrics_address)
        read_until(terminal, "classifier")
        server.stop()
        read_until(terminal, "/metrics: Connection refused; retrying")
        server.start()
        read_until(terminal, "classifier")


def test_once_prints_plain_text_or_json(neurona, served):
    address = ("--metrics-address", served.metrics_address)
    done = neurona("watch", "--once", "--every", "0.1", *address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[:3] == ["MODEL", "VERSION", "REQ/S"]
    assert "\x1b" not in done.stdout
    rates = json.loads(neurona("watch", "--once", "--json", "--every", "0.1", *address).stdout)
    assert {one["model"] for one in rates} >= {"classifier", "regressor"}
    done = neurona("watch", "--once", "--metrics-address", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot read http://127.0.0.1:1/metrics: Connection refused" in done.stderr


def metrics_page(time, ok, failed, buckets):
    name = 'model="a \\"b\\"",version="1"'
    lines = [f'neurona_model_info{{{name},provider="CPU",task="tensors"}} 1.0']
    lines += [f'neurona_requests_total{{{name},outcome="ok"}} {ok}']
    lines += [f'neurona_requests_total{{{name},outcome="failed"}} {failed}']
    lines += [
        f'neurona_request_duration_seconds_bucket{{{name},le="{bound}"}} {count}'
        for bound, count in buckets.items()
    ]
    return MetricsPage(time, parse_metrics(["# HELP x", *lines, "no sample"]))


def test_rates_are_those_between_two_readings():
    before = metrics_page(10.0, 100, 1, {"0.1": 50, "0.2": 100, "+Inf": 100})
    now = metrics_page(12.0, 300, 5, {"0.1": 150, "0.2": 300, "+Inf": 300})
    (rates,) = compute_rates(before, now)
    assert rates.model == 'a "b"'
    assert rates.requests == 102
    assert rates.errors == 2
    assert rates.p50 == pytest.approx(0.1)
    assert rates.p99 == pytest.approx(0.198)


def test_counters_of_a_restarted_server_start_at_0():
    before = metrics_page(10.0, 1000, 0, {"0.1": 1000, "+Inf": 1000})
    now = metrics_page(11.0, 7, 0, {"0.1": 7, "+Inf": 7})
    assert compute_rates(before, now)[0].requests == 7


def test_quantiles_are_estimated_like_prometheus():
    inf = float("inf")
    assert quantile(0.5, {1.0: 0, 2.0: 10, inf: 10}) == 1.5
    assert quantile(0.99, {1.0: 1, inf: 100}) == 1.0
    assert quantile(0.5, {}) != quantile(0.5, {})  # NaN
