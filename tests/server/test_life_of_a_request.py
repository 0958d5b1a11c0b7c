"""One Predict is followed from the bytes at the transport to the bytes of its response."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest

import neurona_protos
import neurona_server
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy

ROOT = Path(__file__).parents[2]
SERVER = Path(neurona_server.__file__).parent
PROTOS = Path(neurona_protos.__file__).parent

MAIN_LINE = {
    "rpc/transports/cygrpc.py": "CygrpcCall",
    "rpc/v1/prediction.py": "Prediction",
    "rpc/submission.py": "",
    "batching/batcher.py": "Batcher.submit",
    "models/onnx/session.py": "",
    "rpc/v1/responses.py": "PredictResponseWriter.__call__",
}
"""The files through which a request goes, each with the start of the qualified name of what takes
it on there: `expected`, for one, is asked of a response that is yet to be written."""

MAX_FILES = 31
"""Files whose code runs for one request: the main line, and what that consults."""

BACKGROUND_THREADS = {"watchdog", "heartbeat", "connections", "arena maintenance", "poll", "log"}
"""Names of threads that run now and then, whatever a request does."""

REQUEST = PredictRequest(model="classifier", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])


class Recorder:
    """Records the calls of the server's functions, in all threads of requests that
    start after it."""

    def __init__(self):
        self.recording = False
        self.calls = []  # the file and the qualified name of the function, in order
        self.ended = threading.Event()

    def profile(self, frame, event, _):
        if not self.recording or event != "call":
            return
        if threading.current_thread().name in BACKGROUND_THREADS:
            return
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SERVER):
            self.calls.append((str(path.relative_to(SERVER)), frame.f_code.co_qualname))
        elif path.is_relative_to(PROTOS):
            self.calls.append((f"protos/{path.name}", frame.f_code.co_qualname))

    def record(self, call):
        self.calls = []
        self.recording = True
        try:
            call()
        finally:
            self.recording = False
        return self.calls


@pytest.fixture
def transport(monkeypatch):
    monkeypatch.setattr("support.in_process_server.TRANSPORT", "cygrpc")
    return "cygrpc"


@pytest.fixture
def recorder():
    recorder = Recorder()
    threading.setprofile(recorder.profile)
    yield recorder
    threading.setprofile(None)


def first_entries(calls):
    """The files of the main line in the order in which the request came to them."""
    entered = {
        path: None
        for path, function in calls
        if path in MAIN_LINE and function.startswith(MAIN_LINE[path])
    }
    return list(entered)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "threaded"])
def test_a_predict_passes_six_files_and_consults_few(recorder, make_server, inline):
    server = make_server(BatchPolicy(inline=inline))

    def predict():
        server.prediction.Predict(REQUEST, timeout=10)

    series = to_tensor("series", np.ones((1, 5), np.float32))
    other = PredictRequest(model="regressor", inputs=[series])
    server.prediction.Predict(other, timeout=10)  # connects
    cold = recorder.record(predict)
    predict()
    warm = recorder.record(predict)
    for calls in (cold, warm):
        assert first_entries(calls) == list(MAIN_LINE)
        files = {path for path, _ in calls}
        assert len(files) <= MAX_FILES, "\n".join(sorted(files))


def test_the_manual_names_these_files():
    manual = (ROOT / "server" / "README.md").read_text()
    section = manual.partition("## The life of a request\n")[2].partition("\n## ")[0]
    assert re.findall(r"(?m)^\d\. `([\w/]+\.py)`", section) == list(MAIN_LINE)
