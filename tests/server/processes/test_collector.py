"""What the page of several processes says by itself, whatever its workers say."""

from prometheus_client import CollectorRegistry

from neurona_server.processes import snapshot
from neurona_server.processes.collector import MultiprocessCollector
from neurona_server.telemetry.metrics import Metrics


def test_that_nobody_serves_is_told_while_there_is_no_worker():
    # An alert on a series that is not there does not fire.
    registry = CollectorRegistry()
    pages = MultiprocessCollector(2)
    registry.register(pages)
    assert registry.get_sample_value("neurona_serving") == 0
    texts = []
    for _ in range(2):
        metrics = Metrics(CollectorRegistry())
        metrics.serving.set(1)
        page = snapshot.read(metrics.registry)
        texts.append(page["neurona_serving"].text)
        worker = type("Worker", (), {"number": len(texts)})()
        pages.replace(worker, page)
    assert registry.get_sample_value("neurona_serving") == 2
    assert {f.documentation for f in pages.collect() if f.name == "neurona_serving"} == {*texts}
    pages.remove(worker)
    assert registry.get_sample_value("neurona_serving") == 1
