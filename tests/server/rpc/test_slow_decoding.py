"""What takes long to decode or to write is left to workers; all others are served meanwhile."""

import threading
import time

import grpc
import numpy as np
import pytest

from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.rpc import worker_pool
from neurona_server.rpc.limits import MAX_STRINGS, SLOW_STRINGS
from neurona_server.rpc.transports.listener import ListenerOptions
from neurona_server.rpc.v1.responses import PredictResponseWriter
from neurona_server.rpc.worker_pool import THREADS

LETTERS = np.full((1, SLOW_STRINGS), "a", object)
MODEL = "echo_BYTES"


def predict_request(strings=LETTERS):
    return PredictRequest(model=MODEL, inputs=[to_tensor("x", strings)])


def infer_request(strings=LETTERS):
    request = ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=strings.shape)
    tensor.contents.bytes_contents.extend([each.encode() for each in strings.ravel()])
    return request


@pytest.fixture
def server(make_server, echoes):
    return make_server(root=echoes)


@pytest.fixture
def busy_workers(server):
    """Keeps all workers busy until the test sets the event that it returns."""
    done, started = threading.Event(), threading.Barrier(THREADS + 1)

    def work():
        started.wait(20)
        done.wait(60)

    for _ in range(THREADS):
        server.workers.submit(work)
    started.wait(20)
    yield done
    done.set()


def send_predict(server, **options):
    return server.prediction.Predict.future(predict_request(), **options)


def send_infer(server, **options):
    return server.triton.ModelInfer.future(infer_request(), **options)


@pytest.fixture(params=[send_predict, send_infer])
def send(request):
    return request.param


def outcomes(server, outcome):
    return server.count("requests_total", model=MODEL, version="1", outcome=outcome)


def test_others_are_answered_meanwhile(server, busy_workers, send):
    slow = send(server, timeout=20)
    small = predict_request(np.array([["b"]], object))
    for _ in range(20):
        response = server.prediction.Predict(small, timeout=20)
        assert to_array(response.outputs[0]).tolist() == [["b"]]
    assert not slow.done()
    busy_workers.set()
    response = slow.result()
    if send is send_predict:
        assert to_array(response.outputs[0]).tolist() == LETTERS.tolist()
    else:
        assert response.raw_output_contents[0] == b"\x01\0\0\0a" * SLOW_STRINGS


def test_a_caller_that_leaves_is_not_decoded_for(server, busy_workers, send, wait_until):
    call = send(server, timeout=60)
    wait_until(lambda: server.workers._bytes > 0)
    call.cancel()
    time.sleep(0.1)  # the cancellation is on its way
    busy_workers.set()
    wait_until(lambda: outcomes(server, "cancelled") == 1)
    assert outcomes(server, "ok") == 0


def test_a_deadline_that_passes_meanwhile_ends_the_call(server, busy_workers, send, wait_until):
    call = send(server, timeout=0.5)
    wait_until(lambda: server.workers._bytes > 0)
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    busy_workers.set()
    wait_until(lambda: outcomes(server, "expired") + outcomes(server, "cancelled") == 1)
    assert outcomes(server, "ok") == 0


def test_a_server_stops_in_time_while_its_workers_are_busy(server, busy_workers, send):
    call = send(server, timeout=60)
    started = time.monotonic()
    server.listener.stop(1.0)
    assert time.monotonic() - started < 10
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_a_stream_keeps_the_order_of_its_responses(server):
    requests = []
    for number in range(40):
        request = infer_request(LETTERS if number % 4 == 0 else LETTERS[:, :1])
        request.id = str(number)
        requests.append(request)
    responses = list(server.triton.ModelStreamInfer(iter(requests), timeout=30))
    assert [one.infer_response.id for one in responses] == [str(n) for n in range(40)]
    assert not any(one.error_message for one in responses)


def test_requests_of_a_stream_are_answered_meanwhile(server, busy_workers):
    requests = [
        StreamedRequest(id=1, request=predict_request()),
        StreamedRequest(id=2, request=predict_request(LETTERS[:, :1])),
    ]
    release = threading.Event()

    def messages():
        yield PredictStreamRequest(requests=requests)
        release.wait(30)

    stream = server.prediction.PredictStream(messages(), timeout=30)
    assert [one.id for one in next(stream).responses] == [2]
    busy_workers.set()
    assert [one.id for one in next(stream).responses] == [1]
    release.set()
    assert list(stream) == []


def test_messages_that_wait_are_limited_by_their_bytes(
    server, busy_workers, send, monkeypatch, wait_until
):
    monkeypatch.setattr(worker_pool, "MAX_WAITING_BYTES", 100)
    accepted = send(server, timeout=20)
    wait_until(lambda: server.workers._bytes > 0)
    rejected = send(server, timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        rejected.result()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())["retry-after-ms"] == "100"
    busy_workers.set()
    assert accepted.result()


def test_an_error_of_the_decoding_ends_its_call_only(server, send):
    invalid = predict_request()
    invalid.inputs[0].data += b"x"
    with pytest.raises(grpc.RpcError, match="has 1 bytes after its 1024 strings"):
        server.prediction.Predict(invalid, timeout=20)
    assert send(server, timeout=20).result()
    assert outcomes(server, "invalid") == 1


@pytest.mark.parametrize("send", [predict_request, infer_request])
def test_strings_are_limited(make_server, echoes, send):
    server = make_server(root=echoes, options=ListenerOptions(max_message_bytes=4 << 20))
    method = server.prediction.Predict if send is predict_request else server.triton.ModelInfer
    with pytest.raises(grpc.RpcError) as caught:
        method(send(np.full((1, MAX_STRINGS + 1), "", object)), timeout=20)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "has 262145 strings (expected at most 262144)" in caught.value.details()


def test_a_large_response_of_an_inline_run_is_written_by_a_worker(make_server, monkeypatch):
    server = make_server(BatchPolicy(inline=True, max_queue_rows=1 << 14, max_rows=1 << 14))
    rows = 1 << 12
    for _ in range(3):  # until its cost is known, so that it runs inline
        server.prediction.Predict(classify(rows), timeout=20)
    threads = []
    write = PredictResponseWriter.__call__

    def recorded(self, outputs):
        threads.append(threading.current_thread().name)
        return write(self, outputs)

    monkeypatch.setattr(PredictResponseWriter, "__call__", recorded)
    for _ in range(5):
        response = server.prediction.Predict(classify(rows), timeout=20)
        assert len(response.classification.rows) == rows
    assert "transport" not in threads
    threads.clear()
    for _ in range(5):
        server.prediction.Predict(classify(1), timeout=20)
    assert "transport" in threads  # it is for small ones


def classify(rows):
    x = np.ones((rows, 4), np.float32)
    return PredictRequest(model="classifier", version=1, top_k=3, inputs=[to_tensor("x", x)])
