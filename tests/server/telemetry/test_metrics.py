"""The series of a server, after requests, streams, loads and rejections."""

import threading

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.in_process_server import OPTIONS, InProcessServer

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.tensors import to_tensor
from neurona_server.errors import (
    BuffersFullError,
    InvalidArgumentError,
    PermissionDeniedError,
    QueueFullError,
    TooLargeError,
    UnauthenticatedError,
)
from neurona_server.telemetry.collectors import LoadingCollector
from neurona_server.telemetry.metrics import Metrics

LABELS = {"model": "classifier", "version": "1"}


def request(model="classifier", rows=1):
    pixels = np.ones((rows, 4), np.float32)
    return PredictRequest(model=model, inputs=[to_tensor("x", pixels)], version=1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnauthenticatedError("no"), "unauthenticated"),
        (PermissionDeniedError("no"), "permission"),
        (TooLargeError("no"), "too_large"),
        (QueueFullError("no", 1.0), "too_many"),
        (BuffersFullError("no", 1.0), "buffers_full"),
        (InvalidArgumentError("no"), None),
    ],
)
def test_rejected_calls_are_counted_by_reason(error, reason):
    metrics = Metrics(CollectorRegistry())
    metrics.record_rejection(error)
    (family,) = [f for f in metrics.registry.collect() if f.name == "neurona_rejected_calls"]
    counts = {sample.labels["reason"]: sample.value for sample in family.samples}
    assert counts == {
        each: float(each == reason)
        for each in ("unauthenticated", "permission", "too_large", "too_many", "buffers_full")
    }


def test_a_load_has_a_series_while_it_is_in_progress():
    now = [10.0]
    registry = CollectorRegistry()
    loading = LoadingCollector(lambda: now[0])
    registry.register(loading)
    name = "neurona_version_loading_seconds"
    loading.start_load("a", 1)
    now[0] = 12.5
    assert registry.get_sample_value(name, {"model": "a", "version": "1"}) == 2.5
    loading.finish_load("a", 1)
    assert registry.get_sample_value(name, {"model": "a", "version": "1"}) is None
    loading.finish_load("a", 1)  # a second time does nothing


@pytest.fixture(scope="module")
def server(repository):
    server = InProcessServer(repository)
    yield server
    server.stop()


def test_join_and_split_durations_are_counted_for_each_run(server):
    runs = server.count("batch_rows_count", **LABELS)
    server.prediction.Predict(request(rows=3))
    assert server.count("join_duration_seconds_count", **LABELS) == runs + 1
    assert server.count("split_duration_seconds_count", **LABELS) == runs + 1
    assert server.count("join_duration_seconds_sum", **LABELS) > 0
    assert server.count("split_duration_seconds_sum", **LABELS) > 0


def test_warm_up_is_part_of_the_load_duration(server):
    loads = server.count("load_duration_seconds_count", model="classifier")
    assert server.count("warm_up_duration_seconds_count", model="classifier") == loads == 2
    warm_up = server.count("warm_up_duration_seconds_sum", model="classifier")
    assert 0 < warm_up < server.count("load_duration_seconds_sum", model="classifier")


def test_shares_are_of_requests_without_a_version(server):
    share = {n: server.count("version_share_ratio", model="classifier", version=n) for n in "12"}
    assert share == {"1": 0, "2": 1}
    assert server.count("version_label", model="classifier", version="2", label="latest") == 1


def test_no_loading_series_is_left_after_the_loads(server):
    names = {s.name for f in server.metrics.registry.collect() for s in f.samples}
    assert "neurona_version_loading_seconds" not in names
    assert "neurona_version_share_ratio" in names


def test_queue_gauges_show_rows_and_bytes(repository, wait_until):
    server = InProcessServer(repository, start_models=False)
    try:
        call = server.prediction.Predict.future(request(rows=5))
        wait_until(lambda: server.count("queue_rows", **LABELS) == 5)
        assert server.count("queue_bytes", **LABELS) >= 5 * 4 * 4
        assert server.count("queue_limit_rows", **LABELS) == 4096
        call.cancel()
        wait_until(lambda: server.count("queue_bytes", **LABELS) == 0)
    finally:
        server.stop()


@pytest.mark.parametrize("protocol", ["neurona", "open inference"])
def test_open_streams_are_counted(server, wait_until, protocol):
    end = threading.Event()
    name = "classifier"

    def messages(first):
        yield first
        end.wait(10)

    if protocol == "neurona":
        first = PredictStreamRequest(requests=[StreamedRequest(id=1, request=request())])
        calls = [server.prediction.PredictStream(messages(first)) for _ in range(3)]
    else:
        first = ModelInferRequest(model_name=name)
        calls = [server.triton.ModelStreamInfer(messages(first)) for _ in range(3)]
    for call in calls:
        next(call)
    assert server.count("open_streams") == 3
    calls[0].cancel()
    wait_until(lambda: server.count("open_streams") == 2)
    end.set()
    for call in calls[1:]:
        assert list(call) == []
    wait_until(lambda: server.count("open_streams") == 0)


def test_a_message_too_large_is_counted_by_the_cygrpc_transport(repository, tmp_path):
    rejected = []
    onnx_models.save_regressor(tmp_path / "m" / "1" / "model.onnx")
    options = OPTIONS.__class__(max_message_bytes=1000, on_reject=rejected.append)
    server = InProcessServer(tmp_path, options=options)
    try:
        for _ in range(2):
            with pytest.raises(grpc.RpcError, match="larger than max"):
                server.prediction.Predict(request(rows=1000))
        stream = server.channel.stream_stream("/neurona.v1.Prediction/PredictStream")
        with pytest.raises(grpc.RpcError, match="larger than max"):
            list(stream(iter([b"x" * 2000])))
        with pytest.raises(grpc.RpcError, match="no request"):
            server.channel.stream_unary("/neurona.v1.Prediction/Predict")(iter([]))
    finally:
        server.stop()
    assert [type(error) for error in rejected] == [TooLargeError] * 3


def test_node_counts_are_those_of_the_current_placement():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    old, new = metrics.for_version("m", 1), metrics.for_version("m", 1)
    old.record_placement({"CUDAExecutionProvider": 3, "CPUExecutionProvider": 1}, degraded=False)
    new.record_placement({"CPUExecutionProvider": 4}, degraded=True)
    (nodes,) = [family for family in registry.collect() if family.name == "neurona_model_nodes"]
    providers = {sample.labels["provider"]: sample.value for sample in nodes.samples}
    assert providers == {"CPUExecutionProvider": 4}
