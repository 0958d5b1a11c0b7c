"""Sequences of different lengths by calls and streams: each gets its own answer, among others.

Responses are cut from batches, templates and coalesced requests of a stream included.
"""

import grpc
import numpy as np
import onnxruntime
import pytest
from support.in_process_server import InProcessServer
from support.recurrent_models import FEATURES, RecurrentModel, save_recurrent

from neurona_protos.prediction_pb2 import PredictRequest, PredictStreamRequest, StreamedRequest
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy

KINDS = {
    "both": RecurrentModel(answer="both", read_out="gather"),
    "lengths": RecurrentModel("GRU", lengths=True, answer="steps", direction="bidirectional"),
}


@pytest.fixture(scope="module", params=[True, False], ids=["inline", "threaded"])
def server(tmp_path_factory, transport, request):
    root = tmp_path_factory.mktemp("ragged")
    for name, kind in KINDS.items():
        save_recurrent(root / name / "1" / "model.onnx", kind)
    server = InProcessServer(root, BatchPolicy(max_rows=16, inline=request.param))
    server.files = {
        name: onnxruntime.InferenceSession(root / name / "1" / "model.onnx") for name in KINDS
    }
    yield server
    server.stop()


def predict(name, inputs):
    tensors = [to_tensor(key, array) for key, array in inputs.items()]
    return PredictRequest(model=name, inputs=tensors, raw_outputs=True)


def assert_answer(server, name, inputs, response):
    expected = server.files[name].run(None, inputs)
    assert len(response.outputs) == len(expected)
    for tensor, one in zip(response.outputs, expected, strict=True):
        np.testing.assert_allclose(to_array(tensor), one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*KINDS])
def test_a_stream_of_many_lengths_is_answered_as_one_by_one(server, name):
    random = np.random.default_rng(1)
    sent = {}
    for number in range(120):  # runs of equal messages, which are coalesced, among others
        steps = int(random.choice([5, 5, 5, 6, 7, 9, 30]))
        sent[number] = KINDS[name].make_inputs(int(random.choice([1, 1, 3])), steps, number)
    requests = [StreamedRequest(id=n, request=predict(name, one)) for n, one in sent.items()]
    messages = [
        PredictStreamRequest(requests=requests[start : start + 40]) for start in (0, 40, 80)
    ]
    answers = {}
    for response in server.prediction.PredictStream(iter(messages), timeout=30):
        answers |= {one.id: one.response for one in response.responses}
    assert sorted(answers) == sorted(sent)
    for number, inputs in sent.items():
        assert_answer(server, name, inputs, answers[number])


def test_a_request_larger_than_a_batch_is_cut_and_joined_again(server):
    inputs = KINDS["both"].make_inputs(40, 7)
    assert_answer(server, "both", inputs, server.prediction.Predict(predict("both", inputs)))


def test_lengths_shorter_than_the_array_give_what_the_file_gives(server):
    inputs = KINDS["lengths"].make_inputs(3, 9)
    inputs["lengths"][...] = [2, 9, 5]
    calls = [server.prediction.Predict.future(predict("lengths", inputs)) for _ in range(3)]
    for call in calls:
        assert_answer(server, "lengths", inputs, call.result(timeout=30))


@pytest.mark.parametrize(
    ("name", "inputs", "details"),
    [
        ("both", {"steps": (1, 0, FEATURES)}, "no step (expected 1 step or more along axis 1)"),
        ("lengths", {"steps": (1, 4, FEATURES), "lengths": 0}, "length 0 (expected 1 to 4"),
        ("lengths", {"steps": (1, 4, FEATURES), "lengths": -3}, "length -3 (expected 1 to 4"),
        ("lengths", {"steps": (1, 4, FEATURES), "lengths": 5}, "length 5 (expected 1 to 4"),
    ],
)
def test_a_bad_sequence_is_an_error_and_its_neighbours_are_answered(server, name, inputs, details):
    bad = {"steps": np.zeros(inputs["steps"], np.float32)}
    if "lengths" in inputs:
        bad["lengths"] = np.full(1, inputs["lengths"], np.int32)
    good = [KINDS[name].make_inputs(1, steps, steps) for steps in (3, 4, 5, 6)]
    futures = [server.prediction.Predict.future(predict(name, one)) for one in good[:2]]
    wrong = server.prediction.Predict.future(predict(name, bad))
    futures += [server.prediction.Predict.future(predict(name, one)) for one in good[2:]]
    assert wrong.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details in wrong.details()
    for inputs_sent, call in zip(good, futures, strict=True):
        assert_answer(server, name, inputs_sent, call.result(timeout=30))


def test_lengths_of_another_number_of_rows_are_an_error(server, rejection):
    inputs = {"steps": np.zeros((2, 4, FEATURES), np.float32), "lengths": np.ones(3, np.int32)}
    code, details = rejection(server.prediction.Predict, predict("lengths", inputs))
    assert code == "INVALID_ARGUMENT"
    assert "input 'lengths' is INT32 of shape [3]: its 'batch' is 3" in details
