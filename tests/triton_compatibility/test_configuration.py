"""L0_model_config, L0_server_status and the models of Triton's examples: config.pbtxt, metadata."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models, triton_models
from support.triton_calls import expect_error

pytestmark = pytest.mark.triton("L0_model_config", cause="config.pbtxt")

GOOD = {
    "no_config": None,
    "empty_config": "",
    "only_a_name": 'name: "only_a_name"',
    "backend": 'backend: "onnxruntime"',
    "platform": 'platform: "onnxruntime_onnx"',
    "only_max_batch_size": "max_batch_size: 4",
    "some_inputs": triton_models.tensor_text("input", "INPUT1", "INT32", [16])
    + "max_batch_size: 8",
    "some_outputs": triton_models.tensor_text("output", "OUTPUT1", "INT32", [16])
    + "max_batch_size: 8",
    "variable_dims": triton_models.add_sub_config(size=-1),
    "without_batch": triton_models.add_sub_config(max_batch_size=0).replace("[ 16 ]", "[ -1, 16 ]"),
    "dynamic_batching": triton_models.add_sub_config(
        more="dynamic_batching { preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }"
    ),
    "instances": triton_models.add_sub_config(
        more="instance_group [ { count: 2 kind: KIND_CPU } ]"
    ),
    "passive": triton_models.add_sub_config(
        more="instance_group [ { kind: KIND_CPU }, { passive: true count: 9 } ]"
    ),
    "optimization": triton_models.add_sub_config(
        more="optimization { graph { level: 1 } } "
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }'
    ),
    "response_cache": triton_models.add_sub_config(more="response_cache { enable: true }"),
    "rate_limiter": triton_models.add_sub_config(
        more="instance_group [ { kind: KIND_CPU rate_limiter { priority: 1 } } ]"
    ),
    "metrics_parameters": triton_models.add_sub_config(
        more='parameters { key: "own" value { string_value: "text" } }'
    ),
    "warm_up": triton_models.add_sub_config(
        more='model_warmup [ { name: "zeros" batch_size: 2 '
        'inputs { key: "INPUT0" value { data_type: TYPE_INT32 dims: [ 16 ] zero_data: true } } '
        'inputs { key: "INPUT1" value { data_type: TYPE_INT32 dims: [ 16 ] random_data: true } } '
        "} ]"
    ),
}

BAD = {
    "bad_input_dims": (
        triton_models.add_sub_config().replace("dims: [ 16 ]", "dims: [ 32 ]", 1),
        "'INPUT0'",
    ),
    "bad_input_rank": (
        triton_models.add_sub_config().replace("dims: [ 16 ]", "dims: [ 16, 1 ]", 1),
        "'INPUT0'",
    ),
    "bad_output_dims": (
        triton_models.add_sub_config()[::-1].replace("] 61 [ :smid", "] 8 [ :smid", 1)[::-1],
        "'OUTPUT1'",
    ),
    "bad_input_type": (triton_models.add_sub_config("FP32"), "'INPUT0'"),
    "bad_output_type": (triton_models.add_sub_config("INT32", ("FP32", "INT32")), "'OUTPUT0'"),
    "unknown_input": (triton_models.add_sub_config().replace("INPUT1", "INPUT_FEXT"), "INPUT_FEXT"),
    "unknown_output": (triton_models.add_sub_config().replace("OUTPUT1", "OUTPUT_X"), "OUTPUT_X"),
    "unknown_platform": ('platform: "unknown"', "unknown"),
    "unknown_backend": ('backend: "python"', "python"),
    "unknown_field": ("no_such_field: 1", "no_such_field"),
    "name_mismatch": ('name: "other"', "other"),
    "negative_batch": ("max_batch_size: -1", "max_batch_size"),
    "bad_reshape": (
        triton_models.add_sub_config().replace(
            "dims: [ 16 ]", "dims: [ 16 ] reshape { shape: [ 5 ] }", 1
        ),
        "reshape",
    ),
    "negative_dims": (
        triton_models.add_sub_config().replace("dims: [ 16 ]", "dims: [ -2 ]", 1),
        "dims",
    ),
    "no_specific_versions": ("version_policy { specific {} }", "specific"),
    "missing_file": ('default_model_filename: "other.onnx"', "other.onnx"),
    "warm_up_of_unknown_input": (
        'max_batch_size: 8 model_warmup [ { batch_size: 1 inputs { key: "NONE" value '
        "{ data_type: TYPE_INT32 dims: [ 16 ] zero_data: true } } } ]",
        "NONE",
    ),
}
"""config.pbtxt, and what the reason of the failure must name."""

UNSUPPORTED = {
    "sequence": ("sequence_batching { iterative_sequence: true }", "iterative_sequence"),
    "ensemble": ('platform: "ensemble" ensemble_scheduling {}', "ensemble"),
    "decoupled": ("model_transaction_policy { decoupled: true }", "decoupled"),
    "tensorflow": ('platform: "tensorflow_savedmodel"', "tensorflow_savedmodel"),
    "python": ('backend: "python"', "python"),
    "batch_input": (
        'batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "X" data_type: TYPE_FP32 '
        'source_input: "INPUT0" } ]',
        "batch_input",
    ),
}


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    configs = {
        **GOOD,
        **{name: text for name, (text, _) in {**BAD, **UNSUPPORTED}.items()},
    }
    for name, text in configs.items():
        triton_models.save_add_sub(root / name / "1" / "model.onnx")
        if text is not None:
            triton_models.write_config(root / name, text)
    onnx_models.save(
        root / "scalar" / "1" / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, [])},
        {"y": (TensorProto.FLOAT, [])},
    )
    triton_models.write_config(
        root / "scalar",
        triton_models.tensor_text("input", "x", "FP32", [1])
        + triton_models.tensor_text("output", "y", "FP32", [1])
        + "max_batch_size: 0",
    )
    for version in (1, 2, 3):
        path = root / "three" / str(version) / "model.onnx"
        triton_models.save_add_sub(path, swap=version > 1)
    triton_models.write_config(
        root / "three", triton_models.add_sub_config(more="version_policy { all {} }")
    )
    return serve(root, "--strict", "false").triton


def ask(server, model, shape=(1, 16)):
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    response = server.infer(model, {f"INPUT{i}": ("INT32", values) for i in range(2)})
    assert (response.arrays["OUTPUT0"] == 2 * values).all()


@pytest.mark.parametrize("name", GOOD)
def test_configs_that_load(server, name):
    assert server.is_model_ready(name, "1"), server.index()[name, "1"]
    ask(server, name)
    config = server.config(name)
    assert config.name == name
    assert {i.name for i in config.input} == {"INPUT0", "INPUT1"}
    assert {o.name for o in config.output} == {"OUTPUT0", "OUTPUT1"}
    assert [i.data_type for i in config.input] == [
        type(config.input[0])
        .DESCRIPTOR.fields_by_name["data_type"]
        .enum_type.values_by_name["TYPE_INT32"]
        .number
    ] * 2
    assert config.platform == "onnxruntime_onnx"
    assert config.backend == "onnxruntime"
    assert config.default_model_filename == "model.onnx"


@pytest.mark.parametrize(("name", "words"), [(n, w) for n, (_, w) in BAD.items()], ids=BAD)
def test_configs_that_do_not_load(server, name, words):
    assert not server.is_model_ready(name)
    reasons = [reason for (model, _), (_, reason) in server.index().items() if model == name]
    assert reasons, f"{name} is not in the index"
    assert words in reasons[0]


@pytest.mark.triton("L0_model_config", declared="models that do not load")
@pytest.mark.parametrize(
    ("name", "words"), [(n, w) for n, (_, w) in UNSUPPORTED.items()], ids=UNSUPPORTED
)
def test_models_that_are_not_supported(server, name, words):
    assert not server.is_model_ready(name)
    reasons = [reason for (model, _), (_, reason) in server.index().items() if model == name]
    assert reasons, f"{name} is not in the index"
    assert words in reasons[0]


@pytest.mark.parametrize(
    ("name", "rows", "dims"),
    [
        ("only_max_batch_size", 4, [16]),
        ("some_inputs", 8, [16]),
        ("without_batch", 0, [-1, 16]),
        ("dynamic_batching", 8, [16]),
    ],
)
def test_completed_configs(server, name, rows, dims):
    config = server.config(name)
    assert config.max_batch_size == rows
    assert all([*i.dims] == dims for i in (*config.input, *config.output))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dynamic_batching", "dynamic_batching.preferred_batch_size"),
        ("optimization", "optimization.graph.level"),
        ("response_cache", "response_cache.enable"),
        ("metrics_parameters", "parameters"),
        ("warm_up", "model_warmup"),
        ("instances", "instance_group"),
    ],
)
def test_config_returns_what_the_file_says(server, name, expected):
    value = server.config(name)
    for field in expected.split("."):
        value = getattr(value, field)
    assert value
    if name == "metrics_parameters":
        assert value["own"].string_value == "text"
    if name == "instances":
        assert value[0].count == 2


@pytest.mark.parametrize("shape", [(1,)])
def test_dims_of_a_scalar(server, shape):
    values = np.full(shape, 3, np.float32)
    response = server.infer("scalar", {"x": ("FP32", values)})
    assert response.arrays["y"].tolist() == [3]
    assert [*server.config("scalar").input[0].dims] == [1]


@pytest.mark.triton("L0_server_status")
def test_server_metadata(server):
    metadata = server.server_metadata()
    assert metadata.version
    for extension in (
        "classification",
        "model_repository",
        "schedule_policy",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "logging",
    ):
        assert extension in metadata.extensions


@pytest.mark.triton("L0_server_status", declared="server metadata")
def test_name_and_extensions(server):
    metadata = server.server_metadata()
    assert metadata.name == "neurona"
    assert "sequence" in metadata.extensions
    assert not {"cuda_shared_memory", "trace"} & {*metadata.extensions}


@pytest.mark.triton("L0_server_status")
def test_unknown_models(server):
    for call in (server.metadata, server.config, server.statistics):
        expect_error(
            lambda c=call: c("foo"), "NOT_FOUND", "Request for unknown model: 'foo' is not found"
        )
    assert not server.is_model_ready("foo")


@pytest.mark.triton("L0_server_status", cause="error texts")
def test_unknown_versions(server):
    for call in (server.metadata, server.config, server.statistics):
        expect_error(
            lambda c=call: c("three", "99"),
            "NOT_FOUND",
            "Request for unknown model: 'three' version 99 is not found",
        )


@pytest.mark.triton("L0_server_status")
def test_statistics_of_versions(server):
    metadata = server.metadata("three")
    assert {*metadata.versions} == {"1", "2", "3"}
    assert metadata.platform == "onnxruntime_onnx"
    assert [(i.datatype, [*i.shape]) for i in metadata.inputs] == [("INT32", [-1, 16])] * 2
    assert [(o.datatype, [*o.shape]) for o in metadata.outputs] == [("INT32", [-1, 16])] * 2
    values = np.ones((1, 16), np.int32)
    server.infer("three", {f"INPUT{i}": ("INT32", values) for i in range(2)})
    statistics = {s.version: s for s in server.statistics("three")}
    counts = {version: s.inference_stats.success.count for version, s in statistics.items()}
    assert counts == {"1": 0, "2": 0, "3": 1}
    stats = statistics["3"].inference_stats
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(stats, name).count == 1
    assert stats.success.ns > 0
    assert statistics["3"].last_inference > 0
