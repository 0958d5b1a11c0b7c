"""Every panel of every dashboard has data while real servers are under load."""

import threading

import numpy as np
import pytest
from support import dashboards, onnx_models
from support.server_process import LoadGenerator, ServerProcess

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

SETTINGS = """\
versions = "all"
default = "stable"
[version_labels]
stable = 1
canary = 2
next = 3
[traffic]
canary = 20
[shadow]
to = "next"
"""

ROWS = {"classifier": np.ones((2, 4), np.float32), "padded": np.ones((33, 2), np.float32)}


def request(model, rows=None):
    return PredictRequest(
        model=model, inputs=[to_tensor("x", ROWS[model] if rows is None else rows)]
    )


@pytest.fixture(scope="module")
def under_load(scraper, tmp_path_factory):
    """A server with every feature, and one with two worker processes; yields their addresses."""
    root = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3):
        path = root / "classifier" / str(version) / "model.onnx"
        onnx_models.save_classifier(path, offset=version / 10)
    (root / "classifier" / "model.toml").write_text(SETTINGS)
    onnx_models.save_quick_at_32(root / "padded" / "1" / "model.onnx")
    small = tmp_path_factory.mktemp("small")
    onnx_models.save_classifier(small / "classifier" / "1" / "model.onnx")
    replicas = [
        ServerProcess(root, "--max-message-bytes", "100000"),
        ServerProcess(small, "--processes", "2"),
    ]
    try:
        for replica in replicas:
            replica.start().wait_until_serving()
            scraper.add_target(replica.metrics_address)
        first, second = replicas
        too_large = request("padded", np.ones((100_000, 2), np.float32))
        unknown = PredictRequest(model="unknown")
        end = threading.Event()
        stream = PredictionStub(first.channel).PredictStream(open_stream(end))
        with (
            LoadGenerator([first.channel], request("classifier"), callers=3, pause=0.005),
            LoadGenerator([first.channel], request("padded"), too_large, unknown, pause=0.05),
            LoadGenerator([second.channel], request("classifier"), pause=0.02),
        ):
            yield first.metrics_address, second.metrics_address
        end.set()
        stream.cancel()
    finally:
        for replica in replicas:
            scraper.remove_target(replica.metrics_address)
            replica.close()


def open_stream(end):
    """Yields one message and keeps the stream open until the event `end`."""
    yield PredictStreamRequest()
    end.wait()


def variables(query, single, with_workers):
    """Values of the dashboard's variables. Panels of workers need the server with workers."""
    values = {"job": "neurona", "instance": ".+", "model": ".+", "version": ".+"}
    if query.dashboard == "process":
        values["instance"] = with_workers if "neurona_process" in query.expr else single
    if query.dashboard == "model":
        values["model"] = "classifier"
    return values


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS)
def test_every_query_of_every_panel_has_data(under_load, scraper, dashboard):
    queries = [*dashboards.panel_queries(), *dashboards.annotation_queries()]
    missing = {
        (
            query.panel,
            dashboards.substitute_variables(query.expr, variables(query, *under_load), "10s"),
        )
        for query in queries
        if query.dashboard == dashboard and query.panel not in dashboards.GPU_PANELS
    }

    def all_have_data():
        missing.difference_update([one for one in missing if scraper.query(one[1])])
        return not missing

    try:
        scraper.until(all_have_data, "data for every panel", timeout=60)
    except AssertionError:
        assert missing == set()
        raise


def test_variables_of_dashboards_have_values(under_load, scraper):
    values = {"job": "neurona", "instance": ".+", "model": "classifier"}

    def all_have_values():
        for dashboard in dashboards.DASHBOARDS.values():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] == "query":
                    metric, label = variable["query"][len("label_values(") : -1].rsplit(", ", 1)
                    series = scraper.query(dashboards.substitute_variables(metric, values))
                    if not {labels[label] for labels, _ in series} - {""}:
                        return False
        return True

    scraper.until(all_have_values, "values for every variable")


def test_metrics_of_panels_are_scraped(under_load, scraper):
    queries = [one for one in dashboards.panel_queries() if one.panel not in dashboards.GPU_PANELS]
    names = {name for query in queries for name in dashboards.metric_names(query.expr)}

    def missing():
        scraped = {labels["__name__"] for labels, _ in scraper.query('{job="neurona"}')}
        # No version is loading while the servers are under load.
        return names - dashboards.recorded_names() - scraped - {"neurona_version_loading_seconds"}

    try:
        scraper.until(lambda: not missing(), "every metric")
    except AssertionError:
        assert missing() == set()
        raise
