"""MultiprocessCollector without worker processes."""

from prometheus_client import CollectorRegistry

from neurona_server.processes.multiprocess_collector import MultiprocessCollector
from neurona_server.processes.snapshot import take_snapshot
from neurona_server.telemetry.metrics import Metrics


def test_serving_is_0_without_workers_and_their_sum_with_them():
    # An alert on a series that does not exist would not fire.
    registry = CollectorRegistry()
    collector = MultiprocessCollector(2)
    registry.register(collector)
    assert registry.get_sample_value("neurona_serving") == 0
    texts = []
    for _ in range(2):
        metrics = Metrics(CollectorRegistry())
        metrics.serving.set(1)
        snapshot = take_snapshot(metrics.registry)
        texts.append(snapshot["neurona_serving"].text)
        worker = type("Worker", (), {"number": len(texts)})()
        collector.replace(worker, snapshot)
    assert registry.get_sample_value("neurona_serving") == 2
    assert {f.documentation for f in collector.collect() if f.name == "neurona_serving"} == {*texts}
    collector.remove(worker)
    assert registry.get_sample_value("neurona_serving") == 1
