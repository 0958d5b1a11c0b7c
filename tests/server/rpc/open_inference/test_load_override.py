"""Loads with a configuration and files of the caller in place of the repository's."""

import json
import tempfile
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import onnx_models
from support.in_process_server import InProcessServer
from support.triton_requests import arrays, request

from neurona_protos import open_inference_pb2 as pb
from neurona_server.batching.policy import BatchPolicy


def save_times(path, factor):
    """Save y = factor * x for two numbers per row."""
    return onnx_models.save(
        path,
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        {"x": (TensorProto.FLOAT, ["n", 2])},
        {"y": (TensorProto.FLOAT, ["n", 2])},
        {"factor": np.float32([factor])},
    )


@pytest.fixture(scope="module")
def explicit_server(tmp_path_factory, transport):
    """A server with versions 1 to 3 of a model, which multiply by 1 to 3, and a broken one."""
    root, temporary = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("temporary")
    for version in (1, 2, 3):
        save_times(root / "times" / str(version) / "model.onnx", version)
    save_times(root / "broken" / "1" / "model.onnx", 5)
    (root / "broken" / "config.pbtxt").write_text('backend: "tensorrt"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        server = InProcessServer(root, BatchPolicy(), explicit=True, every=False)
        yield server
        server.stop()
    assert not [*temporary.iterdir()]


def load(server, name, config=None, **files):
    message = pb.RepositoryModelLoadRequest(model_name=name)
    if config is not None:
        message.parameters["config"].string_param = config
    for path, content in files.items():
        message.parameters[f"file:{path}"].bytes_param = content
    return server.triton.RepositoryModelLoad(message, timeout=30)


def unload(server, name):
    server.triton.RepositoryModelUnload(
        pb.RepositoryModelUnloadRequest(model_name=name), timeout=30
    )


def fails(server, *arguments, **files):
    with pytest.raises(grpc.RpcError) as caught:
        load(server, *arguments, **files)
    return caught.value.code().name, caught.value.details()


def times(server, name, version=""):
    message = request(name, version, x=("FP32", [[1, 10]]))
    return arrays(server.triton.ModelInfer(message, timeout=10))["y"].tolist()


def ready(server, name):
    return [
        version
        for version in "123"
        if server.triton.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready
    ]


def config_of(server, name):
    return server.triton.ModelConfig(pb.ModelConfigRequest(name=name), timeout=10).config


@pytest.fixture
def sevenfold(tmp_path):
    return save_times(tmp_path / "seven.onnx", 7).read_bytes()


def test_a_config_counts_until_the_next_load(explicit_server):
    server = explicit_server
    specific = {"version_policy": {"specific": {"versions": [2]}}, "metric_tags": {"a": "b"}}
    load(server, "times", json.dumps({"backend": "onnxruntime", **specific}))
    assert (ready(server, "times"), times(server, "times")) == (["2"], [[2, 20]])
    assert config_of(server, "times").metric_tags == {"a": "b"}
    load(server, "times", json.dumps({"maxBatchSize": 4, "dynamicBatching": {}}))
    assert (ready(server, "times"), times(server, "times")) == (["3"], [[3, 30]])
    assert config_of(server, "times").max_batch_size == 4
    load(server, "times", '{"max_batch_size": 0}')
    assert config_of(server, "times").max_batch_size == 0
    server.reconciler.poll_once()
    assert config_of(server, "times").max_batch_size == 0
    load(server, "times")
    assert config_of(server, "times").max_batch_size > 4


def test_a_config_replaces_one_that_cannot_be_used(explicit_server):
    server = explicit_server
    code, text = fails(server, "broken")
    assert (code, "backend is 'tensorrt'" in text) == ("FAILED_PRECONDITION", True)
    load(server, "broken", '{"backend": "onnxruntime"}')
    assert times(server, "broken") == [[5, 50]]
    assert fails(server, "broken")[0] == "FAILED_PRECONDITION"
    assert times(server, "broken") == [[5, 50]]  # what is loaded keeps serving


def test_files_replace_the_whole_folder(explicit_server, sevenfold):
    server = explicit_server
    load(server, "times")
    load(
        server,
        "times",
        '{"output": [{"name": "y", "label_filename": "labels.txt"}]}',
        **{"1/model.onnx": sevenfold, "labels.txt": b"ant\nbee\n"},
    )
    assert (ready(server, "times"), times(server, "times")) == (["1"], [[7, 70]])
    message = request("times", x=("FP32", [[1, 10]]))
    message.outputs.add(name="y").parameters["classification"].int64_param = 1
    (texts,) = arrays(server.triton.ModelInfer(message, timeout=10)).values()
    assert texts.ravel().tolist() == [b"70.0:1:bee"]
    load(server, "times")
    assert (ready(server, "times"), times(server, "times")) == (["3"], [[3, 30]])


def test_files_make_a_model_that_the_repository_does_not_have(explicit_server, sevenfold):
    server = explicit_server
    load(server, "times")
    load(server, "seven", "{}", **{"2/model.onnx": sevenfold})
    assert (ready(server, "seven"), times(server, "seven")) == (["2"], [[7, 70]])
    server.reconciler.poll_once()
    load(server, "broken", "{}")  # other models are left alone
    assert (times(server, "seven"), times(server, "times")) == ([[7, 70]], [[3, 30]])
    unload(server, "seven")
    assert ready(server, "seven") == []
    assert fails(server, "seven") == (
        "NOT_FOUND",
        "failed to load 'seven', failed to poll from model repository: "
        "the repository has no model 'seven'",
    )


def test_files_may_be_as_large_as_a_message(explicit_server, sevenfold, rejection):
    model = onnx.load_from_string(sevenfold)
    model.doc_string = "x" * 500_000
    load(explicit_server, "large", "{}", **{"1/model.onnx": model.SerializeToString(), "a": b""})
    assert times(explicit_server, "large") == [[7, 70]]
    many = pb.RepositoryModelLoadRequest(model_name="many")
    for number in range(50_000):
        many.parameters[f"file:{number}"].bytes_param = b""
    code, text = rejection(explicit_server.triton.RepositoryModelLoad, many)
    assert (code, "fields" in text) == ("INVALID_ARGUMENT", True), text


def test_external_data_are_files_too(explicit_server, tmp_path):
    model = onnx.load(save_times(tmp_path / "x.onnx", 9))
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    files = {f"1/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}
    assert len(files) == 2
    load(explicit_server, "nine", "{}", **files)
    assert times(explicit_server, "nine") == [[9, 90]]


@pytest.mark.parametrize(
    ("config", "files", "code", "text"),
    [
        (None, {"1/model.onnx": b""}, "INVALID_ARGUMENT", "failed to load 'times', failed to poll"),
        ("{", {}, "INVALID_ARGUMENT", "parameter 'config' is no ModelConfig"),
        ('{"max_batch": 1}', {}, "INVALID_ARGUMENT", 'no field named "max_batch"'),
        ('{"backend": "python"}', {}, "FAILED_PRECONDITION", "backend is 'python' (expected"),
        ("{}", {"../1/model.onnx": b""}, "INVALID_ARGUMENT", "inside the model's folder"),
        ("{}", {"/1/model.onnx": b""}, "INVALID_ARGUMENT", "inside the model's folder"),
        ("{}", {"": b""}, "INVALID_ARGUMENT", "inside the model's folder"),
        ("{}", {"1/model.onnx": b"no model"}, "FAILED_PRECONDITION", "load failed for model"),
        ("{}", {"a": b"", "a/b": b""}, "FAILED_PRECONDITION", "cannot be stored"),
        ("{}", {"labels.txt": b""}, "FAILED_PRECONDITION", "(expected parameters like 'file:1/"),
        ("{}", {"v1/model.onnx": b""}, "FAILED_PRECONDITION", "load failed for model 'times': v1"),
    ],
)
def test_what_cannot_be_loaded_changes_nothing(explicit_server, config, files, code, text):
    load(explicit_server, "times")
    actual_code, actual_text = fails(explicit_server, "times", config, **files)
    assert (actual_code, actual_text.count(text)) == (code, 1), actual_text
    assert times(explicit_server, "times") == [[3, 30]]


def test_a_model_that_is_in_no_repository_is_not_found(explicit_server):
    assert fails(explicit_server, "unknown", "{}") == (
        "NOT_FOUND",
        "failed to load 'unknown', failed to poll from model repository: "
        "the repository has no model 'unknown'",
    )


def test_parameters_of_other_kinds_and_names_are_rejected(explicit_server, rejection):
    for name, kind, code in (
        ("config", "bytes_param", "INVALID_ARGUMENT"),
        ("file:1/model.onnx", "string_param", "INVALID_ARGUMENT"),
        ("verbose", "bool_param", "UNIMPLEMENTED"),
    ):
        message = pb.RepositoryModelLoadRequest(model_name="times")
        value = {"bytes_param": b"{}", "string_param": "{}", "bool_param": True}[kind]
        setattr(message.parameters[name], kind, value)
        assert rejection(explicit_server.triton.RepositoryModelLoad, message)[0] == code
