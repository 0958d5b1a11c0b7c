import logging
from concurrent.futures import Future

import grpc
import numpy as np
import onnx
import pytest
from support import onnx_models
from support.triton_requests import request

from neurona_protos import metadata as model_metadata
from neurona_protos import open_inference_pb2 as pb
from neurona_protos.model_config_pb2 import TYPE_FP32, TYPE_INT64, ModelInstanceGroup
from neurona_protos.prediction_pb2 import UnloadModelRequest
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import NotFoundError, quoted
from neurona_server.models.lifecycle.registry import ModelEntry, ModelVersion
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.rpc.open_inference.metadata import model_config
from neurona_server.telemetry import logs

ROWS = np.ones((3, 4), np.float32)


def test_server_metadata(server, echo_server):
    assert server.triton.ServerLive(pb.ServerLiveRequest(), timeout=10).live
    assert server.triton.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
    metadata = server.triton.ServerMetadata(pb.ServerMetadataRequest(), timeout=10)
    assert metadata.name == "neurona"
    assert metadata.version
    assert {"statistics", "classification", "binary_tensor_data"} <= set(metadata.extensions)
    assert "system_shared_memory" not in metadata.extensions
    metadata = echo_server.triton.ServerMetadata(pb.ServerMetadataRequest(), timeout=10)
    assert "system_shared_memory" in metadata.extensions


def test_a_server_with_a_model_that_is_not_ready_is_not_ready(make_server):
    server = make_server(start_models=False)
    assert server.triton.ServerLive(pb.ServerLiveRequest(), timeout=10).live
    assert not server.triton.ServerReady(pb.ServerReadyRequest(), timeout=10).ready


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("classifier", "", True),
        ("classifier", "1", True),
        ("classifier", "latest", True),
        ("classifier", "3", False),
        ("nobody", "", False),
    ],
)
def test_model_ready_is_never_an_error(server, name, version, ready):
    message = pb.ModelReadyRequest(name=name, version=version)
    assert server.triton.ModelReady(message, timeout=10).ready == ready


def test_shapes_in_metadata_have_the_batch_axis(server):
    metadata = server.triton.ModelMetadata(pb.ModelMetadataRequest(name="classifier"), timeout=10)
    assert (metadata.name, metadata.platform) == ("classifier", "onnxruntime_onnx")
    assert list(metadata.versions) == ["1", "2"]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("x", "FP32", [-1, 4])
    ]
    outputs = [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs]
    assert outputs == [("probabilities", "FP32", [-1, 3])]


@pytest.mark.parametrize("rpc", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize("version", ["", "3"])
def test_unknown_models_are_errors_in_tritons_words(server, rejection, rpc, version):
    name = "classifier" if version else "nobody"
    message = getattr(pb, rpc + "Request")(name=name, version=version)
    code, text = rejection(getattr(server.triton, rpc), message)
    assert code == "NOT_FOUND"
    assert text.startswith("Request for unknown model: ")
    assert " is not found" in text


def config_of(server, name):
    return server.triton.ModelConfig(pb.ModelConfigRequest(name=name), timeout=10).config


def test_dims_in_the_config_leave_out_the_batch_axis(make_server):
    server = make_server(BatchPolicy(max_rows=32, max_queue_rows=100, max_delay=0.002))
    config = config_of(server, "classifier")
    assert (config.name, config.platform) == ("classifier", "onnxruntime_onnx")
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 32)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("x", TYPE_FP32, [4])]
    outputs = [(t.name, t.data_type, list(t.dims)) for t in config.output]
    assert outputs == [("probabilities", TYPE_FP32, [3])]
    batching = config.dynamic_batching
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert batching.max_queue_delay_microseconds == 2000
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    assert batching.default_queue_policy.max_queue_size == 100
    assert batching.default_queue_policy.allow_timeout_override
    (group,) = config.instance_group
    assert (group.kind, group.count) == (ModelInstanceGroup.KIND_CPU, 1)
    assert config.HasField("model_transaction_policy")
    assert not config.model_transaction_policy.decoupled


def test_the_config_without_batching_and_with_optional_inputs(server, echo_server):
    config = config_of(server, "fixed")
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [1, 2])
    assert config.WhichOneof("scheduling_choice") is None
    assert config_of(server, "picker").input[0].data_type == TYPE_INT64
    config = config_of(echo_server, "adjustable")
    assert [(t.name, list(t.dims), t.optional) for t in config.input] == [
        ("x", [2], False),
        ("scale", [1], True),
    ]


def test_config_and_metadata_name_the_same_tensors(server, echo_server):
    for one in (server, echo_server):
        for model in one.registry.models():
            metadata = one.triton.ModelMetadata(
                pb.ModelMetadataRequest(name=model.name), timeout=10
            )
            config = config_of(one, model.name)
            batch = int(bool(config.max_batch_size))
            for mine, theirs in [
                (metadata.inputs, config.input),
                (metadata.outputs, config.output),
            ]:
                assert [t.name for t in mine] == [t.name for t in theirs]
                for tensor, other in zip(mine, theirs, strict=True):
                    skipped = 0 if getattr(other, "optional", False) else batch
                    assert list(tensor.shape)[skipped:] == list(other.dims)


def statistics_of(server, name="", version=""):
    message = pb.ModelStatisticsRequest(name=name, version=version)
    return server.triton.ModelStatistics(message, timeout=10).model_stats


def test_statistics_count_requests_rows_and_runs(make_server, wait_until, rejection):
    server = make_server(start_models=False)
    message = request("classifier", "1", x=("FP32", ROWS))
    calls = [server.triton.ModelInfer.future(message) for _ in range(4)]
    wait_until(lambda: server.count("queue_rows", model="classifier", version="1") == 12)
    (before,) = statistics_of(server, "classifier", "1")
    assert (before.inference_count, before.last_inference) == (0, 0)
    server.registry.resolve("classifier", 1).start()
    for call in calls:
        call.result(timeout=10)
    server.triton.ModelInfer(request("classifier", "1", x=("FP32", ROWS[:1])), timeout=10)
    rejection(server.triton.ModelInfer, request("classifier", "1", x=("FP32", ROWS[:, :1])))
    (after,) = statistics_of(server, "classifier", "1")
    assert (after.name, after.version) == ("classifier", "1")
    assert (after.inference_count, after.execution_count) == (13, 2)
    assert after.last_inference > 1_700_000_000_000
    spent = after.inference_stats
    assert (spent.success.count, spent.fail.count, spent.queue.count) == (5, 1, 5)
    for duration in (spent.compute_input, spent.compute_infer, spent.compute_output):
        assert duration.count == 5
    assert spent.success.ns > spent.queue.ns > 0
    assert spent.compute_infer.ns > 0
    assert spent.cache_hit.count == 0
    batches = [(b.batch_size, b.compute_infer.count) for b in after.batch_stats]
    assert batches == [(1, 1), (12, 1)]
    large = after.batch_stats[1].compute_infer.ns
    small = after.batch_stats[0].compute_infer.ns
    assert spent.compute_infer.ns == pytest.approx(4 * large + small, abs=10)


def test_statistics_of_all_and_of_one_model(server):
    named = [(s.name, s.version) for s in statistics_of(server)]
    assert named == [(m.name, str(m.version)) for m in server.registry.models()]
    assert [s.version for s in statistics_of(server, "classifier")] == ["1", "2"]
    assert [s.version for s in statistics_of(server, "classifier", "2")] == ["2"]


def test_the_index_has_every_version_with_its_state(make_server):
    server = make_server(start_models=False)
    server.registry.publish("broken", ModelEntry({3: ModelVersion(reason="it is broken")}))
    server.registry.resolve("fixed", 1).start()

    def index(**options):
        response = server.triton.RepositoryIndex(pb.RepositoryIndexRequest(**options), timeout=10)
        return {(m.name, m.version): (m.state, m.reason) for m in response.models}

    assert index()["broken", "3"] == ("UNAVAILABLE", "it is broken")
    assert index()["classifier", "2"] == ("LOADING", "")
    assert index()["fixed", "1"] == ("READY", "")
    assert index(ready=True) == {("fixed", "1"): ("READY", "")}


def test_another_repository_is_not_supported(server, rejection):
    message = pb.RepositoryIndexRequest(repository_name="r")
    assert rejection(server.triton.RepositoryIndex, message)[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("verb", ["Load", "Unload"])
def test_models_cannot_be_loaded_or_unloaded_unless_control_is_explicit(server, rejection, verb):
    message = getattr(pb, f"RepositoryModel{verb}Request")(model_name="classifier")
    code, text = rejection(getattr(server.triton, f"RepositoryModel{verb}"), message)
    assert code == "FAILED_PRECONDITION"
    assert "model_control is not explicit" in text


class Control:
    """Records its calls."""

    def __init__(self):
        self.calls = []

    def load(self, name):
        if name == "nobody":
            raise NotFoundError(f"there is no model {quoted(name)}")
        return self._end("load", name)

    def unload(self, name):
        return self._end("unload", name)

    def _end(self, *call):
        self.calls.append(call)
        future = Future()
        future.set_result(None)
        return future


def load(server, name, parameter=""):
    message = pb.RepositoryModelLoadRequest(model_name=name)
    if parameter:
        message.parameters[parameter].string_param = "x"
    return server.triton.RepositoryModelLoad.future(message, timeout=30)


def test_load_and_unload_call_the_control_and_wait_for_it(make_server, rejection):
    control = Control()
    server = make_server(control=control)
    load(server, "classifier").result()
    message = pb.RepositoryModelUnloadRequest(model_name="classifier")
    message.parameters["unload_dependents"].bool_param = True
    server.triton.RepositoryModelUnload(message, timeout=10)
    assert control.calls == [("load", "classifier"), ("unload", "classifier")]
    assert load(server, "nobody").code() == grpc.StatusCode.NOT_FOUND
    call = load(server, "classifier", "other")
    assert call.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "parameter 'other'" in call.details()
    message.parameters["other"].bool_param = True
    assert rejection(server.triton.RepositoryModelUnload, message)[0] == "UNIMPLEMENTED"


def test_unloading_what_is_not_loaded_is_no_error(make_server, rejection):
    server = make_server(explicit=True)
    for name in ("nobody", "classifier", "classifier"):
        message = pb.RepositoryModelUnloadRequest(model_name=name)
        server.triton.RepositoryModelUnload(message, timeout=10)
        assert rejection(server.models.Unload, UnloadModelRequest(model=name))[0] == "NOT_FOUND"
    load(server, "classifier").result()
    server.triton.RepositoryModelUnload(message, timeout=10)
    infer = request("classifier", x=("FP32", ROWS))
    assert rejection(server.triton.ModelInfer, infer)[0] == "NOT_FOUND"


def test_messages_of_kserve_have_the_name_first(make_server, rejection):
    server = make_server(explicit=True)
    infer = request("classifier", x=("FP32", ROWS))
    kserve = pb.ModelReadyRequest(name="classifier").SerializeToString()  # the same field 1
    load = server.channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
    unload = server.channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
    answer = b"\x0a\x0aclassifier\x10\x01"  # model_name, and isLoaded or isUnloaded
    assert load(kserve, timeout=30) == answer
    assert server.triton.ModelInfer(infer, timeout=10).model_name == "classifier"
    assert unload(kserve, timeout=30) == answer
    assert rejection(server.triton.ModelInfer, infer)[0] == "NOT_FOUND"
    code, text = rejection(load, pb.ModelReadyRequest(name="nobody").SerializeToString())
    assert (code, "no model 'nobody'" in text) == ("NOT_FOUND", True)
    both = pb.RepositoryModelLoadRequest(repository_name="a", model_name="classifier")
    assert rejection(server.triton.RepositoryModelLoad, both)[0] == "UNIMPLEMENTED"


def test_metadata_have_the_properties_of_a_model(make_server, tmp_path):
    path = onnx_models.save_classifier(tmp_path / "described" / "1" / "model.onnx")
    onnx_models.save_classifier(tmp_path / "plain" / "1" / "model.onnx")
    model = onnx.load(path)
    (prop,) = model.metadata_props
    metadata = model_metadata.from_json(prop.value)
    metadata.description = "Ants, bees and cats."
    metadata.figures["test_accuracy"] = 0.9375
    metadata.provenance["recipe"] = "pets"
    prop.value = model_metadata.to_json(metadata)
    onnx.save(model, path)
    triton = make_server(root=tmp_path).triton
    message = pb.ModelMetadataRequest(name="described")
    assert triton.ModelMetadata(message, timeout=10).properties == {
        "description": "Ants, bees and cats.",
        "test_accuracy": "0.9375",
        "recipe": "pets",
        "task": "classification",
        "answer": "probabilities",
    }
    message.name = "plain"
    assert not triton.ModelMetadata(message, timeout=10).properties


def test_models_are_loaded_and_unloaded(make_server, rejection, wait_until):
    server = make_server(explicit=True, every=False)

    def index():
        models = server.triton.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10).models
        return {(m.name, m.version): m.state for m in models if m.name == "classifier"}

    infer = request("classifier", x=("FP32", ROWS))
    assert rejection(server.triton.ModelInfer, infer)[0] == "NOT_FOUND"
    assert set(index().values()) == {"UNAVAILABLE"}
    load(server, "classifier").result()
    assert index()["classifier", "2"] == "READY"
    assert server.triton.ModelInfer(infer, timeout=10).model_version == "2"
    config = config_of(server, "classifier")
    assert config.version_policy.latest.num_versions == 1
    message = pb.RepositoryModelUnloadRequest(model_name="classifier")
    server.triton.RepositoryModelUnload(message, timeout=10)
    assert rejection(server.triton.ModelInfer, infer)[0] == "NOT_FOUND"
    wait_until(lambda: set(index().values()) == {"UNAVAILABLE"})
    assert load(server, "nobody").code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (VersionPolicy(all_versions=True), "all {\n}\n"),
        (VersionPolicy(latest=3), "latest {\n  num_versions: 3\n}\n"),
        (VersionPolicy(listed=(1, 4)), "specific {\n  versions: 1\n  versions: 4\n}\n"),
    ],
)
def test_the_config_has_the_version_policy(server, policy, expected):
    model = server.registry.resolve("classifier")
    assert str(model_config(model, policy).version_policy) == expected


def trace(**settings):
    message = pb.TraceSettingRequest()
    for name, value in settings.items():
        message.settings[name].value.extend(value)
    return message


def test_trace_settings_cannot_be_changed(server, rejection):
    response = server.triton.TraceSetting(trace(trace_level=["OFF"], trace_rate=[]), timeout=10)
    assert list(response.settings["trace_level"].value) == ["OFF"]
    assert rejection(server.triton.TraceSetting, trace(trace_level=["TIMESTAMPS"])) == (
        "UNIMPLEMENTED",
        "trace setting 'trace_level' cannot be changed (expected 'OFF')",
    )
    assert rejection(server.triton.TraceSetting, trace(other=["1"]))[0] == "INVALID_ARGUMENT"
    message = pb.TraceSettingRequest(model_name="nobody")
    assert rejection(server.triton.TraceSetting, message)[0] == "NOT_FOUND"
    message = pb.TraceSettingRequest(model_name="classifier")
    assert server.triton.TraceSetting(message, timeout=10).settings


@pytest.fixture
def quiet_log():
    log = logging.getLogger("neurona_server")
    before = log.level
    log.setLevel(logging.INFO)
    yield log
    log.setLevel(before)
    logs.level_filter.dropped = frozenset()


def settings(**changes):
    message = pb.LogSettingsRequest()
    for name, value in changes.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(message.settings[name], kind, value)
    return message


def test_log_settings_can_be_read_but_not_changed(server, rejection, quiet_log):
    log_settings = server.triton.LogSettings(settings(), timeout=10).settings
    assert log_settings["log_info"].bool_param
    assert log_settings["log_verbose_level"].uint32_param == 0
    code, text = rejection(server.triton.LogSettings, settings(log_info=False))
    assert code == "FAILED_PRECONDITION"
    assert "model_control is not explicit" in text
    assert quiet_log.level == logging.INFO


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({}, "error warning info"),
        ({"log_info": False}, "error warning"),
        ({"log_error": False}, "warning info"),
        ({"log_warning": False}, "error info"),
        ({"log_info": False, "log_warning": False}, "error"),
        ({"log_verbose_level": 3}, "error warning info debug"),
        ({"log_info": False, "log_verbose_level": 3}, "error warning debug"),
        (dict.fromkeys(["log_info", "log_warning", "log_error"], False), ""),
        ({"log_info": True, "log_file": "", "log_format": "default"}, "error warning info"),
    ],
)
def test_log_settings_are_independent(make_server, quiet_log, caplog, changes, levels):
    server = make_server(control=Control())
    answer = server.triton.LogSettings(settings(**changes), timeout=10).settings
    assert answer == server.triton.LogSettings(settings(), timeout=10).settings
    for name, value in changes.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        assert getattr(answer[name], kind) == value
    caplog.handler.addFilter(logs.level_filter)
    caplog.clear()
    for level in logs.LEVELS:
        logging.getLogger("neurona_server.somewhere").log(level, "a line")
    caplog.handler.removeFilter(logs.level_filter)
    assert " ".join(record.levelname.lower() for record in caplog.records) == levels
    restored = dict.fromkeys(["log_info", "log_warning", "log_error"], True)
    answer = server.triton.LogSettings(
        settings(log_verbose_level=0, **restored), timeout=10
    ).settings
    assert quiet_log.level == logging.INFO
    assert answer["log_verbose_level"].uint32_param == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"log_info": 1}, "INVALID_ARGUMENT"),
        ({"log_verbose_level": True}, "INVALID_ARGUMENT"),
        ({"log_colour": True}, "INVALID_ARGUMENT"),
        ({"log_file": "/etc/passwd"}, "UNIMPLEMENTED"),
        ({"log_format": "ISO8601"}, "UNIMPLEMENTED"),
    ],
)
def test_invalid_log_settings_are_rejected(make_server, rejection, quiet_log, changes, code):
    server = make_server(control=Control())
    assert rejection(server.triton.LogSettings, settings(**changes))[0] == code
    assert quiet_log.level == logging.INFO
