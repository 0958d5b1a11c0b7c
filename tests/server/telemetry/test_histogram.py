"""Buffered durations are sorted at a read: none is lost, none is counted twice."""

import threading

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from neurona_server.telemetry.metrics import Metrics


def samples_of(registry, name, labels):
    return {
        sample.name: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith(name) and labels.items() <= sample.labels.items()
    }


def test_reading_one_series_flushes_it_first():
    metrics = Metrics(CollectorRegistry())
    model = metrics.for_version("m", 1)
    for _ in range(3):
        model.record_request("ok", 0.5)
    page = metrics.registry.restricted_registry(["neurona_requests_total"])
    labels = {"model": "m", "version": "1", "outcome": "ok"}
    assert samples_of(page, "neurona_requests", labels) == {"neurona_requests_total": 3}


def test_threads_record_while_others_read():
    metrics = Metrics(CollectorRegistry())
    writers, each = 6, 5000
    start = threading.Barrier(writers + 2)
    finished = threading.Event()

    def write():
        model = metrics.for_version("m", 1)  # shared, as by a reloaded version
        start.wait()
        for _ in range(each):
            model.record_request("ok", 0.125)
            model.record_queue_waits([0.25, 0.25])

    def scrape():
        start.wait()
        while not finished.is_set():
            list(metrics.registry.collect())

    scrapers = [threading.Thread(target=scrape) for _ in range(2)]
    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in [*scrapers, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    finished.set()
    for thread in scrapers:
        thread.join()
    labels = {"model": "m", "version": "1"}
    n = writers * each
    requests = samples_of(metrics.registry, "neurona_requests_total", labels | {"outcome": "ok"})
    assert requests == {"neurona_requests_total": n}
    seconds = samples_of(metrics.registry, "neurona_request_duration_seconds", labels)
    assert seconds["neurona_request_duration_seconds_count"] == n
    assert seconds["neurona_request_duration_seconds_sum"] == n / 8
    waits = samples_of(metrics.registry, "neurona_queue_duration_seconds", labels)
    assert waits["neurona_queue_duration_seconds_count"] == 2 * n
    assert waits["neurona_queue_duration_seconds_sum"] == n / 2


def test_openmetrics_shows_the_newest_exemplar_of_each_bucket():
    metrics = Metrics(CollectorRegistry())
    model = metrics.for_version("m", 1)
    for seconds, trace in ((0.2, "a"), (0.125, "b"), (99.0, "c"), (0.0001, "d")):
        model.record_request("ok", seconds)
        model.record_exemplar(seconds, trace * 32)
    exemplars = {
        sample.labels["le"]: (sample.exemplar.labels["trace_id"][0], sample.exemplar.value)
        for family in text_string_to_metric_families(
            generate_openmetrics(metrics.registry).decode()
        )
        for sample in family.samples
        if sample.exemplar
    }
    assert exemplars == {"0.0001": ("d", 0.0001), "0.25": ("b", 0.125), "+Inf": ("c", 99.0)}
    assert "trace_id" not in generate_latest(metrics.registry).decode()
