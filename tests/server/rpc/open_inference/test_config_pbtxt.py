"""What config.pbtxt says is held to, and returned by ModelConfig."""

import time

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from support import onnx_models
from support.in_process_server import InProcessServer
from support.triton_requests import arrays, request

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.model_config_pb2 import ModelConfig
from neurona_protos.prediction_pb2 import PredictRequest
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy

FLOAT = TensorProto.FLOAT
RESHAPED = """
max_batch_size: 8
input [
  { name: "a" data_type: TYPE_FP32 dims: [ 4, 4 ] reshape { shape: [ 16 ] } },
  { name: "b" data_type: TYPE_FP32 dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] } },
  { name: "c" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } }
]
output [
  { name: "A" data_type: TYPE_FP32 dims: [ 2, 8 ] reshape { shape: [ 16 ] } },
  { name: "B" data_type: TYPE_FP32 dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] } },
  { name: "C" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } label_filename: "one.txt" }
]
dynamic_batching { }
"""
RESHAPED_WHOLE = """
input [ { name: "a" data_type: TYPE_FP32 dims: [ -1, 4 ] reshape { shape: [ -1, 2, 2 ] } } ]
output [ { name: "A" data_type: TYPE_FP32 dims: [ -1, 4 ] reshape { shape: [ -1, 2, 2 ] } } ]
"""
SCALAR = """
input [ { name: "a" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "A" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
LABELLED_WHOLE = """
max_batch_size: 0
input [ { name: "a" data_type: TYPE_INT32 dims: [ -1, 2 ] } ]
output [ { name: "A" data_type: TYPE_INT32 dims: [ -1, 2 ] label_filename: "names.txt" } ]
"""
LABELLED_ROWS = """
max_batch_size: 4
input [ { name: "a" data_type: TYPE_FP64 dims: [ 2, 2 ] } ]
output [ { name: "A" data_type: TYPE_FP64 dims: [ 2, 2 ] label_filename: "names.txt" } ]
"""
EMPTY_LABELS = """
max_batch_size: 4
input [ { name: "a" data_type: TYPE_FP32 dims: [ 2 ] format: FORMAT_NONE } ]
output [ { name: "A" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "empty.txt" } ]
"""
EVERYTHING = """
name: "everything" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, -1, -1 ] } ]
output [ { name: "A" data_type: TYPE_FP32 dims: [ 3, -1, -1 ] label_filename: "names.txt" } ]
instance_group [ { name: "pool" count: 2 kind: KIND_CPU }, { passive: true kind: KIND_CPU } ]
version_policy { all { } }
default_model_filename: "graph.onnx"
cc_model_filenames { key: "8.0" value: "graph.onnx" }
metric_tags { key: "team" value: "vision" }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
parameters { key: "my_key" value { string_value: "my value" } }
optimization { graph { level: 1 } input_pinned_memory { enable: true } }
response_cache { enable: true }
model_warmup [ { name: "first" batch_size: 2
  inputs { key: "a" value { data_type: TYPE_FP32 dims: [ 3, 8, 8 ] random_data: true } } } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 preserve_ordering: true
  priority_levels: 5 default_priority_level: 3
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000000 }
  priority_queue_policy { key: 1 value { max_queue_size: 7 allow_timeout_override: true } }
}
"""


def identities(path, **shapes):
    """Save outputs that equal the inputs, and are named after them in capitals."""
    nodes = [helper.make_node("Identity", [name], [name.upper()]) for name in shapes]
    outputs = {name.upper(): value for name, value in shapes.items()}
    return onnx_models.save(path, nodes, shapes, outputs)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("configs")

    def add(name, config, file="model.onnx", **shapes):
        identities(root / name / "1" / file, **shapes)
        (root / name / "config.pbtxt").write_text(config)
        (root / name / "names.txt").write_text("ant\n\ncat\n")
        (root / name / "one.txt").write_text("only\n")
        (root / name / "empty.txt").write_text("")

    add(
        "reshaped",
        RESHAPED,
        a=(FLOAT, ["n", 16]),
        b=(FLOAT, ["n", 8, "t", 1, 6]),
        c=(FLOAT, ["n"]),
    )
    add("reshaped_whole", RESHAPED_WHOLE, a=(FLOAT, ["n", 2, 2]))
    add("scalar", SCALAR, a=(FLOAT, []))
    add("scalar_rows", "max_batch_size: 4" + SCALAR, a=(FLOAT, ["n"]))
    add("labelled_whole", LABELLED_WHOLE, a=(TensorProto.INT32, ["n", 2]))
    add("labelled_rows", LABELLED_ROWS, a=(TensorProto.DOUBLE, ["n", 2, 2]))
    add("empty_labels", EMPTY_LABELS, a=(FLOAT, ["n", 2]))
    add("everything", EVERYTHING, "graph.onnx", a=(FLOAT, ["n", 3, "h", "w"]))
    return root


@pytest.fixture(scope="module")
def config_server(repository, transport):
    server = InProcessServer(repository, BatchPolicy())
    yield server
    server.stop()


def infer(server, message):
    return arrays(server.triton.ModelInfer(message, timeout=10))


def config_of(server, name):
    return server.triton.ModelConfig(pb.ModelConfigRequest(name=name), timeout=10).config


def test_requests_and_responses_have_the_dims_and_the_graph_the_reshape(config_server):
    random = np.random.default_rng(1)
    a, b, c = [random.random(s, np.float32) for s in [(3, 4, 4), (3, 2, 4, 5, 6), (3, 1)]]
    outputs = infer(config_server, request("reshaped", a=("FP32", a), b=("FP32", b), c=("FP32", c)))
    np.testing.assert_array_equal(outputs["A"], a.reshape(3, 2, 8))
    np.testing.assert_array_equal(outputs["B"], b)
    np.testing.assert_array_equal(outputs["C"], c)
    tensors = [to_tensor(name, array) for name, array in (("a", a), ("b", b), ("c", c))]
    response = config_server.prediction.Predict(
        PredictRequest(model="reshaped", inputs=tensors, raw_outputs=True), timeout=10
    )
    assert {t.name: to_array(t).shape for t in response.outputs}["A"] == (3, 2, 8)


@pytest.mark.parametrize("rows", [1, 5])
def test_free_sizes_without_a_batch_axis_are_reshaped(config_server, rows):
    a = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    np.testing.assert_array_equal(
        infer(config_server, request("reshaped_whole", a=("FP32", a)))["A"], a
    )


def test_metadata_and_wrong_shapes_are_in_terms_of_the_dims(config_server, rejection):
    metadata = config_server.triton.ModelMetadata(
        pb.ModelMetadataRequest(name="reshaped"), timeout=10
    )
    assert [list(t.shape) for t in metadata.inputs] == [[-1, 4, 4], [-1, 2, 4, -1, 6], [-1, 1]]
    assert [list(t.shape) for t in metadata.outputs] == [[-1, 2, 8], [-1, 2, 4, -1, 6], [-1, 1]]
    message = request(
        "reshaped",
        a=("FP32", np.zeros((1, 16))),
        b=("FP32", np.zeros((1, 2, 4, 1, 6))),
        c=("FP32", [[1]]),
    )
    code, text = rejection(config_server.triton.ModelInfer, message)
    assert code == "INVALID_ARGUMENT"
    assert "[1, 16]" in text


@pytest.mark.parametrize(("name", "values"), [("scalar", [7]), ("scalar_rows", [[7], [8], [9]])])
def test_dims_of_one_stand_for_a_scalar_of_the_graph(config_server, name, values):
    assert infer(config_server, request(name, a=("FP32", values)))["A"].tolist() == values


def ranked(server, model, count, **inputs):
    message = request(model, **inputs)
    name = "C" if model == "reshaped" else "A"
    message.outputs.add(name=name).parameters["classification"].int64_param = count
    return infer(server, message)[name].tolist()


def test_labels_belong_to_an_output_of_any_dtype_and_rank(config_server):
    # An empty line is a class without a name, and so is one after the last line.
    assert ranked(config_server, "labelled_whole", 9, a=("INT32", [[1, 2], [4, 3]])) == [
        b"4:2:cat",
        b"3:3",
        b"2:1",
        b"1:0:ant",
    ]
    values = [[[1, 2], [4, 3]], [[8, 7], [6, 5]]]
    assert ranked(config_server, "labelled_rows", 2, a=("FP64", values)) == [
        [b"4.0:2:cat", b"3.0:3"],
        [b"8.0:0:ant", b"7.0:1"],
    ]
    inputs = {"a": np.zeros((2, 4, 4)), "b": np.zeros((2, 2, 4, 1, 6)), "c": [[2.5], [1]]}
    texts = ranked(config_server, "reshaped", 1, **{n: ("FP32", v) for n, v in inputs.items()})
    assert texts == [[b"2.5:0:only"], [b"1.0:0:only"]]


def test_an_empty_label_file_names_no_class(config_server):
    assert ranked(config_server, "empty_labels", 1, a=("FP32", [[1, 2]])) == [[b"2.0:1"]]


def leaves(message, path=""):
    """Yield the path and value of each scalar that is set in a message."""
    for field, value in message.ListFields():
        where = f"{path}.{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in value:
                one = value[key]
                yield from (
                    leaves(one, f"{where}[{key}]")
                    if hasattr(one, "ListFields")
                    else [(f"{where}[{key}]", one)]
                )
        elif field.message_type is None:
            yield where, list(value) if field.is_repeated else value
        else:
            for index, one in enumerate(value if field.is_repeated else [value]):
                yield from leaves(one, f"{where}[{index}]")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("everything", EVERYTHING),
        ("reshaped", RESHAPED),
        ("labelled_whole", LABELLED_WHOLE),
        ("labelled_rows", LABELLED_ROWS),
        ("scalar_rows", "max_batch_size: 4" + SCALAR),
    ],
)
def test_model_config_has_everything_that_the_file_says(config_server, name, text):
    said = dict(leaves(text_format.Parse(text, ModelConfig())))
    returned = dict(leaves(config_of(config_server, name)))
    assert {path: returned.get(path) for path in said} == said
    assert (returned[".name"], returned[".backend"]) == (name, "onnxruntime")


BATCHED = """
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "A" data_type: TYPE_FP32 dims: [ 2 ] } ]
dynamic_batching { max_queue_delay_microseconds: 60000000 %s }
"""
SHORT = "default_timeout_microseconds: 50000"
QUEUES = {
    "preferred": "preferred_batch_size: [ 4 ]",
    "rejects": "default_queue_policy { " + SHORT + " }",
    "overrides": "default_queue_policy { allow_timeout_override: true "
    "default_timeout_microseconds: 60000000 }",
    "priorities": "preferred_batch_size: [ 4 ] priority_levels: 2 default_priority_level: 2 "
    "priority_queue_policy { key: 1 value { " + SHORT + " timeout_action: DELAY } }",
    "limited": "default_queue_policy { max_queue_size: 2 }",
}


@pytest.fixture(scope="module")
def queue_server(tmp_path_factory, transport):
    """Models whose batches wait a minute to be full, unless the rest of the file has an effect."""
    root = tmp_path_factory.mktemp("queues")
    for name, text in QUEUES.items():
        identities(root / name / "1" / "model.onnx", a=(FLOAT, ["n", 2]))
        (root / name / "config.pbtxt").write_text(BATCHED % text)
    server = InProcessServer(root, BatchPolicy())
    yield server
    server.stop()


def start(server, model, rows, **parameters):
    """Start a request, and return its future once it is in the queue."""
    queue = server.registry.resolve(model).batcher.queue
    message = request(model, a=("FP32", np.full((rows, 2), rows)))
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    before = queue.rows
    future = server.triton.ModelInfer.future(message, timeout=20)
    while queue.rows == before and not future.done():
        time.sleep(0.001)
    return future


def rows_of(future):
    return arrays(future.result())["A"].shape[0]


def test_a_batch_of_a_preferred_size_does_not_wait(queue_server):
    assert [rows_of(f) for f in [start(queue_server, "preferred", 2) for _ in range(2)]] == [2, 2]
    first, second = start(queue_server, "preferred", 3), start(queue_server, "preferred", 2)
    assert rows_of(first) == 3  # with the second it would exceed the preferred size
    assert not second.done()
    assert rows_of(start(queue_server, "preferred", 2)) == rows_of(second) == 2


def test_requests_that_wait_for_too_long_are_rejected(queue_server):
    error = start(queue_server, "rejects", 1).exception()
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "Request timeout expired" in error.details()


def test_a_request_may_shorten_its_wait_if_its_policy_says_so(queue_server):
    assert (
        "timeout expired"
        in start(queue_server, "overrides", 1, timeout=50_000).exception().details()
    )
    began = time.monotonic()
    # It is not allowed here, and so does not count.
    assert "timeout expired" in start(queue_server, "rejects", 1, timeout=1).exception().details()
    assert time.monotonic() - began >= 0.05


def test_a_request_that_waits_for_too_long_is_delayed(queue_server):
    delayed = start(queue_server, "priorities", 1, priority=1)
    queue = queue_server.registry.resolve("priorities").batcher.queue
    urgent = queue._levels[0]
    while not urgent.delayed:
        time.sleep(0.001)
    others = [start(queue_server, "priorities", 2, priority=1) for _ in range(2)]
    assert [rows_of(future) for future in others] == [2, 2]
    assert not delayed.done()
    assert rows_of(start(queue_server, "priorities", 3)) == 3  # of the default priority, 2
    assert rows_of(delayed) == 1


def test_the_number_of_waiting_requests_is_limited(queue_server):
    waiting = [start(queue_server, "limited", 3) for _ in range(2)]
    error = start(queue_server, "limited", 1).exception()
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "Exceeds maximum queue size" in error.details()
    for future in waiting:
        future.cancel()
