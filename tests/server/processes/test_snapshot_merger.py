"""SnapshotMerger: histories of events give the same counts, merger or in one process."""

import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from support.fake_nvml import FakeNvml

from neurona_server.processes.multiprocess_collector import (
    DERIVED_GAUGES,
    MERGE_RULES,
    PER_PROCESS_GAUGES,
    SnapshotMerger,
)
from neurona_server.processes.snapshot import take_snapshot, to_metrics
from neurona_server.telemetry.collectors import GpuCollector, VersionInfo
from neurona_server.telemetry.metrics import Metrics
from neurona_server.web.endpoints import render_metrics

VERSIONS = [("a", 1), ("a", 2), ("b", 1)]
EVENTS = st.one_of(
    st.tuples(
        st.just("ended"), st.sampled_from(VERSIONS), st.sampled_from(("ok", "failed")),
        # Eighths: their sums are exact, in any order.
        st.integers(0, 100).map(lambda n: n / 8),
    ),
    st.tuples(st.just("ran"), st.sampled_from(VERSIONS), st.integers(1, 2000), st.integers(1, 9)),
    st.tuples(st.just("loaded"), st.sampled_from(VERSIONS), st.booleans(), st.integers(0, 400)),
)  # fmt: skip
ACTIONS = ["report", "die", "release"]


class Process:
    """A process with all series of the server, without a server."""

    def __init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.metrics.add_triton_metrics(GpuCollector(FakeNvml(gpus=0)))
        self._models = {}

    def apply(self, event):
        kind, (name, version), first, second = event
        model = self._model(name, version)
        if kind == "ended":
            model.record_request(first, second)
        elif kind == "ran":
            model.record_run(first, second, 0, (0.25, 0.5, 0.0), 0.5)
        else:
            self.metrics.record_load(name, second, ok=first)

    def release(self, name, version):
        self._models.pop((name, version)).release()

    def snapshot(self):
        """A snapshot as its supervisor receives it."""
        return pickle.loads(pickle.dumps(take_snapshot(self.metrics.registry)))  # noqa: S301

    def _model(self, name, version):
        if (name, version) not in self._models:
            self._models[name, version] = self.metrics.for_version(name, version)
        return self._models[name, version]


class SnapshotCollector(Collector):
    def __init__(self, snapshot):
        self._snapshot = snapshot

    def collect(self):
        return to_metrics(self._snapshot)


def value(snapshot, name, point=None, **labels):
    return snapshot[name].series[tuple(sorted(labels.items()))][point or (name, "")]


def counts(snapshot):
    """Counters and histograms that are not zero."""
    return {
        (name, labels): series
        for name, family in snapshot.items()
        if family.kind in ("counter", "histogram")
        for labels, series in family.series.items()
        if any(series.values())
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), EVENTS), max_size=30))
def test_merged_counts_equal_those_of_one_process_with_all_events(history):
    processes, alone, merger = [Process() for _ in range(3)], Process(), SnapshotMerger()
    for number, event in history:
        processes[number].apply(event)
        alone.apply(event)
    for number, process in enumerate(processes):
        merger.replace(number, str(number), process.snapshot())
    assert counts(merger.merge()) == counts(alone.snapshot())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.one_of(EVENTS, st.sampled_from(ACTIONS))),
        max_size=40,
    )
)
def test_no_merged_count_falls_and_buckets_stay_cumulative(history):
    processes, merger, before = [Process(), Process()], SnapshotMerger(), {}
    for number, event in history:
        process = processes[number]
        if event == "report":
            merger.replace(process, str(number), process.snapshot())
        elif event == "die":
            merger.remove(process)
            processes[number] = Process()
        elif event == "release":
            for name, version in list(process._models):
                process.release(name, version)
        else:
            process.apply(event)
        snapshot = merger.merge()
        now = {
            (labels, point): amount
            for family in snapshot.values()
            if family.kind in ("counter", "histogram")
            for labels, series in family.series.items()
            for point, amount in series.items()
        }
        assert all(now[point] >= amount for point, amount in before.items())
        before = now
        for family in snapshot.values():
            if family.kind == "histogram":
                for series in family.series.values():
                    buckets = [amount for (_, bound), amount in series.items() if bound]
                    assert buckets == sorted(buckets)


def test_the_counts_of_a_process_that_dies_stay():
    merger, first, second = SnapshotMerger(), Process(), Process()
    for process in (first, second):
        process.apply(("ended", ("a", 1), "ok", 0.5))
        merger.replace(process, "0", process.snapshot())
    total = {"name": "neurona_requests", "point": ("neurona_requests_total", "")}
    total |= {"model": "a", "version": "1", "outcome": "ok"}
    assert value(merger.merge(), **total) == 2
    merger.remove(first)
    assert value(merger.merge(), **total) == 2
    third = Process()
    merger.replace(third, "0", third.snapshot())
    third.apply(("ended", ("a", 1), "ok", 0.5))
    merger.replace(third, "0", third.snapshot())
    assert value(merger.merge(), **total) == 3


def test_a_version_that_no_process_has_any_more_is_forgotten():
    merger, process = SnapshotMerger(), Process()
    for version in (1, 2):
        process.apply(("ended", ("a", version), "ok", 0.5))
    process.apply(("loaded", ("a", 1), True, 1))
    merger.replace(process, "0", process.snapshot())
    process.release("a", 1)
    merger.replace(process, "0", process.snapshot())
    assert ("a", "1") in versions(merger.merge())  # another process may still have it
    merger.forget_versions()
    assert versions(merger.merge()) == {("", ""), ("a", "2")}
    loads = {"name": "neurona_loads", "point": ("neurona_loads_total", ""), "model": "a"}
    assert value(merger.merge(), **loads, outcome="ok")
    process.release("a", 2)
    process.metrics.forget_model("a")
    merger.replace(process, "0", process.snapshot())
    assert value(merger.merge(), **loads, outcome="ok")
    merger.forget_versions()
    assert versions(merger.merge()) == {("", "")}
    assert not merger.merge()["neurona_loads"].series


def versions(snapshot):
    return {
        (dict(labels)["model"], dict(labels)["version"])
        for labels in snapshot["neurona_requests"].series
    }


class Queue:
    max_batch_rows = 7
    max_rows = 100

    def __init__(self, rows, age):
        self.rows, self._age = rows, age
        self.nbytes = 10 * rows
        self.request_count = rows - 1

    def oldest_age(self):
        return self._age


class CostModel:
    batch_sizes = (1, 8)

    def __init__(self, seconds):
        self.seconds = seconds


def test_gauges_are_merged_by_their_rule():
    merger = SnapshotMerger()
    for number, (rows, age, seconds) in enumerate([(3, 0.5, {1: 0.25}), (4, 0.125, {})]):
        process = Process()
        model = process._model("a", 1)
        model.watch_batching(Queue(rows, age), CostModel(seconds))
        model.set_model_info("classification", "cpu")
        process.metrics.watch_versions(lambda: [VersionInfo("a", 1, "ready")])
        merger.replace(process, str(number), process.snapshot())
    snapshot = merger.merge()
    labels = {"model": "a", "version": "1"}
    assert value(snapshot, "neurona_queue_rows", **labels) == 7
    assert value(snapshot, "nv_inference_pending_request_count", **labels) == 5
    assert value(snapshot, "neurona_queue_bytes", **labels) == 70
    assert value(snapshot, "neurona_queue_limit_rows", **labels) == 200
    assert value(snapshot, "neurona_queue_oldest_seconds", **labels) == 0.5
    assert value(snapshot, "neurona_version_state", **labels, state="ready") == 1
    info = value(snapshot, "neurona_model_info", **labels, task="classification", provider="cpu")
    assert info == 1
    name = "neurona_run_predicted_seconds"
    assert value(snapshot, name, **labels, rows="1", process="0") == 0.25
    assert math.isnan(value(snapshot, name, **labels, rows="1", process="1"))


def test_every_gauge_has_a_rule_or_is_per_process():
    metrics = Metrics(CollectorRegistry())
    metrics.watch_versions(list)
    metrics.watch_stalls(list)
    metrics.watch_process(GpuCollector(FakeNvml()), triton_metrics=True)
    gauges = {metric.name for metric in metrics.registry.collect() if metric.type == "gauge"}
    assert gauges == {*MERGE_RULES, *PER_PROCESS_GAUGES, *DERIVED_GAUGES}
    assert not set(MERGE_RULES) & set(PER_PROCESS_GAUGES)


def page(registry, *, open_metrics):
    return render_metrics(registry, open_metrics=open_metrics, compressed=False)[0].decode()


@pytest.mark.parametrize("hostile", ['"} 7\nneurona_x{a="', "\\", "é\n"])
def test_merged_metrics_are_valid_prometheus_text_and_openmetrics(hostile):
    merger = SnapshotMerger()
    for number in range(2):
        process = Process()
        process.apply(("ended", (hostile, 1), "ok", 0.5))
        process.apply(("ran", (hostile, 1), 4, 2))
        process._model(hostile, 1).watch_batching(Queue(1, 0.5), CostModel({}))
        merger.replace(number, str(number), process.snapshot())
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(merger.merge()))
    families = {
        family.name: family
        for family in text_string_to_metric_families(page(registry, open_metrics=True))
    }
    assert families["neurona_requests"].type == "counter"
    assert families["neurona_request_duration_seconds"].type == "histogram"
    (two,) = [s for s in families["neurona_rows"].samples if s.labels["model"] == hostile]
    assert (two.name, two.value) == ("neurona_rows_total", 8)
    assert families["nv_inference_count"].type == "unknown"
    text = page(registry, open_metrics=False)
    assert "# TYPE neurona_rows_total counter\n" in text
    assert "# TYPE nv_inference_count counter\n" in text
    assert text.count("# TYPE neurona_batch_rows histogram\n") == 1


def test_the_newest_exemplar_of_all_processes_is_kept():
    first, second = Process(), Process()
    merger = SnapshotMerger()
    for process, trace in ((second, "b"), (first, "a")):  # in this order, "a" is the newest
        model = process.metrics.for_version("m", 1)
        model.record_request("ok", 0.125)
        model.record_exemplar(0.125, trace * 32)
    for process in (first, second):
        merger.replace(process, "0", process.snapshot())
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(merger.merge()))
    page = generate_openmetrics(registry).decode()
    assert page.count("trace_id") == 1
    assert f'le="0.25",model="m",version="1"}} 2.0 # {{trace_id="{"a" * 32}"}} 0.125' in page
    assert "trace_id" not in generate_latest(registry).decode()
    merger.remove(first)
    merger.remove(second)
    merger.forget_versions()
    assert "trace_id" not in str(list(to_metrics(merger.merge())))
