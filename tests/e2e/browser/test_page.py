"""The status page of a real server, in a real browser."""

import shutil
import threading
import time

import grpc
import numpy as np
import pytest
from support import onnx_models

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

ROWS = "document.querySelectorAll('tbody tr').length"


@pytest.fixture
def models(tmp_path):
    root = tmp_path / "models"
    onnx_models.save_classifier(root / "good" / "1" / "model.onnx")
    onnx_models.save_regressor(root / "other" / "1" / "model.onnx")
    return root


def good(rows=1, name="x"):
    return PredictRequest(model="good", inputs=[to_tensor(name, np.ones((rows, 4), np.float32))])


def cell(browser, model, column):
    """Returns the text of a cell, or "" while there is no such row."""
    return browser.evaluate(
        f"[...document.querySelectorAll('tbody tr')].find("
        f"row => row.querySelector('.name').textContent === {model!r})"
        f"?.querySelector('.{column}')?.innerText ?? ''"
    )


def number(text):
    return float(text.split("\n")[0].replace(",", ""))


class RateLoad:
    """Sends requests at fixed rates while its block runs."""

    def __init__(self, server, *calls):
        """Each of the `calls` is a request and its rate per second."""
        self._stub = PredictionStub(server.channel)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=call) for call in calls]

    def __enter__(self):
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self, request, rate):
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / rate
            try:
                self._stub.Predict(request, timeout=5)
            except grpc.RpcError:
                continue


def test_figures_equal_the_load(browser, serve, models, screenshot):
    server = serve(models)
    browser.open(f"http://{server.metrics_address}/")
    browser.wait_until(f"{ROWS} === 2")
    assert "No requests yet" in browser.text()
    screenshot("quiet")
    nobody = PredictRequest(model="nobody")
    with RateLoad(server, (good(rows=3), 20), (good(name="wrong"), 5), (nobody, 5)):
        time.sleep(16)  # the page's window, and some
        assert number(cell(browser, "good", "rate")) == pytest.approx(25, rel=0.2)
        assert number(cell(browser, "good", "errors")) == pytest.approx(5, rel=0.3)
        assert cell(browser, "good", "errors").endswith(
            f"invalid {cell(browser, 'good', 'errors').split()[0]}"
        )
        assert number(browser.text("#tile-requests .value span")) == pytest.approx(30, rel=0.2)
        assert number(browser.text("#tile-errors .value span")) == pytest.approx(10, rel=0.3)
        assert "/s for unknown models" in browser.text("#tile-requests .note")
        assert number(cell(browser, "good", "batch")) == pytest.approx(3, abs=0.1)
        for column in ("p50", "p99"):
            value, unit = cell(browser, "good", column).split()
            assert 0 < float(value) < 1000
            assert unit in ("µs", "ms")
        assert cell(browser, "good", "provider") == "CPU"
        assert cell(browser, "good", "queue") == "0"
        assert "No requests yet" not in browser.text()
        screenshot("light")
        for name, options in (("dark", {"dark": True}), ("narrow", {"width": 390, "height": 844})):
            browser.open(f"http://{server.metrics_address}/", **options)
            time.sleep(8)
            screenshot(name)
        wide = "document.documentElement.scrollWidth"
        assert browser.evaluate(wide) <= 390  # no horizontal scrolling
    assert cell(browser, "other", "rate") == "0" or "\n0" in cell(browser, "other", "rate")
    assert browser.errors == []
    # The page shows what the server has counted.
    text = server.metrics()
    ok = float(text.split('requests_total{model="good",outcome="ok",version="1"} ')[1].split()[0])
    assert ok > 200


def test_failed_and_degraded_versions_are_shown(browser, serve, models, screenshot):
    server = serve(models, "--providers", "cuda,cpu", "--poll-ms", "100")
    browser.open(f"http://{server.metrics_address}/")
    browser.wait_until(f"{ROWS} === 2")
    assert "degraded" in cell(browser, "good", "state")
    assert cell(browser, "good", "provider") == "CPU"
    broken = models / "broken" / "7" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no model")
    browser.wait_until(f"{ROWS} === 3")
    assert cell(browser, "broken", "state").split() == ["failed", "problem:", "see", "the", "log"]
    screenshot("failed")
    # A label that moves to another version is shown there.
    shutil.copytree(models / "good" / "1", models / "good" / "2")
    (models / "good" / "model.toml").write_text(
        "versions = [1, 2]\ndefault = 1\n[version_labels]\ncanary = 2\n[traffic]\ncanary = 10\n"
    )
    browser.wait_until(f"{ROWS} === 4")
    browser.wait_until("document.body.innerText.includes('canary')")
    assert "10 % of requests" in browser.text("tbody")
    browser.evaluate("document.getElementById('problems').click()")
    browser.wait_until(f"{ROWS} === 4")  # all are degraded
    shutil.rmtree(broken.parents[1])
    browser.wait_until(f"{ROWS} === 3")
    assert browser.errors == []


def test_the_page_survives_a_restart_of_the_server(browser, serve, models, screenshot):
    server = serve(models)
    browser.open(f"http://{server.metrics_address}/")
    with RateLoad(server, (good(), 20)):
        browser.wait_until(
            "parseFloat(document.querySelector('#tile-requests .value').innerText) > 5"
        )
    server.kill()
    browser.wait_until("document.body.classList.contains('lost')")
    assert browser.text("#state") == "unreachable"
    assert "No response since" in browser.text("#notice")
    assert browser.evaluate(ROWS) == 2  # the last values
    screenshot("lost")
    server.start().wait_until_serving()
    browser.wait_until("document.getElementById('state').innerText === 'serving'")
    assert "was restarted" in browser.text("#notice")
    assert "No requests yet" in browser.text()
    with RateLoad(server, (good(), 20)):
        browser.wait_until(
            "parseFloat(document.querySelector('#tile-requests .value').innerText) > 5"
        )
        assert not any(c in browser.text() for c in ("NaN", "Infinity", "undefined", "null"))
        browser.wait_until("document.getElementById('notice').hidden", 40)
    server.terminate()
    browser.wait_until("document.body.classList.contains('lost')")


def test_several_processes_are_shown_as_one_server(browser, serve, models):
    server = serve(models, "--processes", "2")
    browser.open(f"http://{server.metrics_address}/")
    browser.wait_until("document.getElementById('facts').innerText.includes('2 processes serving')")
    assert browser.text("#state") == "serving"
    browser.wait_until(f"{ROWS} === 2")
    assert browser.errors == []


def test_three_hundred_models_can_be_searched(browser, serve, tmp_path, screenshot):
    for index in range(300):
        onnx_models.save_classifier(tmp_path / f"model-{index:03}" / "1" / "model.onnx")
    server = serve(tmp_path, "--cache", "off", "--log-level", "error")
    browser.open(f"http://{server.metrics_address}/")
    browser.wait_until(f"{ROWS} === 300", 60)
    assert browser.text("#shown") == "300 versions"
    screenshot("many")
    browser.evaluate("document.getElementById('filter').focus()")
    browser.write("model-12")
    browser.wait_until(f"{ROWS} === 10")
    assert browser.text("#shown") == "10 of 300 versions"
    names = browser.evaluate("[...document.querySelectorAll('.name')].map(n => n.innerText)")
    assert names == [f"model-12{digit}" for digit in range(10)]
    screenshot("filtered")
    browser.write("x")
    browser.wait_until(f"{ROWS} === 0")
    assert "No model matches the filter" in browser.text()
    # The page keeps up: the next poll changes it.
    before = browser.text("#facts")
    browser.wait_until(f"document.getElementById('facts').innerText !== {before!r}")
    assert browser.errors == []
