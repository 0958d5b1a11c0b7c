"""The spans that a collector receives: parents, links, attributes, and status."""

import itertools

import grpc
import numpy as np
import pytest
from support import in_process_server

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import UnavailableError

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=a,other=b")]
PREDICT = "neurona.v1.Prediction/Predict"
THREADED = BatchPolicy(inline=False)


@pytest.fixture(scope="module", params=["cygrpc", "aio"], autouse=True)
def transport(request):
    """Every test of this file runs on both transports."""
    in_process_server.TRANSPORT = request.param
    yield request.param
    in_process_server.TRANSPORT = "auto"


def predict(*indices):
    index = to_tensor("index", np.array(indices, np.int64))
    return PredictRequest(model="picker", inputs=[index])


def infer(*indices):
    request = ModelInferRequest(model_name="picker")
    request.inputs.add(name="index", datatype="INT64", shape=[len(indices)])
    request.raw_input_contents.append(np.array(indices, np.int64).tobytes())
    return request


def named(spans, name):
    return [span for span in spans if span.name == name]


def children(spans, parent):
    return {span.name: span for span in spans if span.parent == parent.id}


def failing_code(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name


def wait_for_rows(server, rows, wait_until):
    wait_until(lambda: server.count("queue_rows", model="picker", version="1") == rows)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "threaded"])
@pytest.mark.parametrize("protocol", ["prediction", "triton"])
def test_the_span_of_a_call_contains_queue_batch_and_run(make_traced, protocol, inline):
    traced = make_traced(BatchPolicy(inline=inline))
    if protocol == "prediction":
        traced.server.prediction.Predict(predict(1, 2), timeout=10, metadata=CONTEXT)
        service, method = "neurona.v1.Prediction", "Predict"
    else:
        traced.server.triton.ModelInfer(infer(1, 2), timeout=10, metadata=CONTEXT)
        service, method = "inference.GRPCInferenceService", "ModelInfer"
    spans = traced.stop_and_get_spans()
    assert len(spans) == 4
    assert {span.trace_id for span in spans} == {TRACE}
    (call,) = named(spans, f"{service}/{method}")
    assert (call.parent, call.kind) == (PARENT, "SPAN_KIND_SERVER")
    assert call.raw.trace_state == "vendor=a,other=b"
    assert call.attributes == {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": 0,
        "neurona.model": "picker",
        "neurona.version": 1,
        "neurona.rows": 2,
    }
    queue, batch = (children(spans, call)[name] for name in ("queue", "batch"))
    assert batch.attributes == {
        "neurona.model": "picker",
        "neurona.version": 1,
        "neurona.provider": "CPUExecutionProvider",
        "neurona.batch.rows": 2,
        "neurona.batch.requests": 1,
        "neurona.batch.padding": 0,
    }
    assert (batch.links, call.links) == ({call.id}, {batch.id})
    run = children(spans, batch)["run"]
    assert not any(span.failed or span.exceptions for span in spans)
    moments = [call.start, queue.start, queue.end, batch.start, run.start, run.end, batch.end]
    slack = 2_000_000  # two clocks are compared
    assert all(later - earlier > -slack for earlier, later in itertools.pairwise(moments))
    assert traced.count("sent") == 4
    assert traced.count("lost") == 0


def test_a_batch_and_its_requests_link_to_each_other(make_traced, wait_until):
    traced = make_traced(THREADED, start_models=False)
    calls = [traced.server.prediction.Predict.future(predict(n), timeout=20) for n in range(3)]
    wait_for_rows(traced.server, 3, wait_until)
    traced.server.registry.resolve("picker").start()
    assert all(call.result() for call in calls)
    spans = traced.stop_and_get_spans()
    calls, (batch,) = named(spans, PREDICT), named(spans, "batch")
    assert len({call.trace_id for call in calls}) == 3
    assert batch.links == {call.id for call in calls}
    assert all(call.links == {batch.id} for call in calls)
    assert batch.attributes["neurona.batch.rows"] == 3
    assert batch.parent in {call.id for call in calls}
    assert len(named(spans, "queue")) == 3
    assert len(named(spans, "run")) == 1


def test_other_requests_of_a_failed_batch_succeed_in_their_own(make_traced, wait_until):
    traced = make_traced(THREADED, start_models=False)
    futures = [traced.server.prediction.Predict.future(predict(n), timeout=20) for n in (1, 99)]
    wait_for_rows(traced.server, 2, wait_until)
    traced.server.registry.resolve("picker").start()
    assert sorted(future.code().name for future in futures) == ["INTERNAL", "OK"]
    spans = traced.stop_and_get_spans()
    answered, failed = sorted(named(spans, PREDICT), key=lambda call: call.failed)
    assert (answered.attributes["rpc.grpc.status_code"], answered.exceptions) == (0, [])
    assert failed.attributes["rpc.grpc.status_code"] == 13
    assert failed.attributes["error.type"] == "ModelFailedError"
    assert failed.status_message == failed.exceptions[0]["exception.message"]
    together, *halves = sorted(named(spans, "batch"), key=lambda batch: -len(batch.links))
    assert together.failed
    assert together.links == {answered.id, failed.id}
    outcomes = {half.failed: half.links for half in halves}
    assert len(halves) == 2
    assert outcomes == {False: {answered.id}, True: {failed.id}}
    assert sum(run.failed for run in named(spans, "run")) == 2


def test_a_call_cancelled_in_the_queue(make_traced, wait_until):
    traced = make_traced(THREADED, start_models=False)
    call = traced.server.prediction.Predict.future(predict(1), timeout=20, metadata=CONTEXT)
    wait_for_rows(traced.server, 1, wait_until)
    call.cancel()
    wait_for_rows(traced.server, 0, wait_until)
    queue, call = sorted(traced.stop_and_get_spans(), key=lambda span: span.name != "queue")
    assert call.attributes["rpc.grpc.status_code"] == 1
    assert not call.failed  # it is no fault of the server
    assert call.exceptions[0]["exception.type"] == "CancelledError"
    assert (queue.parent, queue.failed) == (call.id, True)


def test_a_call_whose_deadline_passes_in_the_queue(make_traced, wait_until):
    traced = make_traced(THREADED, start_models=False)
    expired = traced.server.prediction.Predict.future(predict(1), timeout=0.5, metadata=CONTEXT)
    wait_for_rows(traced.server, 1, wait_until)
    assert expired.code().name == "DEADLINE_EXCEEDED"
    wait_for_rows(traced.server, 0, wait_until)
    queue, call = sorted(traced.stop_and_get_spans(), key=lambda span: span.name != "queue")
    assert call.attributes["rpc.grpc.status_code"] == 4
    assert call.failed
    assert call.attributes["error.type"] == "DeadlineExceededError"
    assert (queue.parent, queue.failed) == (call.id, True)


def test_a_rejected_call_has_a_single_span(make_traced):
    traced = make_traced()
    unknown = PredictRequest(model="none")
    code = failing_code(
        lambda: traced.server.prediction.Predict(unknown, timeout=9, metadata=CONTEXT)
    )
    assert code == "NOT_FOUND"
    (call,) = traced.stop_and_get_spans()
    assert call.attributes["rpc.grpc.status_code"] == 5
    assert not call.failed  # a fault of the caller, by the semantic conventions
    assert call.exceptions[0]["exception.type"] == "NotFoundError"


def test_a_stream_has_a_span_for_each_request(make_traced):
    traced = make_traced()
    requests = [StreamedRequest(id=n, request=predict(n)) for n in (1, 2, 99)]
    stream = traced.server.prediction.PredictStream(
        iter([PredictStreamRequest(requests=requests)]), timeout=20, metadata=CONTEXT
    )
    assert sum(len(message.responses) for message in stream) == 3
    assert stream.code().name == "OK"
    spans = traced.stop_and_get_spans()
    (call,) = named(spans, "neurona.v1.Prediction/PredictStream")
    assert (call.parent, call.attributes["rpc.grpc.status_code"]) == (PARENT, 0)
    requested = {
        span.attributes["neurona.request.number"]: span for span in named(spans, "request")
    }
    assert requested.keys() == {1, 2, 99}
    assert all(span.parent == call.id for span in requested.values())
    assert [requested[n].attributes["rpc.grpc.status_code"] for n in (1, 2, 99)] == [0, 0, 13]
    assert [requested[n].failed for n in (1, 2, 99)] == [False, False, True]
    linked = {link for batch in named(spans, "batch") for link in batch.links}
    assert linked == {span.id for span in requested.values()}
    assert {span.parent for span in named(spans, "queue")} == linked


def test_a_triton_stream_has_a_span_for_each_request(make_traced):
    traced = make_traced()
    stream = traced.server.triton.ModelStreamInfer(
        iter([infer(1), infer(99)]), timeout=20, metadata=CONTEXT
    )
    assert [bool(response.error_message) for response in stream] == [False, True]
    spans = traced.stop_and_get_spans()
    (call,) = named(spans, "inference.GRPCInferenceService/ModelStreamInfer")
    requested = sorted(
        named(spans, "request"), key=lambda span: span.attributes["neurona.request.number"]
    )
    assert [span.failed for span in requested] == [False, True]
    assert {span.parent for span in requested} == {call.id}


def test_a_stream_that_is_cancelled_ends_its_requests(make_traced, wait_until):
    traced = make_traced(THREADED, start_models=False)
    message = PredictStreamRequest(requests=[StreamedRequest(id=1, request=predict(1))])
    stream = traced.server.prediction.PredictStream(iter([message]), timeout=20, metadata=CONTEXT)
    wait_for_rows(traced.server, 1, wait_until)
    stream.cancel()
    wait_for_rows(traced.server, 0, wait_until)
    spans = traced.stop_and_get_spans()
    (call,), (request,) = (
        named(spans, "neurona.v1.Prediction/PredictStream"),
        named(spans, "request"),
    )
    assert call.attributes["rpc.grpc.status_code"] == 1
    assert request.attributes["rpc.grpc.status_code"] == 1


def test_a_split_request_links_to_several_batches(make_traced):
    traced = make_traced(BatchPolicy(max_rows=2, inline=False))
    traced.server.prediction.Predict(predict(0, 1, 2, 3, 0), timeout=10, metadata=CONTEXT)
    spans = traced.stop_and_get_spans()
    (call,) = named(spans, PREDICT)
    batches = named(spans, "batch")
    assert sum(batch.attributes["neurona.batch.rows"] for batch in batches) == 5
    assert all(batch.links == {call.id} for batch in batches)
    assert call.links == {batch.id for batch in batches}


def test_the_callers_decision_to_sample_wins_over_the_ratio(make_traced):
    for ratio, count in ((0.0, 1), (1.0, 3)):
        traced = make_traced(ratio=ratio)
        predict_ = traced.server.prediction.Predict
        predict_(predict(1), timeout=10, metadata=CONTEXT)
        predict_(predict(1), timeout=10, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-00")])
        predict_(predict(1), timeout=10)
        predict_(predict(1), timeout=10, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01-x")])
        traces = [span.trace_id for span in named(traced.stop_and_get_spans(), PREDICT)]
        assert len(traces) == count
        assert traces.count(TRACE) == 1
        traced.collector.spans.clear()


def test_health_is_not_traced(make_traced):
    traced = make_traced()
    traced.server.health.set({"": True})
    traced.server.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
    assert traced.stop_and_get_spans() == []


def test_requests_that_wait_when_the_model_stops_end_unavailable(make_traced):
    traced = make_traced(THREADED, start_models=False)
    call = traced.server.prediction.Predict.future(predict(1), timeout=20, metadata=CONTEXT)
    while not traced.server.count("queue_rows", model="picker", version="1"):
        assert not call.done()
    traced.server.registry.resolve("picker").batcher.cancel_all(UnavailableError("stop"))
    assert call.code().name == "UNAVAILABLE"
    spans = traced.stop_and_get_spans()
    assert {span.name for span in spans} == {PREDICT, "queue"}
    assert named(spans, PREDICT)[0].failed


def test_a_batch_counts_each_request_of_a_coalesced_one(make_traced, wait_until):
    traced = make_traced(THREADED, ratio=0.0, start_models=False)
    many = PredictStreamRequest(
        requests=[StreamedRequest(id=n, request=predict(n % 4)) for n in range(9)]
    )
    stream = traced.server.prediction.PredictStream(iter([many]), timeout=20)
    wait_for_rows(traced.server, 9, wait_until)
    call = traced.server.prediction.Predict.future(predict(1), timeout=20, metadata=CONTEXT)
    wait_for_rows(traced.server, 10, wait_until)
    traced.server.registry.resolve("picker").start()
    assert call.result()
    assert sum(len(response.responses) for response in stream) == 9
    (batch,) = named(traced.stop_and_get_spans(), "batch")
    assert batch.attributes["neurona.batch.requests"] == 10
