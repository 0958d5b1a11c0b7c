"""Axes of length 0, as of a decoder's cache at its first step: only the batch axis needs a row."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models
from support.in_process_server import InProcessServer

from neurona_client import Client, InvalidInputError
from neurona_protos.prediction_pb2 import (
    ModelMetadata,
    PredictRequest,
    PredictStreamRequest,
    StreamedRequest,
    Task,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy

FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="module", params=[True, False], ids=["inline", "threaded"])
def server(tmp_path_factory, transport, request):
    root = tmp_path_factory.mktemp("zero")
    onnx_models.save(
        root / "decoder" / "1" / "model.onnx",
        [helper.make_node("Concat", ["past", "new"], ["present"], axis=1)],
        {"past": (FLOAT, ["batch", "past", 8]), "new": (FLOAT, ["batch", "seq", 8])},
        {"present": (FLOAT, ["batch", "total", 8])},
    )
    onnx_models.save_running_sum(root / "running_sum" / "1" / "model.onnx")
    onnx_models.save(
        root / "classes" / "1" / "model.onnx",
        [helper.make_node("Identity", ["x"], ["probabilities"])],
        {"x": (FLOAT, ["batch", "class"])},
        {"probabilities": (FLOAT, ["batch", "class"])},
        metadata=ModelMetadata(task=Task.TASK_CLASSIFICATION, answer="probabilities"),
    )
    onnx_models.save_echo(root / "strings" / "1" / "model.onnx", "BYTES")
    server = InProcessServer(root, BatchPolicy(inline=request.param))
    yield server
    server.stop()


def decode(past, new, rows=2):
    arrays = {"past": np.zeros((rows, past, 8), "f4"), "new": np.ones((rows, new, 8), "f4")}
    tensors = [to_tensor(name, array) for name, array in arrays.items()]
    return PredictRequest(model="decoder", inputs=tensors)


@pytest.mark.parametrize(("past", "new"), [(0, 3), (3, 0), (0, 0), (2, 1)])
def test_any_axis_but_the_batch_may_be_empty(server, past, new):
    for call in [server.prediction.Predict.future(decode(past, new), timeout=10) for _ in range(6)]:
        (present,) = call.result().outputs
        expected = np.repeat([0, 1], [past, new]).reshape(1, -1, 1) * np.ones((2, 1, 8), "f4")
        np.testing.assert_array_equal(to_array(present), expected.astype("f4"), strict=True)


def test_requests_of_a_stream_and_of_different_lengths(server):
    requests = [
        StreamedRequest(id=10 * rows + count, request=decode(past, 1, rows))
        for rows in (1, 2)
        for count, past in enumerate((0, 2, 0, 1))
    ]
    messages = [
        PredictStreamRequest(requests=requests[:5]),
        PredictStreamRequest(requests=requests[5:]),
    ]
    shapes = {
        one.id: (*one.response.outputs[0].shape,)
        for message in server.prediction.PredictStream(iter(messages), timeout=10)
        for one in message.responses
    }
    assert [shapes[request.id] for request in requests] == [
        (rows, past + 1, 8) for rows in (1, 2) for past in (0, 2, 0, 1)
    ]


def test_axis_0_of_a_model_without_a_batch_may_be_empty(server):
    request = PredictRequest(
        model="running_sum", inputs=[to_tensor("x", np.zeros((0, 2), np.float32))]
    )
    (sums,) = server.prediction.Predict(request, timeout=10).outputs
    assert (*sums.shape,) == (0, 2)


def test_strings(server):
    request = PredictRequest(
        model="strings", inputs=[to_tensor("x", np.empty((3, 0), dtype=object))]
    )
    (echo,) = server.prediction.Predict(request, timeout=10).outputs
    assert to_array(echo).shape == (3, 0)


def test_classes_of_nothing(server, rejection):
    for top_k in (1, 2):
        request = PredictRequest(
            model="classes", inputs=[to_tensor("x", np.zeros((2, 0), "f4"))], top_k=top_k
        )
        code, details = rejection(server.prediction.Classify, request)
        assert (code, details) == (
            "INVALID_ARGUMENT",
            "the answer to these inputs has shape [2, 0] (expected 1 class or more)",
        )


def test_client(server):
    with Client(f"127.0.0.1:{server.port}") as client:
        past, new = np.zeros((1, 0, 8), np.float32), np.ones((1, 3, 8), np.float32)
        for _ in range(2):
            prediction = client.predict("decoder", {"past": past, "new": new})
            assert prediction.outputs["present"].shape == (1, 3, 8)
        with pytest.raises(InvalidInputError, match=r"'past' .*\[0, 0, 8\]: it has no row"):
            client.predict("decoder", {"past": past[:0], "new": new[:0]})


@pytest.mark.parametrize(("name", "rows"), [("past", 0), ("new", 0)])
def test_missing_row_is_named(server, rejection, name, rows):
    request = decode(0, 1)
    (tensor,) = [one for one in request.inputs if one.name == name]
    tensor.shape[0] = rows
    tensor.data = b""
    code, details = rejection(server.prediction.Predict, request)
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(f"input {name!r} is FLOAT of shape [0, ")
    assert details.endswith("it has no row (expected 1 row or more along axis 0)")
