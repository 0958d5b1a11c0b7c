import grpc
import onnxruntime
import pytest
from prometheus_client import generate_latest
from support import onnx_models
from support.recurrent_models import RecurrentModel, save_recurrent

from neurona_protos.prediction_pb2 import (
    DataType,
    DescribeModelRequest,
    ListModelsRequest,
    SequenceMethod,
    State,
    Task,
)
from neurona_server.batching.policy import BatchPolicy


def test_list_names_every_model_with_its_versions(server):
    models = {model.model: model for model in server.models.List(ListModelsRequest()).models}
    assert sorted(models) == ["classifier", "fixed", "picker", "regressor", "running_sum"]
    assert models["regressor"].task == Task.TASK_REGRESSION
    first, second = models["classifier"].versions
    assert (first.version, second.version) == (1, 2)
    assert (list(first.labels), list(second.labels)) == ([], ["latest"])
    assert second.state == State.STATE_READY
    assert second.provider.endswith("ExecutionProvider")
    assert set(second.nodes) <= {second.provider, "CPUExecutionProvider"}
    # Before 1.24, ONNX Runtime does not tell.
    assert sum(second.nodes.values()) > 0 or onnxruntime.__version__ < "1.24"


def test_a_version_that_failed_is_listed_with_its_reason(make_server, tmp_path):
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    (tmp_path / "classifier" / "2").mkdir()
    (tmp_path / "classifier" / "2" / "model.onnx").write_text("not a model")
    server = make_server(root=tmp_path)
    (model,) = server.models.List(ListModelsRequest()).models
    assert [version.state for version in model.versions] == [State.STATE_READY, State.STATE_FAILED]
    assert model.versions[1].reason
    assert str(tmp_path) not in model.versions[1].reason
    assert (model.versions[0].share, model.versions[0].shadow) == (100.0, False)


def test_describe_returns_inputs_outputs_and_task(server):
    described = server.models.Describe(DescribeModelRequest(model="classifier", version=1))
    assert described.version.version == 1
    assert described.batched
    (x,) = described.inputs
    assert (x.name, x.dtype, list(x.shape), list(x.axes)) == (
        "x",
        DataType.DATA_TYPE_FLOAT,
        [-1, 4],
        ["batch", ""],
    )
    assert [output.name for output in described.outputs] == ["probabilities"]
    assert list(described.metadata.labels) == list(onnx_models.LABELS)
    assert not server.models.Describe(DescribeModelRequest(model="running_sum")).batched


def test_describe_returns_the_batching_policy_and_run_times(make_server):
    server = make_server(BatchPolicy(max_rows=8, latency_objective=0.5, inline=True))
    batching = server.models.Describe(DescribeModelRequest(model="classifier")).batching
    assert [cost.rows for cost in batching.costs] == [1, 2, 4, 8]
    assert all(0 < cost.seconds < 0.25 for cost in batching.costs)
    assert batching.max_rows == 8
    assert batching.limit_rows in (1, 2, 4, 8)
    assert (batching.latency_objective_seconds, batching.instances) == (0.5, 1)
    assert batching.inline
    fixed = server.models.Describe(DescribeModelRequest(model="fixed")).batching
    assert (fixed.max_rows, fixed.limit_rows) == (1, 1)


def test_describe_of_an_unknown_model_names_those_that_exist(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.models.Describe(DescribeModelRequest(model="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "served: classifier" in caught.value.details()


@pytest.mark.parametrize("method", ["List", "Describe"])
def test_bytes_that_are_no_request_are_rejected(server, method):
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary(f"/neurona.v1.Models/{method}")(b"\xff\xff", timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_method_that_is_not_there_is_unimplemented(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary("/neurona.v1.Models/Delete")(b"", timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_describe_returns_how_sequences_are_served(make_server, tmp_path):
    models = {
        "open": RecurrentModel("LSTM", layers=2),
        "closed": RecurrentModel("GRU", direction="bidirectional"),
        "pooled": RecurrentModel(pooling="ReduceMean"),
    }
    for name, model in models.items():
        save_recurrent(tmp_path / name / "1" / "model.onnx", model)
    onnx_models.save_classifier(tmp_path / "classifier" / "1" / "model.onnx")
    server = make_server(root=tmp_path)
    described = {
        name: server.models.Describe(DescribeModelRequest(model=name))
        for name in (*models, "classifier")
    }
    assert not described["classifier"].HasField("sequences")
    state = models["open"].state_size * 4
    one = described["open"].sequences
    assert (one.state_bytes, one.stateless_reason) == (state, "")
    assert dict(one.time_axes) == {"steps": 1}
    one = described["closed"].sequences
    assert (one.state_bytes, one.method) == (0, SequenceMethod.SEQUENCE_METHOD_RAGGED)
    assert "from their end" in one.stateless_reason
    one = described["pooled"].sequences
    assert one.method == SequenceMethod.SEQUENCE_METHOD_EQUAL_LENGTHS
    assert "its operator ReduceMean may look across steps" in one.reason
    page = generate_latest(server.metrics.registry).decode()
    (line,) = [
        line
        for line in page.splitlines()
        if line.startswith("neurona_model_sequence_info") and 'model="pooled"' in line
    ]
    assert 'method="equal_lengths"' in line
    assert "ReduceMean may look across steps" in line
