"""Classes are ranked on the GPU as the host ranks them."""

import logging
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import DataType, PredictRequest
from neurona_protos.tensors import to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.ranking import rank_rows
from neurona_server.models.onnx.class_ranker import ClassRanker
from neurona_server.models.onnx.graph_writer import FLOAT, write_model, write_node
from neurona_server.models.onnx.runtime import CPU, CUDA
from neurona_server.rpc.v1.responses import softmax

DTYPES = {DataType.DATA_TYPE_FLOAT: np.float32, DataType.DATA_TYPE_FLOAT16: np.float16}
CLASSES = 100_000


def ranker(device: str, dtype: DataType, *, logits: bool = True) -> ClassRanker:
    provider = CPU if device == "cpu" else (CUDA, {"device_id": "0"})
    return ClassRanker(0, dtype, provider, device, 0, logits=logits)


def on_device(device: str, values: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [100, 1000, 5000, 300_000])
def test_the_best_classes_are_those_of_the_host(device: str, dtype: DataType, classes: int) -> None:
    one = ranker(device, dtype)
    for rows in (1, 8, 33):
        values = np.random.default_rng(rows).standard_normal((rows, classes))
        array = values.astype(DTYPES[dtype])
        for count in (1, 5, 50, 100):
            ranked = one.rank(on_device(device, array), count)
            if ranked is None:
                assert any(len(np.unique(row)) < classes for row in array)  # some are equal
                continue
            expected = rank_rows(-array, count)
            where = f"{rows} rows, {count} classes"
            assert (ranked.indices == expected).all(), where
            assert (ranked.values == np.take_along_axis(array, expected, axis=1)).all(), where
            probabilities = np.take_along_axis(softmax(array), expected, axis=1)
            np.testing.assert_allclose(ranked.softmax(), probabilities, rtol=1e-3, err_msg=where)


@pytest.mark.parametrize("classes", [100, 5000, 300_000])
def test_equal_values_are_in_the_order_of_their_classes(device: str, classes: int) -> None:
    values = np.random.default_rng(1).permutation(classes).astype(np.float32)[np.newaxis]
    values[0, [90, 7, 33]] = classes
    one = ranker(device, DataType.DATA_TYPE_FLOAT)
    ranked = one.rank(on_device(device, values), 4)
    assert ranked is not None
    assert ranked.indices[0, :3].tolist() == [7, 33, 90]
    assert one.rank(on_device(device, values), 2) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_ranked(device: str, value: float) -> None:
    values = np.random.default_rng(1).standard_normal((4, CLASSES)).astype(np.float32)
    values[2, 77] = value
    for logits in (True, False):
        one = ranker(device, DataType.DATA_TYPE_FLOAT, logits=logits)
        assert one.rank(on_device(device, values), 5) is None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    """A server with a model of many classes: probabilities = x @ weights."""
    root = tmp_path_factory.mktemp("repository")
    (root / "many" / "1").mkdir(parents=True)
    weights = np.random.default_rng(2).standard_normal((32, CLASSES)).astype(np.float32)
    content = write_model(
        [write_node("MatMul", ["x", "weights"], ["probabilities"])],
        {"x": (FLOAT, ("batch", 32))},
        {"probabilities": (FLOAT, ("batch", CLASSES))},
        {"weights": weights},
    )
    (root / "many" / "1" / "model.onnx").write_bytes(content)
    (root / "many" / "model.toml").write_text('task = "classification"\n')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(logging.getLogger("neurona_server"), "level", logging.INFO)
        server = InProcessServer(root, BatchPolicy(inline=False))
        yield server
        server.stop()


def test_a_model_of_many_classes_is_ranked_on_the_gpu(server: InProcessServer, cuda: None) -> None:
    """A copy of 100,000 values of each row takes longer than their ranking."""
    batcher = server.registry.resolve("many").batcher
    assert batcher.ranking is not None, "ranking on the GPU was not measured to pay"
    print(f"from {batcher.ranking.min_rows} rows on")


@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_responses_are_those_of_the_host(server: InProcessServer, top_k: int) -> None:
    batcher = server.registry.resolve("many").batcher
    x = np.random.default_rng(3).standard_normal((batcher.cost_model.batch_sizes[-1], 32))
    tensor = to_tensor("x", x.astype(np.float32))
    message = PredictRequest(model="many", inputs=[tensor], top_k=top_k)
    response = server.prediction.Predict(message, timeout=60).classification
    ranking, batcher.ranking = batcher.ranking, None
    try:
        expected = server.prediction.Predict(message, timeout=60).classification
    finally:
        batcher.ranking = ranking
    for row, other in zip(response.rows, expected.rows, strict=True):
        np.testing.assert_allclose(row.probabilities, other.probabilities, rtol=1e-3)
        assert len({*row.indices} & {*other.indices}) >= 0.9 * top_k
