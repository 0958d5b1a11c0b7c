"""The status page, in a real browser, of a real server."""

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
    """What stands in a row, without the names of columns that narrow pages show."""
    return browser.do(
        f"[...document.querySelectorAll('tbody tr')].find("
        f"row => row.querySelector('.name').textContent === {model!r})"
        f"?.querySelector('.{column}')?.innerText ?? ''"
    )


def number(text):
    return float(text.split("\n")[0].replace(",", ""))


class Load:
    """Calls at a rate, until the end of the block."""

    def __init__(self, server, *calls):
        """`calls`: a request, and how many of it each second."""
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


def test_its_figures_are_those_of_the_load(browser, serve, models, picture):
    server = serve(models)
    browser.open(f"http://{server.metrics_address}/")
    browser.wait(f"{ROWS} === 2")
    assert "No requests yet" in browser.text()
    picture("quiet")
    nobody = PredictRequest(model="nobody")
    with Load(server, (good(rows=3), 20), (good(name="wrong"), 5), (nobody, 5)):
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
        picture("light")
        for name, options in (("dark", {"dark": True}), ("narrow", {"width": 390, "height": 844})):
            browser.open(f"http://{server.metrics_address}/", **options)
            time.sleep(8)
            picture(name)
        wide = "document.documentElement.scrollWidth"
        assert browser.do(wide) <= 390  # nothing hangs over
    assert cell(browser, "other", "rate") == "0" or "\n0" in cell(browser, "other", "rate")
    assert browser.faults == []
    # What it says is what is counted.
    text = server.metrics()
    ok = float(text.split('requests_total{model="good",outcome="ok",version="1"} ')[1].split()[0])
    assert ok > 200


def test_a_version_that_fails_or_is_degraded_shows(browser, serve, models, picture):
    server = serve(models, "--providers", "cuda,cpu", "--poll-ms", "100")
    browser.open(f"http://{server.metrics_address}/")
    browser.wait(f"{ROWS} === 2")
    assert "degraded" in cell(browser, "good", "state")
    assert cell(browser, "good", "provider") == "CPU"
    broken = models / "broken" / "7" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no model")
    browser.wait(f"{ROWS} === 3")
    assert cell(browser, "broken", "state").split() == ["failed", "problem:", "see", "the", "log"]
    picture("failed")
    # A label that moves is shown where it is.
    shutil.copytree(models / "good" / "1", models / "good" / "2")
    (models / "good" / "model.toml").write_text(
        "versions = [1, 2]\ndefault = 1\n[version_labels]\ncanary = 2\n[traffic]\ncanary = 10\n"
    )
    browser.wait(f"{ROWS} === 4")
    browser.wait("document.body.innerText.includes('canary')")
    assert "10 % of requests" in browser.text("tbody")
    browser.do("document.getElementById('problems').click()")
    browser.wait(f"{ROWS} === 4")  # all are degraded
    shutil.rmtree(broken.parents[1])
    browser.wait(f"{ROWS} === 3")
    assert browser.faults == []


def test_it_survives_the_server(browser, serve, models, picture):
    server = serve(models)
    browser.open(f"http://{server.metrics_address}/")
    with Load(server, (good(), 20)):
        browser.wait("parseFloat(document.querySelector('#tile-requests .value').innerText) > 5")
    server.kill()
    browser.wait("document.body.classList.contains('lost')")
    assert browser.text("#state") == "unreachable"
    assert "No response since" in browser.text("#notice")
    assert browser.do(ROWS) == 2  # what was last heard
    picture("lost")
    server.start().wait_until_serving()
    browser.wait("document.getElementById('state').innerText === 'serving'")
    assert "was restarted" in browser.text("#notice")
    assert "No requests yet" in browser.text()
    with Load(server, (good(), 20)):
        browser.wait("parseFloat(document.querySelector('#tile-requests .value').innerText) > 5")
        assert not any(c in browser.text() for c in ("NaN", "Infinity", "undefined", "null"))
        browser.wait("document.getElementById('notice').hidden", 40)
    server.terminate()
    browser.wait("document.body.classList.contains('lost')")


def test_several_processes_are_one_server(browser, serve, models):
    server = serve(models, "--processes", "2")
    browser.open(f"http://{server.metrics_address}/")
    browser.wait("document.getElementById('facts').innerText.includes('2 processes serving')")
    assert browser.text("#state") == "serving"
    browser.wait(f"{ROWS} === 2")
    assert browser.faults == []


def test_three_hundred_models_can_be_searched(browser, serve, tmp_path, picture):
    for index in range(300):
        onnx_models.save_classifier(tmp_path / f"model-{index:03}" / "1" / "model.onnx")
    server = serve(tmp_path, "--cache", "off", "--log-level", "error")
    browser.open(f"http://{server.metrics_address}/")
    browser.wait(f"{ROWS} === 300", 60)
    assert browser.text("#shown") == "300 versions"
    picture("many")
    browser.do("document.getElementById('filter').focus()")
    browser.write("model-12")
    browser.wait(f"{ROWS} === 10")
    assert browser.text("#shown") == "10 of 300 versions"
    names = browser.do("[...document.querySelectorAll('.name')].map(n => n.innerText)")
    assert names == [f"model-12{digit}" for digit in range(10)]
    picture("filtered")
    browser.write("x")
    browser.wait(f"{ROWS} === 0")
    assert "No model matches the filter" in browser.text()
    # It keeps up: the next look changes the page.
    before = browser.text("#facts")
    browser.wait(f"document.getElementById('facts').innerText !== {before!r}")
    assert browser.faults == []
