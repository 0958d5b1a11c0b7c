"""L0_input_validation, L0_infer: requests that do not fit their model."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import onnx_models, triton_models
from support.triton_calls import expect_error, make_request

pytestmark = pytest.mark.triton("L0_input_validation")
BAD = "INVALID_ARGUMENT"


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    kind = TensorProto.FLOAT
    for name, defaults in (("required", []), ("optional", ["INPUT3"])):
        inputs = [f"INPUT{i}" for i in range(3)] + defaults
        onnx_models.save(
            root / name / "1" / "model.onnx",
            [helper.make_node("Sum", inputs, ["OUTPUT0"])],
            {i: (kind, ["batch", 8]) for i in inputs},
            {"OUTPUT0": (kind, ["batch", 8])},
            {i: np.zeros((1, 8), np.float32) for i in defaults},
        )
    onnx_models.save(
        root / "all_optional" / "1" / "model.onnx",
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        {"INPUT0": (kind, [1, 8])},
        {"OUTPUT0": (kind, [1, 8])},
        {"INPUT0": np.zeros((1, 8), np.float32)},
    )
    triton_models.save_identities(root / "identity" / "1" / "model.onnx", "FP32", [["batch", 8]])
    triton_models.write_config(
        root / "identity", triton_models.identities_config("FP32", [[8]], max_batch_size=8)
    )
    return serve(root).triton


def floats(*shape):
    return ("FP32", np.ones(shape, np.float32))


def inputs(count):
    return {f"INPUT{i}": floats(1, 8) for i in range(count)}


@pytest.mark.parametrize(
    ("model", "count", "text"),
    [
        (
            "required",
            0,
            "expected 3 inputs but got 0 inputs for model 'required'. Got input(s) [], but missing "
            "required input(s) ['INPUT0','INPUT1','INPUT2']. Please provide all required input(s).",
        ),
        (
            "required",
            1,
            "expected 3 inputs but got 1 inputs for model 'required'. Got input(s) ['INPUT0'], but "
            "missing required input(s) ['INPUT1','INPUT2']. Please provide all required input(s).",
        ),
        (
            "optional",
            0,
            "expected number of inputs between 3 and 4 but got 0 inputs for model 'optional'. Got "
            "input(s) [], but missing required input(s) ['INPUT0','INPUT1','INPUT2']. Please "
            "provide all required input(s).",
        ),
        (
            "optional",
            1,
            "expected number of inputs between 3 and 4 but got 1 inputs for model 'optional'. Got "
            "input(s) ['INPUT0'], but missing required input(s) ['INPUT1','INPUT2']. Please "
            "provide all required input(s).",
        ),
    ],
)
def test_missing_inputs(server, model, count, text):
    expect_error(lambda: server.infer(model, inputs(count)), BAD, text)


def test_a_model_with_optional_inputs_only(server):
    assert [*server.infer("all_optional", {}).arrays] == ["OUTPUT0"]


def test_optional_inputs(server):
    values = {**inputs(3), "INPUT3": floats(1, 8)}
    assert (server.infer("optional", values).arrays["OUTPUT0"] == 4).all()
    assert (server.infer("optional", inputs(3)).arrays["OUTPUT0"] == 3).all()


def test_more_data_than_the_shape(server):
    request = make_request("identity", {"INPUT0": floats(1, 10)})
    request.inputs[0].shape[:] = [1, 8]
    expect_error(
        lambda: server.stub.ModelInfer(request, timeout=30),
        BAD,
        "input byte size mismatch for input 'INPUT0' for model 'identity'. Expected 32, got 40",
    )


def test_less_data_than_the_shape(server):
    request = make_request("identity", {"INPUT0": floats(1, 6)})
    request.inputs[0].shape[:] = [1, 8]
    expect_error(
        lambda: server.stub.ModelInfer(request, timeout=30),
        BAD,
        "input byte size mismatch for input 'INPUT0' for model 'identity'. Expected 32, got 24",
    )


@pytest.mark.parametrize("shape", [(1, 7), (8,), (1, 8, 1), ()])
def test_wrong_shapes(server, shape):
    expect_error(
        lambda: server.infer("identity", {"INPUT0": floats(*shape)}),
        BAD,
        "unexpected shape for input 'INPUT0' for model 'identity'. Expected [-1,8], got "
        f"[{','.join(map(str, shape))}]",
    )


@pytest.mark.triton("L0_input_validation", declared="more rows than max_batch_size")
def test_more_rows_than_max_batch_size(server):
    """Triton: inference request batch-size must be <= 8 for 'identity'."""
    response = server.infer("identity", {"INPUT0": floats(9, 8)})
    assert response.arrays["OUTPUT0"].shape == (9, 8)


def test_wrong_datatype(server):
    expect_error(
        lambda: server.infer("identity", {"INPUT0": ("INT32", np.ones((1, 8), np.int32))}),
        BAD,
        "inference input 'INPUT0' data-type is 'INT32', but model 'identity' expects 'FP32'",
    )


def test_unknown_input(server):
    expect_error(
        lambda: server.infer("identity", {"INPUT": floats(1, 8)}),
        BAD,
        "unexpected inference input 'INPUT' for model 'identity'",
    )


def test_unknown_output(server):
    expect_error(
        lambda: server.infer("identity", inputs(1), outputs=["OUTPUT"]),
        BAD,
        "unexpected inference output 'OUTPUT' for model 'identity'",
    )


def test_raw_and_typed_contents(server):
    request = make_request("identity", inputs(1))
    request.inputs[0].contents.fp32_contents.extend([1.0] * 8)
    expect_error(
        lambda: server.stub.ModelInfer(request, timeout=30),
        BAD,
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for "
        "model 'identity'",
    )


@pytest.mark.parametrize(
    ("model", "version", "text"),
    [
        ("nobody", "", "Request for unknown model: 'nobody' is not found"),
        ("identity", "99", "Request for unknown model: 'identity' version 99 is not"),
    ],
)
def test_unknown_models_and_versions(server, model, version, text):
    expect_error(lambda: server.infer(model, inputs(1), version=version), "NOT_FOUND", text)


@pytest.mark.triton("L0_input_validation", declared="`model_version`")
@pytest.mark.parametrize("version", ["x", "-7"])
def test_versions_that_are_no_number(server, version):
    """Triton: failed to get model version from specified version string '-7'."""
    expect_error(
        lambda: server.infer("identity", inputs(1), version=version),
        "NOT_FOUND",
        f"Request for unknown model: 'identity' version '{version}' is not found",
    )
