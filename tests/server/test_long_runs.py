"""Runs that take far longer than measured, as callers can cause them: others are served."""

import threading
import time

import grpc
import numpy as np
import pytest
from support import onnx_models
from support.in_process_server import run_app

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.models.onnx import value_dependence

ENDLESS = 2**62
"""Steps of a loop that never ends."""

MAX_WAIT = 3.0
"""Seconds that another caller may wait, even on a busy machine. It is some 50 ms on an idle one."""


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    root = tmp_path_factory.mktemp("loops")
    for number in range(3):
        onnx_models.save_loop(root / f"loop{number}" / "1" / "model.onnx")
    onnx_models.save_classifier(root / "classifier" / "1" / "model.onnx")
    return root


@pytest.fixture(params=["cygrpc", "aio"])
def transport(request):
    return request.param


@pytest.fixture
def serve(loops, transport, monkeypatch):
    """Serve the loops on the transport's thread, as if nobody knew that values decide their time.

    With the option inline = always, so that a slow machine changes nothing.
    """
    monkeypatch.setattr(value_dependence, "MAX_NODES", 0)

    def serve(*flags):
        arguments = ["--repository", loops, "--transport", transport, "--inline", "always", *flags]
        return run_app([str(argument) for argument in arguments], {})

    return serve


def count_to(steps, model="loop0"):
    x, n = to_tensor("x", np.zeros(2, np.float32)), to_tensor("n", np.array([steps]))
    return PredictRequest(model=model, inputs=[x, n])


CLASSIFY = PredictRequest(model="classifier", inputs=[to_tensor("x", np.zeros((1, 4), np.float32))])


def warm_up(app):
    """Send requests until all models run on the transport's thread."""
    stub = PredictionStub(app.channel)
    for number in range(3):
        for _ in range(5):
            stub.Predict(count_to(3, f"loop{number}"), timeout=10)
    for _ in range(5):
        stub.Predict(CLASSIFY, timeout=10)
    return stub


class Victim:
    """Calls another model while its block runs, and measures the longest wait."""

    def __init__(self, address):
        self.longest = 0.0
        self.calls = 0
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._call)

    def __enter__(self):
        self._thread.start()
        while not self.calls:
            time.sleep(0.001)
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join()

    def _call(self):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._address, options) as channel:
            stub = PredictionStub(channel)
            while not self._stopping.is_set():
                started = time.monotonic()
                stub.Predict(CLASSIFY, timeout=60)
                self.calls += 1
                self.longest = max(self.longest, time.monotonic() - started)


def test_endless_run_does_not_stop_other_callers_and_ends_with_its_deadline(serve):
    with serve() as app:
        stub = warm_up(app)
        with Victim(app.address) as victim, pytest.raises(grpc.RpcError) as caught:
            stub.Predict(count_to(ENDLESS), timeout=1)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert victim.longest < MAX_WAIT
        # The instance is free again once the run has been terminated.
        (response,) = [stub.Predict(count_to(4), timeout=10)]
        assert to_array(response.outputs[0]).tolist() == [4, 4]
        assert app.count("neurona_inline", model="loop0") == 0
        assert app.count("neurona_inline", model="loop1") == 1


def test_endless_run_of_a_stream_does_not_stop_other_callers_and_ends_with_its_stream(serve):
    with serve() as app:
        stub = warm_up(app)
        asked = threading.Event()

        def requests():
            yield PredictStreamRequest(requests=[{"id": 1, "request": count_to(ENDLESS)}])
            asked.wait(60)

        stream = stub.PredictStream(requests(), timeout=60)
        with Victim(app.address) as victim:
            while not app.count("neurona_terminated_runs_total", model="loop0"):
                time.sleep(0.01)
            calls = victim.calls
            while victim.calls == calls:
                time.sleep(0.01)
        assert victim.longest < MAX_WAIT
        stream.cancel()
        asked.set()
        response = stub.Predict(count_to(4), timeout=10)
        assert to_array(response.outputs[0]).tolist() == [4, 4]


def test_requests_of_an_interrupted_run_are_answered_by_an_instance(serve):
    with serve() as app:
        stub = warm_up(app)
        steps = 500_000  # at least some 0.2 s
        response = stub.Predict(count_to(steps), timeout=60)
        assert to_array(response.outputs[0]).tolist() == [steps, steps]
        assert app.count("neurona_terminated_runs_total", model="loop0") == 1
        assert app.count("neurona_requests_total", model="loop0", outcome="ok") == 6
        # A request that was taken out of the queue twice has waited once.
        assert app.count("neurona_queue_duration_seconds_count", model="loop0") == 6


def test_endless_runs_do_not_keep_other_models_from_the_device(serve):
    with serve("--instances", "1") as app:
        stub = warm_up(app)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(app.address, options) as channel:
            attack = PredictionStub(channel).Predict
            calls = [attack.future(count_to(ENDLESS, f"loop{number}")) for number in range(3)]
            end = time.monotonic() + 60
            while app.count("neurona_overdue_runs") < 3:
                assert time.monotonic() < end
                time.sleep(0.01)
            # A group that has not run yet needs an instance's thread.
            rows = np.zeros((7, 4), np.float32)
            other = PredictRequest(model="classifier", inputs=[to_tensor("x", rows)])
            stub.Predict(other, timeout=MAX_WAIT)
            for call in calls:
                call.cancel()
        end = time.monotonic() + 60
        while app.count("neurona_overdue_runs"):
            assert time.monotonic() < end
            time.sleep(0.01)
        stub.Predict(count_to(2, "loop2"), timeout=10)


def test_run_longer_than_max_run_seconds_fails_and_its_model_serves_again(serve):
    with serve("--max-run-seconds", "0.5") as app:
        stub = warm_up(app)
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(count_to(ENDLESS), timeout=60)
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "terminated after 0.5 s (the option max_run_seconds)" in caught.value.details()
        assert time.monotonic() - started < 0.5 + MAX_WAIT
        response = stub.Predict(count_to(4), timeout=10)
        assert to_array(response.outputs[0]).tolist() == [4, 4]


def test_model_whose_time_depends_on_values_is_never_on_the_transports_thread(serve, monkeypatch):
    monkeypatch.undo()
    with serve() as app:
        warm_up(app)
        assert app.count("neurona_inline", model="loop0") == 0
        assert app.count("neurona_inline", model="classifier") == 1
