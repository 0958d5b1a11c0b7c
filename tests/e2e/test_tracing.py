"""Traces, exemplars and JSON logs of a real server, as a collector and log readers get them."""

import json
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support import onnx_models
from support.otlp_collector import Collector
from support.server_process import run_neurona_serve

from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.prediction_pb2_grpc import PredictionStub
from neurona_protos.tensors import to_tensor

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "mine")]
UNSAMPLED = [("traceparent", f"00-{TRACE}-{PARENT}-00")]
PREDICT = "neurona.v1.Prediction/Predict"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    onnx_models.save_picker(root / "picker" / "1" / "model.onnx")
    return root


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.stop()


def predict(server, *indices, metadata=(), model="picker"):
    index = to_tensor("index", np.array(indices, np.int64))
    request = PredictRequest(model=model, inputs=[index])
    return PredictionStub(server.channel).Predict(request, timeout=10, metadata=metadata)


def entries(log):
    return [json.loads(line) for line in log.splitlines()]


@pytest.mark.parametrize("transport", ["cygrpc", "aio"])
def test_a_call_has_the_same_ids_in_traces_and_in_the_log(serve, models, collector, transport):
    server = serve(
        *(models, "--transport", transport, "--log-format", "json"),
        *("--traces-endpoint", collector.url, "--traces-ratio", "0"),
    )
    predict(server, 1)
    predict(server, 1, metadata=UNSAMPLED)
    predict(server, 2, metadata=CONTEXT)
    with pytest.raises(grpc.RpcError) as caught:
        predict(server, 99, metadata=CONTEXT)
    assert ("x-request-id", "mine") in caught.value.trailing_metadata()
    status, log = server.stop(), server.log  # sends the spans that are queued for the collector
    assert status == 0
    spans = collector.spans
    assert len(spans) == 8  # of two calls
    assert {span.trace_id for span in spans} == {TRACE}
    succeeded, failed = sorted((s for s in spans if s.name == PREDICT), key=lambda s: s.failed)
    assert succeeded.parent == failed.parent == PARENT
    assert (succeeded.failed, failed.failed) == (False, True)
    assert sorted(span.name for span in spans if span.parent == succeeded.id) == ["batch", "queue"]
    assert {span.resource["service.name"] for span in spans} == {"neurona"}
    assert len({span.resource["service.instance.id"] for span in spans}) == 1
    assert "neurona.process" not in succeeded.resource
    (line,) = [entry for entry in entries(log) if "the run of a request failed" in entry["message"]]
    assert line["level"] == "ERROR"
    assert line["exception"].startswith("Traceback")
    context = {"model": "picker", "version": 1, "request_id": "mine", "trace_id": TRACE}
    assert context.items() <= line.items()
    (ready,) = [entry for entry in entries(log) if ": ready on " in entry["message"]]
    assert (ready["model"], ready["version"]) == ("picker", 1)


def test_without_an_endpoint_nothing_is_sent(serve, models, collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    server = serve(models)
    predict(server, 1, metadata=CONTEXT)
    assert server.stop() == 0
    assert collector.spans == []


def test_an_unreachable_collector_is_logged_once(serve, models):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        endpoint = f"http://127.0.0.1:{port}"
        server = serve(models, "--traces-endpoint", endpoint, "--traces-ratio", "1")
        for _ in range(5):
            predict(server, 1)
        status, log = server.stop(), server.log
    assert status == 0
    assert log.count("trace export failed") == 1
    assert "opentelemetry" not in log


def exemplars(server):
    request = urllib.request.Request(
        f"http://{server.metrics_address}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},
    )
    with urllib.request.urlopen(request) as page:  # noqa: S310
        families = text_string_to_metric_families(page.read().decode())
    return [
        (sample.labels["model"], sample.exemplar.labels["trace_id"], sample.exemplar.value)
        for family in families
        if family.name == "neurona_request_duration_seconds"
        for sample in family.samples
        if sample.exemplar
    ]


def test_exemplars_lead_from_a_duration_to_its_trace(serve, models, collector):
    server = serve(models, "--traces-endpoint", collector.url, "--traces-ratio", "0")
    predict(server, 1)
    assert exemplars(server) == []
    predict(server, 1, metadata=CONTEXT)
    ((model, trace, seconds),) = exemplars(server)
    assert (model, trace) == ("picker", TRACE)
    assert 0 < seconds < 10
    assert TRACE not in server.metrics()  # only the OpenMetrics format has exemplars


def test_traces_and_logs_of_several_processes_name_the_process(
    serve, models, collector, wait_until
):
    server = serve(
        *(models, "--processes", "2", "--log-format", "json"),
        *("--traces-endpoint", collector.url, "--traces-ratio", "1"),
    )

    wait_until(lambda: 'neurona_processes{state="serving"} 2.0' in server.metrics())

    def predict_on_new_connection(number):
        channel = grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
        with channel:
            index = to_tensor("index", np.array([1], np.int64))
            request = PredictRequest(model="picker", inputs=[index])
            PredictionStub(channel).Predict(request, timeout=20, wait_for_ready=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(predict_on_new_connection, range(8)))
    trace_ids = {trace for _, trace, _ in exemplars(server)}
    status, log = server.stop(), server.log
    assert status == 0
    spans = [span for span in collector.spans if span.name == PREDICT]
    assert len(spans) == 8
    assert trace_ids
    assert trace_ids <= {span.trace_id for span in spans}
    assert {span.resource["neurona.process"] for span in spans} <= {0, 1}
    ready = {entry["process"] for entry in entries(log) if ": ready on " in entry["message"]}
    assert ready == {0, 1}
    assert any("process" not in entry for entry in entries(log))  # the supervisor's own


@pytest.fixture(scope="module")
def debug_server(serve_for_module, models):
    return serve_for_module(models, "--log-format", "json", "--log-level", "debug")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=150)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=TEXTS, name=TEXTS, request_id=PRINTABLE)
def send_requests(debug_server, model, name, request_id):
    request = PredictRequest(model=model, label=name)
    request.inputs.add(name=name)
    metadata = [("x-request-id", request_id)]
    with pytest.raises(grpc.RpcError):
        PredictionStub(debug_server.channel).Predict(request, timeout=10, metadata=metadata)
    on_picker = PredictRequest(model="picker")
    on_picker.inputs.add(name=name)
    with pytest.raises(grpc.RpcError):
        PredictionStub(debug_server.channel).Predict(on_picker, timeout=10, metadata=metadata)


def test_the_log_is_json_whatever_callers_send(debug_server):
    send_requests(debug_server)
    status, log = debug_server.stop(), debug_server.log
    assert status == 0
    failures = [entry for entry in entries(log) if entry["message"].startswith("ended with ")]
    assert len(failures) >= 100
    assert all(entry["request_id"] for entry in failures)


def test_a_failed_start_logs_its_reason_as_json(tmp_path, collector):
    flags = ["--log-format", "json", "--traces-endpoint", collector.url]
    done = run_neurona_serve("--repository", tmp_path, *flags)
    assert done.returncode == 1
    assert "no model in" in entries(done.stderr)[-1]["message"]
