import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from support.fake_nvml import FakeNvml

from neurona_server.processes import snapshot
from neurona_server.processes.collector import OF_EACH_PROCESS, RULES, SnapshotMerger
from neurona_server.telemetry.collectors import GpuCollector, VersionInfo
from neurona_server.telemetry.metrics import Metrics

VERSIONS = [("a", 1), ("a", 2), ("b", 1)]
EVENTS = st.one_of(
    st.tuples(
        st.just("ended"), st.sampled_from(VERSIONS), st.sampled_from(("ok", "failed")),
        # Eighths: their sums are exact, in whatever order.
        st.integers(0, 100).map(lambda n: n / 8),
    ),
    st.tuples(st.just("ran"), st.sampled_from(VERSIONS), st.integers(1, 2000), st.integers(1, 9)),
    st.tuples(st.just("loaded"), st.sampled_from(VERSIONS), st.booleans(), st.integers(0, 400)),
)  # fmt: skip


class Process:
    """One whose page this is: all of the server's series, without a server."""

    def __init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self._models = {}

    def tell(self, event):
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

    def page(self):
        return snapshot.decode(snapshot.encode(snapshot.read(self.metrics.registry)))

    def _model(self, name, version):
        if (name, version) not in self._models:
            self._models[name, version] = self.metrics.for_version(name, version)
        return self._models[name, version]


class Pages(Collector):
    def __init__(self, page):
        self._page = page

    def collect(self):
        return snapshot.metrics(self._page)


def value(page, name, point=None, **labels):
    return page[name].series[tuple(sorted(labels.items()))][point or (name, "")]


def counts(page):
    """Without gauges, and without series that say that nothing was."""
    return {
        (name, labels): series
        for name, family in page.items()
        if family.kind in ("counter", "histogram")
        for labels, series in family.series.items()
        if any(series.values())
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), EVENTS), max_size=30))
def test_the_merge_of_pages_is_the_page_of_all_that_happened(history):
    processes, alone, merged = [Process() for _ in range(3)], Process(), SnapshotMerger()
    for number, event in history:
        processes[number].tell(event)
        alone.tell(event)
    for number, process in enumerate(processes):
        merged.replace(number, str(number), process.page())
    assert counts(merged.page()) == counts(alone.page())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.one_of(EVENTS, st.sampled_from(["read", "die", "let go"]))),
        max_size=40,
    )
)
def test_no_sum_ever_falls_and_no_bucket_is_above_the_next(history):
    processes, merged, before = [Process(), Process()], SnapshotMerger(), {}
    for number, event in history:
        process = processes[number]
        if event == "read":
            merged.replace(process, str(number), process.page())
        elif event == "die":
            merged.remove(process)
            processes[number] = Process()
        elif event == "let go":
            for name, version in list(process._models):
                process.release(name, version)
        else:
            process.tell(event)
        page = merged.page()
        now = {
            (labels, point): amount
            for family in page.values()
            if family.kind in ("counter", "histogram")
            for labels, series in family.series.items()
            for point, amount in series.items()
        }
        assert all(now[point] >= amount for point, amount in before.items())
        before = now
        for family in page.values():
            if family.kind == "histogram":
                for series in family.series.values():
                    buckets = [amount for (_, bound), amount in series.items() if bound]
                    assert buckets == sorted(buckets)


def test_a_process_that_dies_leaves_what_it_has_counted():
    merged, first, second = SnapshotMerger(), Process(), Process()
    for process in (first, second):
        process.tell(("ended", ("a", 1), "ok", 0.5))
        merged.replace(process, "0", process.page())
    total = {"name": "neurona_requests", "point": ("neurona_requests_total", "")}
    total |= {"model": "a", "version": "1", "outcome": "ok"}
    assert value(merged.page(), **total) == 2
    merged.remove(first)
    assert value(merged.page(), **total) == 2
    third = Process()
    merged.replace(third, "0", third.page())
    third.tell(("ended", ("a", 1), "ok", 0.5))
    merged.replace(third, "0", third.page())
    assert value(merged.page(), **total) == 3


def test_a_version_that_no_process_knows_any_more_is_forgotten_with_its_series():
    merged, process = SnapshotMerger(), Process()
    for version in (1, 2):
        process.tell(("ended", ("a", version), "ok", 0.5))
    process.tell(("loaded", ("a", 1), True, 1))
    merged.replace(process, "0", process.page())
    process.release("a", 1)
    merged.replace(process, "0", process.page())
    assert ("a", "1") in versions(merged.page())  # others may have it still
    merged.forget_versions()
    assert versions(merged.page()) == {("", ""), ("a", "2")}
    loads = {"name": "neurona_loads", "point": ("neurona_loads_total", ""), "model": "a"}
    assert value(merged.page(), **loads, outcome="ok")
    process.release("a", 2)
    process.metrics.forget_model("a")
    merged.replace(process, "0", process.page())
    assert value(merged.page(), **loads, outcome="ok")
    merged.forget_versions()
    assert versions(merged.page()) == {("", "")}
    assert not merged.page()["neurona_loads"].series


def versions(page):
    return {
        (dict(labels)["model"], dict(labels)["version"])
        for labels in page["neurona_requests"].series
    }


class Queue:
    limit = 7
    max_rows = 100

    def __init__(self, rows, age):
        self.rows, self._age = rows, age
        self.nbytes = 10 * rows

    def oldest_age(self):
        return self._age


class CostModel:
    batch_sizes = (1, 8)

    def __init__(self, seconds):
        self.seconds = seconds


def test_gauges_are_merged_by_the_rule_of_their_name():
    merged = SnapshotMerger()
    for number, (rows, age, seconds) in enumerate([(3, 0.5, {1: 0.25}), (4, 0.125, {})]):
        process = Process()
        model = process._model("a", 1)
        model.watch_batching(Queue(rows, age), CostModel(seconds))
        model.set_model_info("classification", "cpu")
        process.metrics.watch_versions(lambda: [VersionInfo("a", 1, "ready")])
        merged.replace(process, str(number), process.page())
    page = merged.page()
    labels = {"model": "a", "version": "1"}
    assert value(page, "neurona_queue_rows", **labels) == 7
    assert value(page, "neurona_queue_bytes", **labels) == 70
    assert value(page, "neurona_queue_limit_rows", **labels) == 200
    assert value(page, "neurona_queue_oldest_seconds", **labels) == 0.5
    assert value(page, "neurona_version_state", **labels, state="ready") == 1
    info = value(page, "neurona_model_info", **labels, task="classification", provider="cpu")
    assert info == 1
    name = "neurona_run_predicted_seconds"
    assert value(page, name, **labels, rows="1", process="0") == 0.25
    assert math.isnan(value(page, name, **labels, rows="1", process="1"))


def test_every_gauge_has_a_rule():
    metrics = Metrics(CollectorRegistry())
    metrics.watch_versions(list)
    metrics.watch_process(GpuCollector(FakeNvml()))
    gauges = {metric.name for metric in metrics.registry.collect() if metric.type == "gauge"}
    assert gauges == {*RULES, *OF_EACH_PROCESS}
    assert not set(RULES) & set(OF_EACH_PROCESS)


@pytest.mark.parametrize("hostile", ['"} 7\nneurona_x{a="', "\\", "é\n"])
def test_what_is_printed_is_prometheus_text_and_openmetrics(hostile):
    merged = SnapshotMerger()
    for number in range(2):
        process = Process()
        process.tell(("ended", (hostile, 1), "ok", 0.5))
        process.tell(("ran", (hostile, 1), 4, 2))
        process._model(hostile, 1).watch_batching(Queue(1, 0.5), CostModel({}))
        merged.replace(number, str(number), process.page())
    registry = CollectorRegistry()
    registry.register(Pages(merged.page()))
    families = {
        family.name: family
        for family in text_string_to_metric_families(generate_openmetrics(registry).decode())
    }
    assert families["neurona_requests"].type == "counter"
    assert families["neurona_request_duration_seconds"].type == "histogram"
    (two,) = [s for s in families["neurona_rows"].samples if s.labels["model"] == hostile]
    assert (two.name, two.value) == ("neurona_rows_total", 8)
    text = generate_latest(registry).decode()
    assert "# TYPE neurona_rows_total counter\n" in text
    assert text.count("# TYPE neurona_batch_rows histogram\n") == 1


def test_the_newest_exemplar_of_all_processes_is_shown():
    first, second = Process(), Process()
    merged = SnapshotMerger()
    for process, trace in ((second, "b"), (first, "a")):  # in this order, "a" is the newest
        model = process.metrics.for_version("m", 1)
        model.record_request("ok", 0.125)
        model.record_exemplar(0.125, trace * 32)
    for process in (first, second):
        merged.replace(process, "0", process.page())
    registry = CollectorRegistry()
    registry.register(Pages(merged.page()))
    page = generate_openmetrics(registry).decode()
    assert page.count("trace_id") == 1
    assert f'le="0.25",model="m",version="1"}} 2.0 # {{trace_id="{"a" * 32}"}} 0.125' in page
    assert "trace_id" not in generate_latest(registry).decode()
    merged.remove(first)
    merged.remove(second)
    merged.forget_versions()
    assert "trace_id" not in str(list(snapshot.metrics(merged.page())))
