"""Triton model repositories are served unchanged."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import DataType, DescribeModelRequest, PredictRequest, Task
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy, QueuePolicies, QueuePolicy
from neurona_server.errors import LoadError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource, read_settings
from neurona_server.models.repository.settings import (
    DeclaredTensor,
    ModelSettings,
    VersionPolicy,
    WarmUpInput,
    WarmUpSample,
)
from neurona_server.telemetry.metrics import Metrics

FLOAT = DataType.DATA_TYPE_FLOAT
UNDEFINED = DataType.DATA_TYPE_UNDEFINED
EVERY_FIELD = """
name: "m"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
version_policy: { specific: { versions: [ 3, 1 ] } }
default_model_filename: "graph.onnx"
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 500
  default_queue_policy { max_queue_size: 100 timeout_action: DELAY }
}
model_warmup [ {
  name: "zeros" batch_size: 4 count: 2
  inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 3 ] zero_data: true } }
} ]
parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
parameters { key: "inter_op_thread_count" value: { string_value: "2" } }
optimization { cuda { graphs: true } graph { level: 1 } }
metric_tags { key: "a" value: "b" }
"""
ACCELERATORS = "optimization.execution_accelerators"
TENSORRT = """
parameters { key: "cudnn_conv_algo_search" value: { string_value: "0" } }
optimization { execution_accelerators {
  gpu_execution_accelerator {
    name: "tensorrt"
    parameters { key: "precision_mode" value: "FP16" }
    parameters { key: "max_workspace_size_bytes" value: "1073741824" }
    parameters { key: "trt_engine_cache_path" value: "/engines" }
  }
  gpu_execution_accelerator { name: "xla" }
} }
"""


def save_triple(path):
    """Save y = 3 * x for three numbers per row."""
    return onnx_models.save(
        path,
        [helper.make_node("Mul", ["x", "three"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 3])},
        {"y": (TensorProto.FLOAT, ["n", 3])},
        {"three": np.float32([3])},
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.txt").write_text("ant\nbee\ncat\n")
    return tmp_path / "m"


@pytest.fixture
def read(folder):
    def read(text):
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
        return read_settings(folder)

    return read


@pytest.fixture
def load(folder, read):
    def load(text, save=save_triple):
        settings = read(text)
        path = save(folder / "1" / (settings.model_file or "model.onnx"))
        return Model(
            ModelSource("m", 1, path, settings), ModelOptions(), Metrics(CollectorRegistry())
        )

    return load


def without_config(settings):
    return replace(settings, triton_config=b"")


def test_every_field(read):
    assert without_config(read(EVERY_FIELD)) == ModelSettings(
        batched=True,
        versions=VersionPolicy(listed=(1, 3)),
        max_batch_rows=8,
        max_delay_ms=0.5,
        preferred_batch_rows=(4, 8),
        queue_policies=QueuePolicies(QueuePolicy(delays=True, max_requests=100)),
        instances=2,
        threads=2,
        providers=("cpu",),
        has_batch_axis=True,
        model_file="graph.onnx",
        declared=(
            DeclaredTensor("input", "x", FLOAT, (-1, 3)),
            DeclaredTensor("output", "y", FLOAT, (-1, 3)),
        ),
        output_labels={"y": ("ant", "bee", "cat")},
        warm_up=(WarmUpSample("zeros", 2, {"x": WarmUpInput(FLOAT, (4, 3), rows=4)}),),
        ignored=(
            "metric_tags",
            "optimization.graph",
            "optimization.cuda",
            "parameters.inter_op_thread_count",
        ),
    )


def test_triton_repository_is_served_unchanged(tmp_path, folder, caplog):
    save_triple(folder / "1" / "graph.onnx")
    save_triple(folder / "3" / "graph.onnx")
    (folder / "config.pbtxt").write_text(EVERY_FIELD)
    bare = tmp_path / "bare"
    onnx_models.save_running_sum(bare / "1" / "model.onnx")
    (bare / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_size: 0\n')
    with caplog.at_level(logging.INFO):
        server = InProcessServer(tmp_path, BatchPolicy())
    try:
        assert "m/3: ignored fields of config.pbtxt: metric_tags, opt" in caplog.text
        description = server.models.Describe(DescribeModelRequest(model="m"), timeout=10)
        assert description.metadata.task == Task.TASK_CLASSIFICATION
        assert description.batched
        assert (description.batching.max_rows, description.batching.instances) == (8, 2)
        x = np.float32([[1, 3, 2]] * 20)  # more than max_batch_size: split
        request = PredictRequest(model="m", inputs=[to_tensor("x", x)], raw_outputs=True)
        response = server.prediction.Predict(request, timeout=10)
        assert response.version == 3
        np.testing.assert_array_equal(to_array(response.outputs[0]), 3 * x)
        (row, *_), count = response.classification.rows, len(response.classification.rows)
        assert (list(row.labels), list(row.probabilities), count) == (["bee"], [9], 20)
        assert not server.models.Describe(DescribeModelRequest(model="bare"), timeout=10).batched
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ('backend: "onnxruntime"', {}),
        ("max_batch_size: 0", {"batched": False}),
        # Whether its requests share runs is determined by running it.
        ("max_batch_size: 4", {"max_batch_rows": 4, "has_batch_axis": True}),
        (
            "max_batch_size: 4 dynamic_batching {}",
            {"max_batch_rows": 4, "batched": True, "max_delay_ms": 0.0, "has_batch_axis": True},
        ),
        (
            "dynamic_batching { preserve_ordering: true max_queue_delay_microseconds: 9 }",
            {
                "preserve_order": True,
                "ignored": ("dynamic_batching.max_queue_delay_microseconds",),
            },
        ),
        (
            "dynamic_batching { priority_levels: 9 default_priority_level: 3 "
            "default_queue_policy { default_timeout_microseconds: 2000000 timeout_action: DELAY } "
            "priority_queue_policy { key: 1 value { max_queue_size: 7 } } }",
            {
                "queue_policies": QueuePolicies(
                    QueuePolicy(2.0, delays=True), {1: QueuePolicy(max_requests=7)}, 9, 3
                ),
            },
        ),
        ("version_policy { all {} }", {"versions": VersionPolicy(all_versions=True)}),
        ("version_policy { latest { num_versions: 2 } }", {"versions": VersionPolicy(2)}),
        ("version_policy { latest {} }", {"versions": VersionPolicy(1)}),
        ("version_policy {}", {}),
        ("instance_group [ {} ]", {"instances": 1}),
        (
            "instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]",
            {"instances": 1, "providers": ("cuda", "cpu"), "devices": "0"},
        ),
        (
            "instance_group [ { count: 3 gpus: [ 2, 1 ] } ]",
            {"instances": 3, "providers": ("cuda", "cpu"), "devices": "1,2"},
        ),
        (
            "instance_group [ { gpus: 0 }, { count: 2 gpus: [ 1, 2 ] }, { kind: KIND_GPU } ]",
            {
                "instances": 3,
                "providers": ("cuda", "cpu"),
                "devices": "0,1,2",
                "instances_by_gpu": {0: 2, 1: 3, 2: 3},
            },
        ),
        (
            "instance_group [ { kind: KIND_CPU gpus: 1 } ]",
            {"instances": 1, "providers": ("cpu",), "ignored": ("instance_group[0].gpus",)},
        ),
        (
            "instance_group [ { kind: KIND_CPU count: 4 }, { kind: KIND_GPU count: 2 } ]",
            {"instances": 2, "providers": ("cuda", "cpu"), "ignored": ("instance_group[0]",)},
        ),
        (
            "instance_group [ { kind: KIND_CPU }, { count: 5 } ]",
            {"instances": 5, "ignored": ("instance_group[0]",)},
        ),
        ("instance_group [ { passive: true count: 9 } ]", {}),
        (
            TENSORRT,
            {
                "providers": ("tensorrt", "cuda", "cpu"),
                "provider_options": {
                    "cuda": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
                    "tensorrt": {"trt_max_workspace_size": "1073741824", "trt_fp16_enable": "True"},
                },
                "ignored": (
                    f"{ACCELERATORS}.gpu_execution_accelerator[0].parameters.trt_engine_cache_path",
                    f"{ACCELERATORS}.gpu_execution_accelerator[1]",
                ),
            },
        ),
        (
            "instance_group [ { kind: KIND_CPU } ]"
            'optimization { execution_accelerators { gpu_execution_accelerator { name: "cuda" }'
            'cpu_execution_accelerator { name: "openvino" } } }',
            {
                "instances": 1,
                "providers": ("openvino", "cpu"),
                "provider_options": {"cuda": {}, "openvino": {}},
                "ignored": (f"{ACCELERATORS}.gpu_execution_accelerator",),
            },
        ),
        (
            "instance_group [ { rate_limiter { priority: 2 } } ]",
            {"instances": 1, "ignored": ("instance_group[0].rate_limiter",)},
        ),
        ('parameters { key: "intra_op_thread_count" value: { string_value: "0" } }', {}),
        ("response_cache { enable: true }", {"ignored": ("response_cache.enable",)}),
        ("response_cache { enable: false }", {}),
        (
            'input [ { name: "x" format: FORMAT_NCHW optional: true allow_ragged_batch: true } ]',
            {
                "batched": False,
                "declared": (DeclaredTensor("input", "x", DataType.DATA_TYPE_UNDEFINED, None),),
                "ignored": ("input[0].allow_ragged_batch", "input[0].optional"),
            },
        ),
        (
            'output [ { name: "y" data_type: TYPE_STRING dims: [ -1, 2 ] } ]',
            {
                "batched": False,
                "declared": (DeclaredTensor("output", "y", DataType.DATA_TYPE_STRING, (-1, 2)),),
            },
        ),
        (
            "max_batch_size: 2 model_warmup [ { batch_size: 0 } ]",
            {"max_batch_rows": 2, "has_batch_axis": True},
        ),
        (
            'max_batch_size: 2 input [ { name: "x" dims: [ 2, -1 ] reshape { shape: [ 2, 1, -1 ] } '
            '} ] output [ { name: "y" dims: [ 1 ] reshape { shape: [ ] } } ]',
            {
                "max_batch_rows": 2,
                "has_batch_axis": True,
                "declared": (
                    DeclaredTensor("input", "x", UNDEFINED, (-1, 2, -1), (-1, 2, 1, -1)),
                    DeclaredTensor("output", "y", UNDEFINED, (-1, 1), (-1,)),
                ),
            },
        ),
    ],
)
def test_meaning_of_fields(read, text, settings):
    assert without_config(read(text)) == ModelSettings(**settings)


WARM_UP = 'model_warmup [ {{ name: "w" batch_size: 1 inputs {{ key: "x" value {{ {} }} }} }} ]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch: 8",
            "line 1: ",
        ),
        (
            'name: "m"\nmax_batchsize: 8',
            "no field named \"max_batchsize\"; did you mean 'max_batch_size'?",
        ),
        ("optimization { cuda { graph: true } }", "did you mean 'graphs'?"),
        (
            TENSORRT.replace("FP16", "FP7"),
            "gpu_execution_accelerator[0].parameters.precision_mode is 'FP7' (expected FP32 or",
        ),
        (
            TENSORRT.replace("max_workspace_size_bytes", "trt_max_workspace"),
            "parameters.tensorrt.trt_max_workspace is an unknown key; did you mean 'trt_max_w",
        ),
        (
            'parameters { key: "gpu_mem_limit" value: { string_value: "-1" } }',
            "parameters.cuda.gpu_mem_limit is '-1' (expected an integer of at least 0)",
        ),
        ('name: "m"\n\ninput [ { name: "x" \n', 'line 3: Expected "}"'),
        ("max_batch_size: many", "line 1: 'max_batch_size: many': Couldn't parse integer: many"),
        (
            "instance_group { kind: -9223372036854775808 }",
            "it cannot be parsed: 'Value out of range: -9223372036854775808'",
        ),
        ("input [ { data_type: FP32 } ]", "has no value named FP32"),
        ('name: "n"', "name is 'n' (expected 'm', the name of its folder"),
        (
            'platform: "tensorrt_plan"',
            "platform is 'tensorrt_plan' (expected 'onnxruntime_onnx'",
        ),
        ('backend: "python\\n"', "backend is 'python\\n' (expected 'onnxruntime'"),
        ("max_batch_size: -1", "max_batch_size is -1 (expected at least 0"),
        (
            "ensemble_scheduling {}",
            "ensemble_scheduling is not supported: a model composed of other",
        ),
        (
            "sequence_batching { iterative_sequence: true }",
            "iterative_sequence is not supported: requests that the server repeats",
        ),
        ("batch_input [ {} ]", "batch_input is not supported: inputs generated from"),
        (
            "batch_output [ {} ]",
            "batch_output is not supported: outputs that are not split by rows",
        ),
        ("model_transaction_policy { decoupled: true }", "expected one response per request"),
        ("input [ {} ]", "input[0] has no name"),
        ('input [ { name: "x" }, { name: "x" } ]', "input[1] is a duplicate of input 'x'"),
        ('output [ { name: "y" dims: [ 0 ] } ]', "output[0].dims has 0 (expected -1 or at least 1"),
        (
            'input [ { name: "x" dims: [ 2, 3 ] reshape { shape: [ 5 ] } } ]',
            "input[0].reshape is [5], which does not hold the elements of dims [2, 3] (expected",
        ),
        (
            'output [ { name: "x" dims: [ 2, -1, 3 ] reshape { shape: [ 3, -1, 2 ] } } ]',
            "output[0].reshape is [3, -1, 2], which does not hold the elements of dims [2, -1, 3]",
        ),
        ('input [ { name: "x" reshape { shape: [ 1 ] } } ]', "input[0].reshape is [1], which does"),
        (
            'input [ { name: "x" dims: [ 1 ] reshape { shape: [ 0 ] } } ]',
            "input[0].reshape has 0 (expected -1 or at least 1)",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4, 5 ] }",
            "preferred_batch_size has 5 (expected sizes from 1 to max_batch_size, 4)",
        ),
        (
            "dynamic_batching { priority_levels: 2 }",
            "default_priority_level is 0 (expected 1 to priority_levels, 2)",
        ),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
            "priority_queue_policy { key: 3 value {} } }",
            "priority_queue_policy[3] has no priority (expected 1 to priority_levels, 2)",
        ),
        (
            "dynamic_batching { default_queue_policy { timeout_action: 5 } }",
            "default_queue_policy.timeout_action is 5, an unknown action",
        ),
        (
            "dynamic_batching { default_queue_policy { default_timeout_microseconds: "
            "18446744073709551615 } }",
            "default_timeout_microseconds is 18446744073709551615 (expected at most 100000000000)",
        ),
        ("instance_group [ { count: -1 } ]", "instance_group[0].count is -1 (expected at least 0"),
        (
            "instance_group [ { count: 65 } ]",
            "instance_group has 65 instances (expected at most 64",
        ),
        (
            "instance_group [ { gpus: [ 0, -1 ] } ]",
            "instance_group[0].gpus has -1 (expected at least 0",
        ),
        ("instance_group [ { kind: 9 } ]", "instance_group[0].kind is 9, an unknown kind"),
        (
            'input [ { name: "x" data_type: 99 } ]',
            "input[0].data_type is 99, an unknown type",
        ),
        ("version_policy { specific {} }", "version_policy.specific has no versions"),
        (
            "version_policy { specific { versions: [ 1, 0 ] } }",
            "version_policy.specific.versions[1] is 0 (expected an integer from 1 to",
        ),
        (
            "max_batch_size: 1 dynamic_batching { max_queue_delay_microseconds: 100000000001 }",
            "dynamic_batching.max_queue_delay_microseconds is 100000000001 (expected at most",
        ),
        (
            'parameters { key: "intra_op_thread_count" value: { string_value: "two" } }',
            "parameters.intra_op_thread_count is 'two' (expected an integer from 0 to 1024",
        ),
        ('default_model_filename: "../model.onnx"', "expected a file name without folders"),
        ('default_model_filename: ".."', "default_model_filename is '..' (expected a file name"),
        (
            'output [ { name: "y" label_filename: "../x" } ]',
            "output[0].label_filename: the file name '../x' is not a path inside",
        ),
        (
            "model_warmup [ { batch_size: 2 } ]",
            "model_warmup[0].batch_size is 2 (expected at most 1",
        ),
        ("model_warmup [ { count: 10001 } ]", "model_warmup[0].count is 10001 (expected at most"),
        (
            WARM_UP.format("dims: [ 1 ] zero_data: true"),
            "model_warmup[0].inputs.'x' has no data_type",
        ),
        (
            WARM_UP.format("data_type: TYPE_FP32 dims: [ 1 ]"),
            "has no data (expected zero_data, random",
        ),
        (
            WARM_UP.format("data_type: TYPE_FP32 dims: [ -1 ] zero_data: true"),
            "dims is [-1] (expected",
        ),
        (
            WARM_UP.format("data_type: TYPE_FP32 dims: [ 99999, 99999 ] zero_data: true"),
            "at most 67108864 elements",
        ),
        (
            WARM_UP.format('data_type: TYPE_FP32 dims: [ 1 ] input_data_file: "../labels.txt"'),
            "input_data_file: the file name '../labels.txt' is not a path inside",
        ),
        (
            WARM_UP.format('data_type: TYPE_FP32 dims: [ 1 ] input_data_file: "none"'),
            "input_data_file: the file 'none' cannot be read: No such file or directory",
        ),
    ],
)
def test_invalid_configs_are_reported(read, text, message):
    with pytest.raises(LoadError) as caught:
        read(text)
    assert str(caught.value).startswith("config.pbtxt: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('input [ { name: "X" } ]', "has an input 'X'; the graph's inputs are ['x']"),
        ('output [ { name: "z" } ]', "has an output 'z'; the graph's outputs are ['y']"),
        (
            'input [ { name: "x" data_type: TYPE_FP16 dims: [ -1, 3 ] } ]',
            "the input 'x' as FLOAT16 of shape [?, 3] (expected FLOAT of shape [n, 3]",
        ),
        (
            'input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]',
            "the input 'x' as FLOAT of shape [?, 4] (expected FLOAT of shape [n, 3]",
        ),
        (
            'max_batch_size: 8 output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]',
            "the output 'y' as FLOAT of shape [?, ?, 3] (expected FLOAT of shape [n, 3]",
        ),
    ],
)
def test_declarations_that_contradict_the_graph_are_rejected(load, text, message):
    with pytest.raises(LoadError) as caught:
        load(text)
    assert message in str(caught.value)


def test_size_fixed_only_by_the_config_is_fixed(load):
    model = load('input [ { name: "x" data_type: TYPE_FP32 dims: [ 2, -1 ] } ]')
    assert model.signature.inputs[0].shape == (2, 3)
    assert not model.signature.batched


def test_batching_a_graph_without_batch_axis_is_rejected(load):
    with pytest.raises(LoadError, match=r"batched, but 'x' is FLOAT of shape \[1, 2\] \(expected"):
        load("max_batch_size: 8 dynamic_batching {}", onnx_models.save_fixed)


def test_labelled_output_of_another_rank_is_not_a_classification(load):
    text = 'output [ { name: "picked" label_filename: "labels.txt" } ]'
    assert load(text, onnx_models.save_picker).metadata.task == Task.TASK_TENSORS


class TestWarmUp:
    @pytest.fixture
    def load(self, folder, load):
        def load_with(value, *, save=onnx_models.save_picker, name="index", rows=3, content=None):
            (folder / "warmup").mkdir(exist_ok=True)
            if content is not None:
                (folder / "warmup" / "data").write_bytes(content)
            return load(
                f'max_batch_size: 4 model_warmup [ {{ name: "w" batch_size: {rows} '
                f'inputs {{ key: "{name}" value {{ {value} }} }} }} ]',
                save,
            )

        return load_with

    INDEX = "data_type: TYPE_INT64 "

    @pytest.mark.parametrize("kind", ["zero_data: true", "random_data: true"])
    def test_generated_values(self, load, kind):
        assert load(self.INDEX + kind).state == 0

    @pytest.mark.parametrize("kind", ["zero_data: true", "random_data: true"])
    def test_generated_strings_and_booleans(self, load, kind):
        for data_type, onnx_type in (("STRING", TensorProto.STRING), ("BOOL", TensorProto.BOOL)):

            def save(path, onnx_type=onnx_type):
                return onnx_models.save(
                    path,
                    [helper.make_node("Identity", ["x"], ["y"])],
                    {"x": (onnx_type, ["n", 2])},
                    {"y": (onnx_type, ["n", 2])},
                )

            load(f"data_type: TYPE_{data_type} dims: [ 2 ] {kind}", save=save, name="x")

    @pytest.mark.parametrize("values", [[3], [0, 1, 3]], ids=["one row for all", "all rows"])
    def test_values_from_a_file(self, load, values):
        content = np.array(values, "<i8").tobytes()
        load(self.INDEX + 'input_data_file: "data"', content=content)

    def test_failing_sample_fails_the_load(self, load, caplog):
        content = np.array([9], "<i8").tobytes()  # beyond the table
        with pytest.raises(LoadError, match="its warm-up sample 'w' fails; see the server's log"):
            load(self.INDEX + 'input_data_file: "data"', content=content)
        assert "m/1: its warm-up sample 'w' fails" in caplog.text

    def test_file_of_another_size_is_rejected(self, load):
        with pytest.raises(LoadError, match="sample 'w' cannot be run: .*'index' has 9 bytes"):
            load(self.INDEX + 'input_data_file: "data"', content=b"123456789")

    def test_missing_file_is_reported(self, load, folder, read):
        text = self.INDEX + 'input_data_file: "data"'
        model = load(text, content=np.array([0], "<i8").tobytes())
        (folder / "warmup" / "data").unlink()
        source = ModelSource("m", 1, folder / "1" / "model.onnx", model.settings)
        with pytest.raises(LoadError, match="the warm-up file 'data' cannot be read"):
            Model(source, ModelOptions(), Metrics(CollectorRegistry()))

    def test_sample_that_does_not_match_the_signature_is_rejected(self, load):
        with pytest.raises(
            LoadError, match=r"cannot be run: the request has inputs 'x' \(expected"
        ):
            load(self.INDEX + "zero_data: true", name="x")
        with pytest.raises(LoadError, match="cannot be run: input 'index' is INT64 of shape .3, 2"):
            load(self.INDEX + "dims: [ 2 ] zero_data: true")
