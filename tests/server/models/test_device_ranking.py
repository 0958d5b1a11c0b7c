"""The CPU provider stands in for a device that ranks the classes of a model's answer."""

import logging

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from support import cuda_stand_ins, onnx_models
from support.in_process_server import InProcessServer
from support.triton_requests import request

from neurona_protos.prediction_pb2 import (
    InputDescription,
    ModelMetadata,
    PredictRequest,
    PredictStreamRequest,
    StreamedRequest,
    Task,
)
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.models import device_ranking
from neurona_server.models.onnx.class_ranker import MAX_VAIN_RUNS, ClassRanker
from neurona_server.models.onnx.session import Session

CLASSES = 2000
LABELS = [f"class {number}" for number in range(CLASSES)]


def save_model(path, element_type=TensorProto.FLOAT, *, finite=False):
    """Save probabilities = 2 * values, and total = the sum of each row."""
    return onnx_models.save(
        path,
        [
            helper.make_node("Add", ["values", "values"], ["probabilities"]),
            helper.make_node("ReduceSum", ["values", "axes"], ["total"], keepdims=1),
        ],
        {"values": (element_type, ["batch", CLASSES])},
        {
            "probabilities": (element_type, ["batch", CLASSES]),
            "total": (element_type, ["batch", 1]),
        },
        {"axes": np.array([1])},
        ModelMetadata(
            task=Task.TASK_CLASSIFICATION,
            answer="probabilities",
            labels=LABELS,
            inputs=[InputDescription(name="values", finite=finite)],
        ),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    save_model(root / "plain" / "1" / "model.onnx")
    save_model(root / "half" / "1" / "model.onnx", TensorProto.FLOAT16)
    save_model(root / "finite" / "1" / "model.onnx", finite=True)
    save_model(root / "logits" / "1" / "model.onnx")
    (root / "logits" / "model.toml").write_text("softmax = true\n")
    return root


@pytest.fixture(scope="module")
def server(root):
    """A server whose models have their classes ranked on the CPU provider."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(device_ranking, "DEVICE_KINDS", ("cpu",))
        monkeypatch.setattr(device_ranking, "MIN_VALUES", CLASSES)
        monkeypatch.setattr(device_ranking, "MIN_GAIN", -1e9)  # whichever takes longer
        server = InProcessServer(root, BatchPolicy(max_rows=8, inline=False))
        yield server
        server.stop()


@pytest.fixture
def ranked_counts(monkeypatch):
    """The numbers of classes that were ranked, and whether they could be."""
    calls = []
    rank = ClassRanker.rank

    def spy(self, output, count):
        ranked = rank(self, output, count)
        calls.append((count, ranked is not None))
        return ranked

    monkeypatch.setattr(ClassRanker, "rank", spy)
    return calls


@pytest.fixture
def on_host(server):
    """A function that calls a method while the host ranks the classes of a model."""

    def on_host(model, method, message):
        batcher = server.registry.resolve(model).batcher
        ranking, batcher.ranking = batcher.ranking, None
        try:
            return method(message, timeout=10)
        finally:
            batcher.ranking = ranking

    return on_host


def values_of(kind, dtype=np.float32):
    generator = np.random.default_rng(5)
    order = np.stack([generator.permutation(CLASSES) for _ in range(3)])
    values = (order / 2**11).astype(dtype)
    match kind:
        case "equal":
            values[1, 100:] = 2
        case "NaN":
            values[1, 7] = np.nan
        case "infinite":
            values[1, 7] = -np.inf
    return values


def predict(model, values, **options):
    return PredictRequest(model=model, inputs=[to_tensor("values", values)], **options)


@pytest.mark.parametrize("kind", ["different", "equal", "NaN", "infinite"])
@pytest.mark.parametrize("model", ["plain", "half"])
@pytest.mark.parametrize("top_k", [1, 3])
def test_responses_are_those_of_the_host(server, on_host, ranked_counts, model, kind, top_k):
    values = values_of(kind, np.float16 if model == "half" else np.float32)
    message = predict(model, values, top_k=top_k)
    for rows in (message, predict(model, values[1:2], top_k=top_k)):
        response = server.prediction.Predict(rows, timeout=10)
        assert response.classification.rows
        expected = on_host(model, server.prediction.Predict, rows)
        assert response.SerializeToString() == expected.SerializeToString()
    assert ranked_counts == [(top_k, kind == "different")] * 2


def test_probabilities_of_logits_are_those_of_the_host(server, on_host, ranked_counts):
    message = predict("logits", values_of("different"), top_k=4)
    response = server.prediction.Predict(message, timeout=10).classification
    expected = on_host("logits", server.prediction.Predict, message).classification
    for row, other in zip(response.rows, expected.rows, strict=True):
        assert (row.labels, row.indices) == (other.labels, other.indices)
        np.testing.assert_allclose(row.probabilities, other.probabilities, rtol=1e-5)
    assert ranked_counts == [(4, True)]


@pytest.mark.parametrize("model", ["plain", "half", "logits"])
@pytest.mark.parametrize(
    "outputs", [{"probabilities": 3}, {"total": 0}, {"probabilities": 2, "total": 0}]
)
def test_classes_of_the_open_inference_protocol(server, on_host, ranked_counts, model, outputs):
    dtype, datatype = (np.float16, "FP16") if model == "half" else (np.float32, "FP32")
    message = request(model, values=(datatype, values_of("different", dtype)))
    for name, count in outputs.items():
        output = message.outputs.add(name=name)
        if count:
            output.parameters["classification"].int64_param = count
    response = server.triton.ModelInfer(message, timeout=10)
    assert response == on_host(model, server.triton.ModelInfer, message)
    assert ranked_counts == [(outputs.get("probabilities", 1), True)]


def test_coalesced_requests_are_ranked(server, on_host, ranked_counts):
    values = values_of("different")
    alike = [StreamedRequest(id=n, request=predict("plain", values[n : n + 1])) for n in range(3)]
    message = PredictStreamRequest(requests=alike)

    def best_classes(messages, timeout):
        responses = server.prediction.PredictStream(iter([messages] * 3), timeout=timeout)
        return sorted(
            (one.id, one.response.classification.SerializeToString())
            for response in responses
            for one in response.responses
        )

    assert best_classes(message, 10) == on_host("plain", best_classes, message)
    assert ranked_counts
    assert set(ranked_counts) == {(1, True)}


def test_an_answer_that_must_be_finite_is_checked(server, ranked_counts):
    values = values_of("different")
    assert server.prediction.Predict(predict("finite", values), timeout=10).classification.rows
    values[1, 5] = 3e38
    with pytest.raises(grpc.RpcError) as caught:
        server.prediction.Predict(predict("finite", values), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("row 1: the answer is not finite")
    assert ranked_counts == [(1, True), (1, False)]


def test_values_that_are_wanted_are_not_ranked(server, ranked_counts):
    values = values_of("different")
    response = server.prediction.Predict(predict("plain", values, raw_outputs=True), timeout=10)
    assert [tensor.name for tensor in response.outputs] == ["probabilities", "total"]
    response = server.triton.ModelInfer(request("plain", values=("FP32", values)), timeout=10)
    assert len(response.outputs) == 2
    server.prediction.Predict(predict("plain", values, top_k=500), timeout=10)
    assert not ranked_counts


@pytest.mark.parametrize("raw_outputs", [False, True])
def test_a_batch_is_ranked_if_no_request_wants_its_values(
    root, monkeypatch, ranked_counts, wait_until, raw_outputs
):
    monkeypatch.setattr(device_ranking, "DEVICE_KINDS", ("cpu",))
    monkeypatch.setattr(device_ranking, "MIN_VALUES", CLASSES)
    monkeypatch.setattr(device_ranking, "MIN_GAIN", -1e9)
    server = InProcessServer(root, BatchPolicy(max_rows=8), start_models=False)
    try:
        ranked_counts.clear()
        values = values_of("different")
        messages = [
            predict("plain", values[:1], top_k=2),
            predict("plain", values[1:2], top_k=5),
            predict("plain", values[2:], raw_outputs=raw_outputs),
        ]
        calls = [server.prediction.Predict.future(one, timeout=30) for one in messages]
        wait_until(lambda: server.count("queue_rows", model="plain", version="1") == 3)
        server.registry.resolve("plain").start()
        for row, call in enumerate(calls):
            (classified,) = call.result().classification.rows
            count = (2, 5, 1)[row]
            assert [*classified.indices] == np.argsort(-values[row])[:count].tolist()
        assert ranked_counts == ([] if raw_outputs else [(5, True)])
    finally:
        server.stop()


def test_a_ranking_that_fails_is_given_up(root, monkeypatch, caplog):
    monkeypatch.setattr(device_ranking, "DEVICE_KINDS", ("cpu",))
    monkeypatch.setattr(device_ranking, "MIN_VALUES", CLASSES)
    monkeypatch.setattr(device_ranking, "MIN_GAIN", -1e9)
    server = InProcessServer(root, BatchPolicy(max_rows=8, inline=False))
    tries = []

    def fail(*_):
        tries.append(None)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ClassRanker, "rank", fail)
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                values = values_of("different")
                response = server.prediction.Predict(predict("plain", values), timeout=10)
                best = [row.indices[0] for row in response.classification.rows]
                assert best == values.argmax(axis=1).tolist()
        assert len(tries) == 1
        assert "classes are ranked on the host from now on: out of memory" in caplog.text
    finally:
        server.stop()


def test_values_that_are_never_ranked_are_given_up(root, monkeypatch, ranked_counts):
    monkeypatch.setattr(device_ranking, "DEVICE_KINDS", ("cpu",))
    monkeypatch.setattr(device_ranking, "MIN_VALUES", CLASSES)
    monkeypatch.setattr(device_ranking, "MIN_GAIN", -1e9)
    server = InProcessServer(root, BatchPolicy(max_rows=8, inline=False))
    try:
        ranked_counts.clear()
        kinds = ["equal"] * 15 + ["different"] + ["equal"] * 20
        for kind in kinds:
            values = values_of(kind)
            response = server.prediction.Predict(predict("plain", values), timeout=10)
            best = [row.indices[0] for row in response.classification.rows]
            assert best == values.argmax(axis=1).tolist()
        assert len(ranked_counts) == 15 + 1 + MAX_VAIN_RUNS
    finally:
        server.stop()


def test_the_runs_of_several_devices_are_ranked(tmp_path, monkeypatch, cuda_stub, ranked_counts):
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=2)
    monkeypatch.setattr(device_ranking, "DEVICE_KINDS", ("cuda",))
    monkeypatch.setattr(device_ranking, "MIN_VALUES", CLASSES)
    monkeypatch.setattr(device_ranking, "MIN_GAIN", -1e9)
    save_model(tmp_path / "plain" / "1" / "model.onnx")
    (tmp_path / "plain" / "model.toml").write_text('devices = "all"\n')
    server = InProcessServer(tmp_path, BatchPolicy(max_rows=8))
    try:
        model = server.registry.resolve("plain")
        assert [session.device.label for session in model.sessions] == ["cuda:0", "cuda:1"]
        ranked_counts.clear()
        values = values_of("different")
        message = predict("plain", values, top_k=3)
        calls = [server.prediction.Predict.future(message, timeout=30) for _ in range(20)]
        for call in calls:
            for row, classified in enumerate(call.result().classification.rows):
                assert [*classified.indices] == np.argsort(-values[row])[:3].tolist()
        assert set(ranked_counts) == {(3, True)}
    finally:
        server.stop()


def test_ranking_on_the_device_must_save_time(root, monkeypatch):
    monkeypatch.setattr(device_ranking, "DEVICE_KINDS", ("cpu",))
    monkeypatch.setattr(device_ranking, "MIN_VALUES", CLASSES)
    monkeypatch.setattr(device_ranking, "MIN_GAIN", 1.0)  # all of it
    server = InProcessServer(root, BatchPolicy(max_rows=8))
    try:
        assert server.registry.resolve("plain").batcher.ranking is None
    finally:
        server.stop()


def test_small_batches_and_the_cpu_are_ranked_on_the_host(root, monkeypatch):
    """And nothing is loaded to rank them."""
    monkeypatch.setattr(device_ranking, "MIN_GAIN", -1e9)
    opened = []
    monkeypatch.setattr(Session, "open_ranker", lambda *_, **__: opened.append(None))
    for kinds, min_values in ((("cpu",), 9 * CLASSES), (("cuda",), CLASSES)):
        monkeypatch.setattr(device_ranking, "DEVICE_KINDS", kinds)
        monkeypatch.setattr(device_ranking, "MIN_VALUES", min_values)
        server = InProcessServer(root, BatchPolicy(max_rows=8))
        try:
            assert server.registry.resolve("plain").batcher.ranking is None
            assert not opened
        finally:
            server.stop()


def test_the_smallest_batch_that_it_pays_for_is_found(root, monkeypatch):
    monkeypatch.setattr(device_ranking, "DEVICE_KINDS", ("cpu",))
    monkeypatch.setattr(device_ranking, "MIN_VALUES", 4 * CLASSES)
    monkeypatch.setattr(device_ranking, "MIN_GAIN", -1e9)
    server = InProcessServer(root, BatchPolicy(max_rows=8))
    try:
        model = server.registry.resolve("plain")
        sizes = [size for size in model.batcher.cost_model.batch_sizes if size >= 4]
        assert model.batcher.ranking.min_rows == min(sizes)
        assert model.run_method == f"plain, classes ranked from {min(sizes)} rows"
    finally:
        server.stop()
