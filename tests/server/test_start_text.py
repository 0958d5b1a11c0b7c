"""What neurona-serve prints at the start: models, addresses and a call that works when pasted."""

import io
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.in_process_server import run_app
from support.onnx_models import (
    save,
    save_classifier,
    save_fixed,
    save_picker,
    save_regressor,
    save_upper,
)

from neurona_protos.prediction_pb2 import InputDescription, ModelMetadata
from neurona_server.start_text import (
    MAX_MODELS,
    ServedAddresses,
    print_start_text,
    write_start_text,
)

ADDRESSES = ServedAddresses("0.0.0.0:8001", "127.0.0.1:8000", "[::]:8002", has_playground=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of single files of several kinds, one of which is broken."""
    folder = tmp_path_factory.mktemp("files")
    save_classifier(folder / "a-classifier.onnx")
    save_fixed(folder / "fixed.onnx")
    save_picker(folder / "picker.onnx")
    save_regressor(folder / "regressor.onnx")
    save_upper(folder / "upper.onnx")
    shape = ["batch", 3, 64, 64]
    save(
        folder / "picture.onnx",
        [helper.make_node("Neg", ["pixels"], ["negative"])],
        {"pixels": (TensorProto.FLOAT, shape)},
        {"negative": (TensorProto.FLOAT, shape)},
    )
    (folder / "broken.onnx").write_bytes(b"hello")
    with run_app([str(folder)], {}, http_address="127.0.0.1:0") as app:
        yield app


def text_of(served, model="a-classifier", addresses=ADDRESSES):
    """Return the text as if the server had this model alone."""
    registry = served.app._registry
    entry = registry.entry(model)

    class OneModel:
        def names(self):
            return [model]

        def entry(self, _):
            return entry

    return write_start_text(OneModel(), addresses)


def test_it_names_the_models_with_inputs_and_outputs(served):
    lines = served.app.start_text().splitlines()
    assert lines[0] == "Serving 6 models:"
    assert lines[1] == ("  a-classifier  x: FP32 [n, 4]  ->  label and probability: ant, bee, cat")
    assert lines[2] == "  fixed         x: FP32 [1, 2]  ->  twice: FP32 [1, 2]"
    assert lines[1 + MAX_MODELS] == "  ... and 2 more: neurona models"
    assert lines[2 + MAX_MODELS].startswith("  not served: broken/1: its file is not ONNX")
    assert "regressor" in text_of(served, "regressor")
    assert "->  total kg" in text_of(served, "regressor")


def test_it_says_where_they_are_served(served):
    lines = text_of(served).splitlines()
    assert len(lines) <= 10
    assert "gRPC        127.0.0.1:8001" in lines
    assert "Try it      http://127.0.0.1:8000/" in lines
    assert "Status      http://[::1]:8002/" in lines
    port = re.search(r"HTTP +http://127.0.0.1:(\d+)/", served.app.start_text())[1]
    assert port != "0"
    only_grpc = text_of(served, addresses=ServedAddresses("unix:/run/x"))
    assert "gRPC        unix:/run/x" in only_grpc
    assert "http" not in only_grpc


MODELS = ["a-classifier", "fixed", "picker", "regressor", "upper", "picture"]


@pytest.mark.parametrize("model", MODELS)
def test_the_call_in_python_works_when_pasted(served, model):
    text = text_of(served, model, ServedAddresses(served.address))
    program = shlex.split(text.splitlines()[-1])
    assert program[:2] == ["python", "-c"]
    printed = io.StringIO()
    exec(program[2], {"print": lambda answer: printed.write(repr(answer))})  # noqa: S102
    assert model in printed.getvalue()


def test_the_call_needs_no_shell_that_splits_it_otherwise(served):
    text = text_of(served, "picture", ServedAddresses(served.address))
    command = text.splitlines()[-1].replace("python", shlex.quote(sys.executable), 1)
    done = subprocess.run(  # noqa: S602  as a person pastes it
        command, shell=True, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "picture 1" in done.stdout


def test_the_call_of_curl_has_certificate_and_token(served):
    addresses = ServedAddresses("h:1", "h:2", certificate="my certificates/c.pem", has_tokens=True)
    call = text_of(served, addresses=addresses).splitlines()[-1]
    assert '"authorization: Bearer $NEURONA_TOKEN"' in call
    words = shlex.split(call)
    assert words[:4] == [
        *("curl", "https://h:2/v2/models/a-classifier/infer"),
        *("--cacert", "my certificates/c.pem"),
    ]
    (tensor,) = json.loads(words[words.index("-d") + 1])["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("x", "FP32", [1, 4])
    assert np.shape(tensor["data"]) == (1, 4)


def test_an_example_in_the_metadata_is_the_one_of_the_call(tmp_path):
    path = save(
        tmp_path / "sum.onnx",
        [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0)],
        {"x": (TensorProto.FLOAT, ["batch", 3])},
        {"total": (TensorProto.FLOAT, ["batch"])},
        {"axes": np.array([1])},
        ModelMetadata(inputs=[InputDescription(name="x", example="[1.5, null, 2]")]),
    )
    with run_app([str(path)], {}) as app:
        text = app.app.start_text()
        assert '[[1.5, float("nan"), 2]]' in shlex.split(text.splitlines()[-1])[2]


def test_without_a_model_it_says_how_one_is_loaded(tmp_path):
    path = save_classifier(tmp_path / "m.onnx")
    with run_app([str(path), "--model-control", "explicit"], {}) as app:
        assert app.app.start_text().startswith("No model is loaded yet: a call loads it.\n")


def test_it_is_printed_to_people_only(capfd):
    print_start_text("served\n", "json")
    assert capfd.readouterr().out == ""
    print_start_text("served\n", "human")
    assert capfd.readouterr().out == "served\n"
