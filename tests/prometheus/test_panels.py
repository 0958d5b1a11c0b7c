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
    """One server of everything, and one of two processes."""
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
            scraper.watch(replica.metrics_address)
        first, second = replicas
        too_large = request("padded", np.ones((100_000, 2), np.float32))
        unknown = PredictRequest(model="unknown")
        over = threading.Event()
        stream = PredictionStub(first.channel).PredictStream(until(over))
        with (
            LoadGenerator([first.channel], request("classifier"), callers=3, pause=0.005),
            LoadGenerator([first.channel], request("padded"), too_large, unknown, pause=0.05),
            LoadGenerator([second.channel], request("classifier"), pause=0.02),
        ):
            yield first.metrics_address, second.metrics_address
        over.set()
        stream.cancel()
    finally:
        for replica in replicas:
            scraper.forget(replica.metrics_address)
            replica.close()


def until(over):
    """A stream of one message, which stays open."""
    yield PredictStreamRequest()
    over.wait()


def chosen(board, asked, single, several):
    """What a person has chosen at the top. Panels of workers are of a server that has some."""
    workers = "neurona_process" in asked.expr
    instance = several if workers else single
    values = {"job": "neurona", "instance": ".+", "model": ".+", "version": ".+"}
    if board == "process":
        values["instance"] = instance
    if board == "model":
        values["model"] = "classifier"
    return values


@pytest.mark.parametrize("board", dashboards.BOARDS)
def test_every_query_of_every_panel_has_data(under_load, scraper, board):
    asked = [one for one in dashboards.queries() if one.board == board]
    asked += [one for one in dashboards.annotations() if one.board == board]
    missing = {
        (one.panel, dashboards.filled(one.expr, chosen(board, one, *under_load), "10s"))
        for one in asked
        if one.panel not in dashboards.NEED_A_GPU
    }

    def all_have_data():
        missing.difference_update([one for one in missing if scraper.query(one[1])])
        return not missing

    try:
        scraper.until(all_have_data, "data for every panel", patience=60)
    except AssertionError:
        assert missing == set()
        raise


def test_choices_at_the_top_have_values(under_load, scraper):
    values = {"job": "neurona", "instance": ".+", "model": "classifier"}

    def all_have_values():
        for board in dashboards.BOARDS.values():
            for variable in board["templating"]["list"]:
                if variable["type"] == "query":
                    metric, label = variable["query"][len("label_values(") : -1].rsplit(", ", 1)
                    series = scraper.query(dashboards.filled(metric, values))
                    if not {labels[label] for labels, _ in series} - {""}:
                        return False
        return True

    scraper.until(all_have_values, "values for every choice")


def test_metrics_that_panels_name_are_there(under_load, scraper):
    """By what the servers really expose: the names of all series that Prometheus has."""
    asked = [one for one in dashboards.queries() if one.panel not in dashboards.NEED_A_GPU]
    named = {name for one in asked for name in dashboards.names(one.expr)}

    def missing():
        there = {labels["__name__"] for labels, _ in scraper.query('{job="neurona"}')}
        # Nothing loads while there is load.
        return named - dashboards.recorded() - there - {"neurona_version_loading_seconds"}

    try:
        scraper.until(lambda: not missing(), "every metric")
    except AssertionError:
        assert missing() == set()
        raise
