"""Tasks, labels and axes from model.toml, for models without metadata of their own."""

import logging

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry
from support import onnx_models
from support.in_process_server import InProcessServer

from neurona_protos.prediction_pb2 import (
    DataType,
    DescribeModelRequest,
    InputDescription,
    ModelMetadata,
    PredictRequest,
    Task,
    ValueDescription,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import LoadError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions, options_for
from neurona_server.models.onnx.runtime import CPU, RuntimeOptions
from neurona_server.models.repository.scanner import ModelSource, read_settings
from neurona_server.models.repository.settings import ModelSettings, TensorSettings, ValueSettings
from neurona_server.models.signature import TensorSpec
from neurona_server.models.task import find_task
from neurona_server.rpc.v1.responses import softmax
from neurona_server.telemetry.metrics import Metrics

FLOAT = DataType.DATA_TYPE_FLOAT
LOGITS = np.float32([[1, 2, 4], [0, -1, -1]])


def save_logits(path, **others):
    """Save logits = x, with outputs that cannot answer a classification beside it."""
    return onnx_models.save(
        path,
        [
            helper.make_node("Identity", ["x"], ["logits"]),
            helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
            helper.make_node("Identity", ["x"], ["again"]),
        ],
        {"x": (TensorProto.FLOAT, ["n", 3])},
        {
            "logits": (TensorProto.FLOAT, ["n", 3]),
            "best": (TensorProto.INT64, ["n"]),
            **({"again": (TensorProto.FLOAT, ["n", 3])} if others.get("two") else {}),
        },
        metadata=others.get("metadata"),
    )


@pytest.fixture
def serve(tmp_path):
    """Return a function that serves one model with the given model.toml."""
    servers = []

    def serve(toml, save=save_logits, **others):
        save(tmp_path / "m" / "1" / "model.onnx", **others)
        (tmp_path / "m" / "model.toml").write_text(toml)
        servers.append(InProcessServer(tmp_path, BatchPolicy()))
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def load(tmp_path):
    def load(toml, save=save_logits, **others):
        path = save(tmp_path / "m" / "1" / "model.onnx", **others)
        (tmp_path / "m" / "model.toml").write_text(toml)
        source = ModelSource("m", 1, path, read_settings(tmp_path / "m"))
        return Model(source, ModelOptions(), Metrics(CollectorRegistry()))

    return load


def predict_request(x, **others):
    return PredictRequest(model="m", inputs=[to_tensor("x", np.asarray(x))], **others)


def describe(server):
    return server.models.Describe(DescribeModelRequest(model="m"), timeout=10)


def test_logits_become_a_classification(serve):
    server = serve('task = "classification"\nlabels = ["ant", "bee", "cat"]\nsoftmax = true')
    request = predict_request(LOGITS, top_k=3, raw_outputs=True)
    response = server.prediction.Classify(request, timeout=10)
    rows = response.classification.rows
    assert [list(row.labels) for row in rows] == [["cat", "bee", "ant"], ["ant", "bee", "cat"]]
    powers = np.exp(LOGITS.astype(np.float64))
    expected = np.sort(powers / powers.sum(axis=1, keepdims=True))[:, ::-1]
    np.testing.assert_allclose([row.probabilities for row in rows], expected, rtol=1e-6)
    np.testing.assert_array_equal(to_array(response.outputs[0]), LOGITS)  # raw outputs stay logits
    metadata = describe(server).metadata
    assert (metadata.task, metadata.answer) == (Task.TASK_CLASSIFICATION, "logits")


def test_without_softmax_the_output_is_unchanged(serve):
    server = serve('task = "classification"')
    rows = server.prediction.Predict(predict_request(LOGITS), timeout=10).classification.rows
    assert [(list(row.labels), list(row.probabilities)) for row in rows] == [
        (["2"], [4]),
        (["0"], [0]),
    ]


def test_regression_with_units_and_descriptions(serve):
    server = serve(
        'task = "regression"\nanswer = "logits"\ndescription = "three prices"\n'
        'values = [{name = "a", unit = "EUR"}, {name = "b"}, {unit = "USD"}]\n'
        'inputs.x = {description = "raw weights", unit = "kg"}'
    )
    regression = server.prediction.Regress(predict_request(LOGITS[:1]), timeout=10).regression
    values = [(value.name, value.unit) for value in regression.values]
    assert values == [("a", "EUR"), ("b", ""), ("logits", "USD")]
    assert list(regression.rows[0].values) == [1, 2, 4]
    assert describe(server).metadata == ModelMetadata(
        task=Task.TASK_REGRESSION,
        description="three prices",
        answer="logits",
        values=regression.values,
        inputs=[InputDescription(name="x", description="raw weights", unit="kg")],
    )


def test_unit_without_values(load):
    model = load('task = "regression"\nanswer = "best"\nunit = "pieces"')
    assert [*model.metadata.values] == [ValueDescription(name="best", unit="pieces")]


def test_settings_take_precedence_over_the_metadata(serve):
    file_metadata = ModelMetadata(
        task=Task.TASK_CLASSIFICATION,
        answer="logits",
        labels=["a", "b", "c"],
        description="old",
        inputs=[InputDescription(name="x", description="old", unit="m")],
        figures={"test_accuracy": 0.5},
    )
    toml = 'labels = ["x", "y", "z"]\ndescription = "new"\ninputs.x.description = "new"'
    metadata = describe(serve(toml, metadata=file_metadata)).metadata
    expected = ModelMetadata()
    expected.CopyFrom(file_metadata)
    expected.description = expected.inputs[0].description = "new"
    expected.labels[:] = ["x", "y", "z"]
    assert metadata == expected


def test_settings_with_another_task_discard_the_answer_of_the_metadata(load):
    file_metadata = ModelMetadata(
        task=Task.TASK_CLASSIFICATION, answer="logits", labels=["a", "b", "c"]
    )
    model = load('task = "tensors"', metadata=file_metadata)
    assert (model.metadata, model.answer) == (ModelMetadata(), -1)
    metadata = load('task = "regression"\nanswer = "best"', metadata=file_metadata).metadata
    assert metadata == ModelMetadata(task=Task.TASK_REGRESSION, answer="best")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('task = "regression"', "expected one of ['logits', 'best']"),
        ('task = "classification"\nanswer = "logit"', "are ['logits', 'best']; did you mean 'logi"),
        (
            'task = "classification"\nanswer = "best"',
            "'best' is INT64 of shape [n] (expected 2",
        ),
        (
            'task = "classification"\nlabels = ["a"]',
            "describe 1 columns of 'logits', which is",
        ),
        ('task = "regression"\nanswer = "logits"\nunit = "m"', "describe 1 columns of 'logits'"),
        (
            'labels = ["a"]',
            'have labels, but its task is tensors (expected task = "classification"',
        ),
        ("softmax = true", 'have softmax, but its task is tensors (expected task = "classific'),
        ('unit = "m"', 'have values, but its task is tensors (expected task = "regression"'),
        ('task = "tensors"\nanswer = "best"', 'expected task = "classification" or task = "regr'),
        (
            'task = "regression"\nanswer = "best"\nsoftmax = true',
            "have softmax, but its task is reg",
        ),
        ("inputs.y.unit = 'm'", "its settings have an input 'y'; its inputs are ['x']"),
        (
            "outputs.logit.axes = []",
            "have an output 'logit'; its outputs are ['logits', 'best']; did",
        ),
        (
            "inputs.x.axes = ['batch']",
            "name 1 axes of input 'x', which is FLOAT of shape [n, 3] (expected 2",
        ),
        (
            "inputs.x.axes = ['time', '']\nbatched = true",
            "and call an axis 0 'time' (expected 'bat",
        ),
    ],
)
def test_settings_that_contradict_the_graph_are_rejected(load, toml, message):
    with pytest.raises(LoadError) as caught:
        load(toml)
    assert message in str(caught.value)


def test_conventional_name_decides_between_two_candidates(load):
    with pytest.raises(LoadError, match=r"expected one of \['logits', 'again'\]"):
        load('task = "classification"', two=True)
    spec = TensorSpec("probabilities", FLOAT, ("n", 3))
    other = TensorSpec("others", FLOAT, ("n", 3))
    settings = ModelSettings(task=Task.TASK_CLASSIFICATION)
    assert find_task({}, {}, [], [other, spec], settings).index == 1


def test_no_candidate():
    outputs = [TensorSpec("n", DataType.DATA_TYPE_INT64, ()), TensorSpec("b", FLOAT, (None,))]
    with pytest.raises(LoadError, match=r"no output can answer a classification; .*'n' \("):
        find_task({}, {}, [], outputs, ModelSettings(task=Task.TASK_CLASSIFICATION))


def test_bits_of_bfloat16_are_not_numbers():
    outputs = [TensorSpec("y", DataType.DATA_TYPE_BFLOAT16, (None, 1))]
    settings = ModelSettings(task=Task.TASK_REGRESSION, answer="y")
    with pytest.raises(LoadError, match=r"'y' is BFLOAT16 of shape .* \(expected numbers"):
        find_task({}, {}, [], outputs, settings)


class TestMapByClass:
    OUTPUTS = (
        TensorSpec("label", DataType.DATA_TYPE_STRING, (None,)),
        TensorSpec("map", FLOAT, (None, None)),
    )

    def find(self, **settings):
        return find_task({}, {"map": ("ant", "bee")}, [], self.OUTPUTS, ModelSettings(**settings))

    def test_keys_are_the_labels(self):
        for settings in ({}, {"task": Task.TASK_CLASSIFICATION}):
            output = self.find(**settings)
            assert (output.index, [*output.metadata.labels]) == (1, ["ant", "bee"])

    def test_settings_replace_the_labels(self):
        assert [*self.find(labels=("Ameise", "Biene")).metadata.labels] == ["Ameise", "Biene"]

    def test_number_of_labels_must_be_equal(self):
        with pytest.raises(LoadError, match="have 3 labels; 'map' has 2 classes"):
            self.find(labels=("a", "b", "c"))

    def test_same_labels_in_another_order_are_rejected(self):
        with pytest.raises(LoadError, match=r"\['bee', 'ant'\]; 'map' has them in the order"):
            self.find(labels=("bee", "ant"))

    def test_map_can_be_served_as_tensors(self):
        assert self.find(task=Task.TASK_TENSORS).index == -1


class TestLabelledOutput:
    OUTPUTS = (TensorSpec("y", FLOAT, (None, 2)), TensorSpec("z", FLOAT, (None, 2, 1)))

    def find(self, **labels):
        settings = ModelSettings(output_labels=labels)
        return find_task({}, {}, [], self.OUTPUTS, settings)

    def test_output_of_fitting_shape_is_a_classification(self):
        output = self.find(y=("a", "b"), z=("c", "d"))
        assert (output.index, [*output.metadata.labels], output.softmax) == (0, ["a", "b"], False)

    def test_output_of_another_shape_is_not(self):
        assert self.find(z=("a", "b")).index == -1

    def test_wrong_number_of_labels_is_ignored(self, caplog):
        assert self.find(y=("a", "b", "c")).index == -1
        assert "3 labels for output 'y'" in caplog.text

    def test_classes_without_a_name_make_no_classification(self):
        assert self.find(y=("a", "")).index == -1


class TestSoftmax:
    def test_large_logits_do_not_overflow(self):
        np.testing.assert_allclose(
            softmax(np.float32([[1000, 0], [-1000, -1000]])), [[1, 0], [0.5, 0.5]]
        )

    def test_float16_is_computed_as_float32(self):
        probabilities = softmax(np.ones((1, 5000), np.float16))
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)

    def test_nan_stays_nan(self):
        probabilities = softmax(np.float64([[np.nan, 1], [np.inf, 1], [0, 0]]))
        assert np.isnan(probabilities[:2]).any(axis=1).all()
        assert probabilities[2].tolist() == [0.5, 0.5]


def save_running_sum(path):
    return onnx_models.save_running_sum(path)


class TestAxes:
    def test_names_are_in_the_description(self, serve):
        description = describe(serve('inputs.x.axes = ["row", "feature"]'))
        assert [*description.inputs[0].axes] == ["row", "feature"]
        assert [*description.inputs[0].shape] == [-1, 3]
        assert [*description.outputs[0].axes] == ["n", ""]
        assert not description.batched

    def test_batch_on_every_axis_0_enables_batching(self, load, caplog):
        toml = 'inputs.x.axes = ["batch", ""]\noutputs.sums.axes = ["batch", ""]'
        assert load(toml, save_running_sum).signature.batched
        assert (
            "m/1: batching enabled by its settings, but outputs of synthetic inputs depend"
            in caplog.text
        )

    def test_batch_on_some_axis_0_decides_nothing(self, load, caplog):
        with caplog.at_level(logging.INFO):
            assert not load('inputs.x.axes = ["batch", ""]', save_running_sum).signature.batched
        assert "batching disabled: outputs of synthetic inputs depend on other rows" in caplog.text

    @pytest.mark.parametrize("toml", ["batched = false", 'inputs.x.axes = ["time", ""]'])
    def test_batching_can_be_disabled(self, load, toml):
        assert not load(toml).signature.batched

    def test_batching_enabled_by_its_key(self, load, caplog):
        assert load("batched = true", save_running_sum).signature.batched
        assert "batching enabled by its settings" in caplog.text

    def test_correct_setting_is_not_warned_of(self, load, caplog):
        assert load("batched = true").signature.batched
        assert not caplog.records

    def test_fixed_size_cannot_be_batched(self, load):
        with pytest.raises(
            LoadError, match=r"batched, but 'x' is FLOAT of shape \[1, 2\] \(expected"
        ):
            load("batched = true", onnx_models.save_fixed)

    def test_equal_names_require_equal_sizes(self, serve):
        def save(path):
            return onnx_models.save(
                path,
                [helper.make_node("Concat", ["x", "z"], ["y"], axis=0)],
                {"x": (TensorProto.FLOAT, [None]), "z": (TensorProto.FLOAT, [None])},
                {"y": (TensorProto.FLOAT, [None])},
            )

        server = serve('inputs.x.axes = ["time"]\ninputs.z.axes = ["time"]', save)
        request = predict_request(np.float32([1, 2]))
        request.inputs.append(to_tensor("z", np.float32([1])))
        with pytest.raises(grpc.RpcError) as caught:
            server.prediction.Predict(request, timeout=10)
        assert "expected equal sizes" in caught.value.details()


def test_options_of_one_model():
    options = ModelOptions(BatchPolicy(inline=True), RuntimeOptions(threads=1), 2)
    assert options_for(ModelSettings(), options) == options
    settings = ModelSettings(
        max_batch_rows=3,
        max_queue_rows=4,
        max_queue_bytes=5,
        max_delay_ms=6,
        latency_objective_ms=7,
        inline="never",
        max_run_seconds=10,
        instances=8,
        threads=9,
        providers=("cpu",),
        devices="0,1",
        instances_by_gpu={1: 9},
    )
    policy = BatchPolicy(3, 4, 5, 0.006, 0.007, inline=False, max_run_seconds=10)
    runtime = RuntimeOptions(
        threads=9, gpu_threads=9, providers=("cpu",), gpu_expected=True, devices="0,1"
    )
    assert options_for(settings, options) == ModelOptions(
        policy, runtime, 8, instances_by_gpu={1: 9}
    )
    off = ModelSettings(
        max_delay_ms=0, latency_objective_ms=0, inline="auto", max_run_seconds=0, threads=0
    )
    expected = BatchPolicy(3, 4, 5, max_run_seconds=0)
    assert options_for(off, ModelOptions(policy)) == ModelOptions(expected)


def test_provider_options_of_one_model():
    server = {"cuda": {"use_tf32": "0", "prefer_nhwc": "1"}}
    options = ModelOptions(runtime=RuntimeOptions(provider_options=server))
    assert options_for(ModelSettings(), options).runtime.provider_options == server
    settings = ModelSettings(provider_options={"cuda": {"use_tf32": "1"}})
    assert options_for(settings, options).runtime.provider_options == {
        "cuda": {"use_tf32": "1", "prefer_nhwc": "1"}
    }


@pytest.mark.parametrize(
    ("settings", "max_rows"),
    [
        (ModelSettings(), 0),
        (ModelSettings(providers=("tensorrt", "cuda")), 64),
        (ModelSettings(providers=("tensorrt", "cuda"), max_batch_rows=3), 3),
        (ModelSettings(providers=("tensorrt", "cuda"), batched=False), 0),
    ],
)
def test_a_provider_that_compiles_gets_the_largest_batch(settings, max_rows):
    assert options_for(settings, ModelOptions()).runtime.max_rows == max_rows


def test_instances_share_the_cpus(monkeypatch):
    monkeypatch.setattr("neurona_server.models.model_options.available_cpus", lambda: 8)
    for threads, expected in ((8, 2), (0, 2), (1, 1)):
        options = ModelOptions(runtime=RuntimeOptions(threads=threads))
        assert options_for(ModelSettings(instances=4), options).runtime.threads == expected


def test_model_runs_on_the_providers_of_its_settings(load):
    assert load('providers = ["cpu"]').provider == CPU
    if load("").provider == CPU:  # no GPU here
        with pytest.raises(LoadError, match=r"none of its providers \(cuda\) is available"):
            load('providers = ["cuda"]')


def test_model_has_the_options_of_its_settings(load):
    model = load("max_batch_rows = 5\ninstances = 2\nthreads = 1")
    assert (model.batcher.policy.max_rows, model.batcher.instances) == (5, 2)


def test_value_without_a_name():
    settings = ModelSettings(task=Task.TASK_REGRESSION, values=(ValueSettings(unit="m"),))
    outputs = [TensorSpec("value", FLOAT, (None, 1))]
    (value,) = find_task({}, {}, [], outputs, settings).metadata.values
    assert (value.name, value.unit) == ("value", "m")


def test_input_without_description_stays_undescribed():
    inputs = [TensorSpec("x", FLOAT, (None,))]
    settings = ModelSettings(inputs={"x": TensorSettings(("batch",))})
    assert find_task({}, {}, inputs, [], settings).metadata == ModelMetadata()
