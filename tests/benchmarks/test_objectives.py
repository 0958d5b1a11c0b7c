"""The load, the probe and the judgement of the benchmark of latency objectives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import stalls as stalls_script
from http2 import OK, OTHER
from objective_outcomes import (
    DEADLINE_EXCEEDED,
    RESOURCE_EXHAUSTED,
    hint_errors,
    judge,
    share_at_least,
    stalled_seconds,
)
from open_loop import Arrivals, Bursts, Load, make_load, poisson_times
from stalls import Stalls

from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse
from neurona_protos.tensors import to_tensor
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import QueueFullError


def make_arrivals(sent, ended, statuses, hints=None, items=None, seconds=1.0):
    sent, ended = np.array(sent, float), np.array(ended, float)
    zeros = np.zeros(len(sent))
    return Arrivals(
        items=np.array(zeros if items is None else items, np.int64),
        due=sent,
        sent=sent,
        ended=ended,
        statuses=np.array(statuses, np.int64),
        retry_after=zeros if hints is None else np.array(hints),
        seconds=seconds,
    )


def dispersion(times, seconds):
    """Returns the variance of the counts in tenths of a second by their mean: 1 if Poisson."""
    counts = np.histogram(times, bins=round(10 * seconds), range=(0, seconds))[0]
    return counts.var() / counts.mean()


def test_poisson_arrivals_have_their_rate_and_no_bursts():
    times = poisson_times(1000.0, 20.0, seed=3)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0.0
    assert times[-1] < 20.0
    assert dispersion(times, 20.0) == pytest.approx(1.0, abs=0.4)


def test_bursts_have_the_mean_rate_and_a_higher_peak():
    bursts = Bursts(peak=3.0, share=0.2, seconds=0.2)
    times = bursts.times(1000.0, 400.0, seed=5)
    assert len(times) == pytest.approx(400_000, rel=0.1)
    assert (np.diff(times) >= 0).all()
    assert dispersion(times, 400.0) > 20
    counts = np.histogram(times, bins=8000, range=(0, 400))[0]  # of 50 ms
    assert np.quantile(counts, 0.97) == pytest.approx(150, rel=0.15)  # 3,000 per second
    assert np.quantile(counts, 0.3) == pytest.approx(25, rel=0.25)  # 500 per second


def test_stalls_of_several_cores_are_merged():
    found = Stalls([(3.0, 4.0), (1.0, 2.0), (1.5, 2.5), (2.5, 2.75)])
    assert found.merged() == [(1.0, 2.75), (3.0, 4.0)]


def test_the_stalled_part_of_an_interval():
    merged = [(1.0, 2.0), (4.0, 4.5)]
    begins = np.array([0.0, 1.5, 2.0, 4.25, 5.0, 1.25])
    ends = np.array([5.0, 4.25, 3.0, 9.0, 6.0, 1.5])
    expected = [1.5, 0.75, 0.0, 0.25, 0.0, 0.25]
    assert stalled_seconds(merged, begins, ends) == pytest.approx(expected)
    assert stalled_seconds([], begins, ends).tolist() == [0.0] * 6


def test_a_late_answer_is_the_machines_fault_only_as_far_as_it_stalled():
    arrivals = make_arrivals(
        sent=[0.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0],
        ended=[0.05, 1.15, 2.15, 3.02, 3.05, np.inf, 3.01],
        statuses=[OK, OK, OK, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, OTHER, OK],
        seconds=2.0,
    )
    stalls = Stalls([(0.9, 1.04), (2.05, 2.11)])  # 40 and 60 ms of the two that are 50 ms late
    outcome = judge(arrivals, 0.1, stalls, 0.0)
    counts = (outcome.in_time, outcome.late, outcome.stalled, outcome.refused, outcome.dropped)
    assert counts == (2, 2, 1, 1, 1)
    assert (outcome.sent, outcome.failed) == (7, 1)
    assert outcome.goodput == 1.0
    assert outcome.latest == pytest.approx(0.05)
    assert outcome.refusal_p99 == pytest.approx(0.02)
    assert (outcome.stall_count, outcome.longest_stall) == (2, pytest.approx(0.14))


def refuse_beyond(limit, run, count, interval):
    """Returns arrivals at a queue in which no more than `limit` wait, with the true waits."""
    sent = np.arange(count) * interval
    free, ended, statuses, waits = 0.0, [], [], []
    for now in sent:
        wait = max(0.0, free - now)
        waits.append(wait)
        if wait > limit * run:
            statuses.append(RESOURCE_EXHAUSTED)
            ended.append(now)
        else:
            statuses.append(OK)
            free = max(now, free) + run
            ended.append(free)
    return sent, ended, statuses, np.array(waits)


def test_a_hint_is_true_if_it_is_what_an_admitted_request_would_have_waited():
    sent, ended, statuses, waits = refuse_beyond(limit=8, run=0.01, count=400, interval=0.004)
    arrivals = make_arrivals(sent, ended, statuses, waits)
    errors, doubts = hint_errors(arrivals, cycle=0.01)
    assert len(errors) > 100
    assert errors.max() < 1e-9
    assert doubts.max() < 0.2
    arrivals.retry_after = 2 * waits
    errors, _ = hint_errors(arrivals, cycle=0.01)
    assert np.median(errors) == pytest.approx(1.0, abs=0.15)


def test_hints_of_different_models_are_judged_by_their_own_queues():
    sent, ended, statuses, waits = refuse_beyond(limit=8, run=0.01, count=200, interval=0.004)
    others = make_arrivals(
        sent=[one for now in sent for one in (now, now)],
        ended=[one for end, now in zip(ended, sent, strict=True) for one in (end, now + 5.0)],
        statuses=[one for status in statuses for one in (status, OK)],
        hints=[one for wait in waits for one in (wait, 0.0)],
        items=[0, 1] * len(sent),
    )
    errors, _ = hint_errors(others, cycle=0.01)
    assert len(errors) > 50
    assert errors.max() < 1e-9


def test_the_confidence_in_a_share_grows_with_the_number():
    z2 = 1.645**2
    assert share_at_least(1000, 1000) == pytest.approx(1000 / (1000 + z2))
    assert share_at_least(99_990, 100_000) == pytest.approx(0.99983, abs=1e-5)
    assert share_at_least(0, 5) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(share_at_least(0, 0))


def test_the_probe_finds_that_it_did_not_run():
    core = str(min(os.sched_getaffinity(0)))
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", stalls_script.__file__, core],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    stopped = time.perf_counter()
    time.sleep(0.05)
    resumed = time.perf_counter()
    process.send_signal(signal.SIGCONT)
    found = json.loads(process.communicate()[0])
    assert any(begin <= stopped + 0.02 and end >= resumed for begin, end in found["intervals"])


@pytest.fixture
def address(make_server):
    return f"127.0.0.1:{make_server().port}"


def classifier_request(rows):
    values = to_tensor("x", np.ones((rows, 4), np.float32))
    return PredictRequest(model="classifier", inputs=[values]).SerializeToString()


def test_each_request_gets_its_own_answer_however_long(make_server):
    address = f"127.0.0.1:{make_server(BatchPolicy(max_queue_rows=1_000_000)).port}"
    bodies = [classifier_request(rows) for rows in (1, 3, 5000)]  # the last is longer than a window
    times = np.zeros(30)
    arrivals = make_load(Load(address, bodies, times, warm_up_seconds=0.0, seconds=0.1))
    assert set(arrivals.statuses) == {OK}
    assert len(arrivals.items) == 30
    assert arrivals.total == arrivals.all_sent == 30
    rows = [
        len(PredictResponse.FromString(arrivals.responses[item]).classification.rows)
        for item in range(3)
    ]
    assert rows == [1, 3, 5000]
    assert (arrivals.sent >= arrivals.due).all()
    assert (arrivals.ended > arrivals.sent).all()


def test_requests_before_the_measured_time_are_not_counted(address):
    times = np.linspace(0.0, 0.2, 50, endpoint=False)
    load = Load(address, [classifier_request(1)], times, warm_up_seconds=0.1, seconds=0.1)
    arrivals = make_load(load)
    assert (len(arrivals.items), arrivals.all_sent) == (25, 50)
    assert np.diff(arrivals.due) == pytest.approx(0.004)


def test_a_closed_loop_keeps_its_number_in_flight(address):
    load = Load(address, [classifier_request(1)], in_flight=16, warm_up_seconds=0.0, seconds=0.1)
    arrivals = make_load(load)
    assert set(arrivals.statuses) == {OK}
    assert arrivals.all_sent == arrivals.total > 32
    begun = np.searchsorted(np.sort(arrivals.due), arrivals.ended, side="right")
    ended = np.searchsorted(np.sort(arrivals.ended), arrivals.ended, side="left")
    assert (begun - ended).max() <= 16


def test_refusals_have_their_hint_and_requests_their_timeout(make_server, monkeypatch):
    timeouts = []

    def refuse(_, request, defer=None):
        timeouts.append(request.deadline - time.perf_counter())
        raise QueueFullError("full", retry_after=0.25)

    monkeypatch.setattr(Batcher, "submit", refuse)
    address = f"127.0.0.1:{make_server().port}"
    load = Load(
        address, [classifier_request(1)], [0.0], warm_up_seconds=0.0, seconds=0.1, timeout=7
    )
    arrivals = make_load(load)
    assert arrivals.statuses.tolist() == [RESOURCE_EXHAUSTED]
    assert arrivals.retry_after.tolist() == [0.25]
    assert timeouts == [pytest.approx(7, abs=2)]


@pytest.mark.long
@pytest.mark.slow
def test_the_benchmark_measures_a_hundred_models_beyond_their_capacity(tmp_path):
    command = [sys.executable, Path(__file__).with_name("objectives.py"), "--quick"]
    command += ["--models", "small", "--loads", "2", "--seconds", "0.5", "--folder", tmp_path]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "objectives.md").read_text() in result.stdout
    points = json.loads((tmp_path / "objectives.json").read_text())["points"]
    names = [(one["promise"]["kind"], one["arrivals"], one["load"]) for one in points]
    expected = [("objective", "poisson", 2.0), ("objective", "bursts", 2.0)]
    assert names == [*expected, ("deadline", "poisson", 2.0)]
    for point in points:
        counts = point["rounds"][0]["outcome"]
        kinds = ("in_time", "late", "dropped", "refused", "failed")
        assert sum(counts[kind] for kind in kinds) == counts["sent"] > 50
