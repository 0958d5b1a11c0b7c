"""What was promised, how often it was kept, and what was refused."""

from prometheus_client import CollectorRegistry
from support.fakes import Clock

from neurona_server.errors import DeadlineExceededError, QueueFullError
from neurona_server.processes.multiprocess_collector import SnapshotMerger
from neurona_server.processes.snapshot import take_snapshot
from neurona_server.telemetry.metrics import Metrics
from neurona_server.telemetry.objective_metrics import MetRatioWindow

KEY = ("digits", "1")
LABELS = {"model": "digits", "version": "1"}
RATIO = "neurona_objective_met_ratio"


def share(window, met, missed):
    return window.update({KEY: (met, missed)}).get(KEY)


def test_the_ratio_is_that_of_the_last_minutes():
    window = MetRatioWindow(clock := Clock())
    assert share(window, 0, 0) is None  # nothing was promised to anybody
    clock.now += 60
    assert share(window, 90, 10) == 0.9
    clock.now += 250
    assert share(window, 190, 10) == 0.95  # the first minute is still in the window
    clock.now += 100
    assert share(window, 290, 10) == 1.0
    clock.now += 100
    assert share(window, 290, 30) == 200 / 220  # of the readings, one must be so old
    clock.now += 400
    assert share(window, 290, 30) is None


def test_frequent_readers_neither_shorten_the_window_nor_fill_the_memory():
    window = MetRatioWindow(clock := Clock())
    share(window, 0, 0)
    for second in range(600):
        clock.now += 1
        window.update({KEY: (second + 1, max(0, second - 499))})
    assert share(window, 600, 100) == 300 / 400
    assert len(window._samples[KEY]) <= 32


def test_the_time_since_the_last_reading_counts_of_a_page_that_is_read_seldom():
    window = MetRatioWindow(clock := Clock())
    share(window, 0, 100)
    clock.now += 3600
    assert share(window, 300, 200) == 0.75  # not the first hundred again
    clock.now += 3600
    assert share(window, 300, 300) == 0.0


def test_a_version_that_is_loaded_anew_starts_without_a_past():
    window = MetRatioWindow(clock := Clock())
    share(window, 0, 1000)
    clock.now += 60
    assert share(window, 10, 0) == 1.0
    window.update({})
    clock.now += 60
    assert share(window, 1, 1) == 0.5


def process(met, missed, seconds=0.05):
    metrics = Metrics(CollectorRegistry())
    model = metrics.for_version("digits", 1)
    model.set_objective(seconds)
    model.record_objective(met, missed)
    return metrics


def test_a_model_without_an_objective_has_no_series_of_it():
    metrics = Metrics(CollectorRegistry())
    metrics.for_version("digits", 1).set_objective(None)
    for name in (RATIO, "neurona_latency_objective_seconds"):
        assert metrics.registry.get_sample_value(name, LABELS) is None
    page = {one.name: one.samples for one in metrics.registry.collect()}
    assert page["neurona_objective_requests"] == []


def test_counts_exist_before_the_first_request_and_end_with_the_version():
    metrics = Metrics(CollectorRegistry())
    model = metrics.for_version("digits", 1)
    model.set_objective(0.05)
    value = metrics.registry.get_sample_value
    assert value("neurona_latency_objective_seconds", LABELS) == 0.05
    for result in ("met", "missed"):
        assert value("neurona_objective_requests_total", {**LABELS, "result": result}) == 0
    assert value(RATIO, LABELS) is None
    model.record_objective(3, 1)
    assert value(RATIO, LABELS) == 0.75
    model.release()
    assert all(
        not one.samples
        for one in metrics.registry.collect()
        if "objective" in one.name or "dropped_requests" in one.name
    )


def test_the_ratio_of_several_processes_weighs_their_requests():
    merger = SnapshotMerger(clock=Clock())
    for number, metrics in enumerate((process(99, 1), process(0, 300), process(0, 0))):
        merger.replace(number, str(number), take_snapshot(metrics.registry))
    family = merger.merge()[RATIO]
    assert family.series == {tuple(sorted(LABELS.items())): {(RATIO, ""): 99 / 400}}
    assert family.kind == "gauge"


def test_the_time_after_which_to_retry_is_recorded_of_rejected_requests_only():
    metrics = Metrics(CollectorRegistry())
    model = metrics.for_version("digits", 1)
    model.record_error(QueueFullError("queue full", 0.02), 0.0)
    model.record_error(DeadlineExceededError("late"), 1.0)
    value = metrics.registry.get_sample_value
    assert value("neurona_retry_after_seconds_count", LABELS) == 1
    assert value("neurona_retry_after_seconds_sum", LABELS) == 0.02
    for outcome in ("rejected", "expired"):
        assert value("neurona_requests_total", {**LABELS, "outcome": outcome}) == 1


def test_stalls_are_shown_by_the_least_time_that_they_took():
    metrics = Metrics(CollectorRegistry())
    metrics.watch_stalls(lambda: [(0.0005, 2.5), (0.05, 0.125)])
    value = metrics.registry.get_sample_value
    assert value("neurona_stalls_per_second", {"at_least": "0.05"}) == 0.125
    assert value("neurona_stalls_per_second", {"at_least": "0.0005"}) == 2.5
