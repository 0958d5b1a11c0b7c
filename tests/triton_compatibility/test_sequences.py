"""What Triton's tests of sequences check, for sequences of sums.

The suites are L0_sequence_batcher, L0_sequence_corrid_batcher and L0_implicit_state.
"""

import time

import pytest
from support import stateful_models
from support.triton_calls import expect_error

VALUES = [1, 2, 3, 4, 5]
BATCHER = pytest.mark.triton("L0_sequence_batcher", cause="sequences")
IMPLICIT = pytest.mark.triton("L0_implicit_state", cause="sequences")


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    stateful_models.save_accumulator(root / "batched")
    stateful_models.save_accumulator(root / "nobatch", max_batch_size=0)
    stateful_models.save_accumulator(
        root / "shown",
        max_batch_size=0,
        more='output [ { name: "NEXT" data_type: TYPE_INT32 dims: [ 1 ] } ]',
    )
    stateful_models.save_accumulator(
        root / "short",
        batching=f"max_sequence_idle_microseconds: 100000 {stateful_models.flag('START')} "
        f"{stateful_models.state()}",
    )
    stateful_models.save_simple_dyna_sequence(root / "numbered")
    return serve(root, "--threads", "1")


@pytest.fixture
def send(server):
    """Sends one step, and returns OUTPUT."""

    def send(value, sequence_id, start=False, end=False, model="batched", **options):
        row = [value] if model in ("nobatch", "shown") else [[value]]
        parameters = {"sequence_start": start, "sequence_end": end}
        if sequence_id is not None:
            parameters["sequence_id"] = sequence_id
        response = server.triton.infer(
            model, {"INPUT": ("INT32", row)}, parameters=parameters, **options
        )
        return response.arrays["OUTPUT"].item()

    return send


@BATCHER
@pytest.mark.parametrize("model", ["batched", "nobatch"])
@pytest.mark.parametrize("sequence_id", [5, "5", "a-b"])
def test_simple_sequence(send, model, sequence_id):
    last = len(VALUES) - 1
    results = [
        send(value, sequence_id, index == 0, index == last, model)
        for index, value in enumerate(VALUES)
    ]
    assert results == [1, 3, 6, 10, 15]


@BATCHER
def test_length1_sequence(send):
    assert send(42, 11, start=True, end=True) == 42


@BATCHER
def test_no_correlation_id(send):
    for start in (True, False):
        expect_error(
            lambda start=start: send(1, None, start=start),
            "INVALID_ARGUMENT",
            "inference request to model 'batched' must specify a non-zero or non-empty "
            "correlation ID",
        )


@BATCHER
def test_no_sequence_start(send):
    expect_error(
        lambda: send(1, 37469245),
        "INVALID_ARGUMENT",
        "inference request for sequence 37469245 to model 'batched' must specify the START flag "
        "on the first request of the sequence",
    )


@BATCHER
def test_no_sequence_start_after_an_end(send):
    send(1, 3, start=True)
    send(2, 3, end=True)
    expect_error(lambda: send(3, 3), "INVALID_ARGUMENT", "must specify the START flag")


@pytest.mark.triton("L0_sequence_batcher", declared="a sequence that begins twice")
def test_no_sequence_end(send):
    send(1, 4, start=True)
    expect_error(lambda: send(1, 4, start=True), "ALREADY_EXISTS", "has the START flag")
    assert send(2, 4, end=True) == 3


@pytest.mark.triton("L0_sequence_batcher", declared="a batch size above 1 in a sequence")
def test_batch_size(server):
    response = server.triton.infer(
        "batched",
        {"INPUT": ("INT32", [[1], [2]])},
        parameters={"sequence_id": 6, "sequence_start": True, "sequence_end": True},
    )
    assert response.arrays["OUTPUT"].tolist() == [[1], [2]]


@BATCHER
def test_idle_sequence(send):
    """A sequence without a request for max_sequence_idle_microseconds is gone."""
    send(1, 8, start=True, model="short")
    time.sleep(0.5)
    expect_error(
        lambda: send(1, 8, model="short"), "INVALID_ARGUMENT", "must specify the START flag"
    )


@BATCHER
def test_ids_in_the_model(send):
    """Control CORRID, as in L0_sequence_corrid_batcher."""
    assert send(1, 99, start=True, model="numbered") == 2
    assert send(1, 99, end=True, model="numbered") == 100


@IMPLICIT
def test_request_output_not_allowed(send):
    expect_error(
        lambda: send(1, 1, True, True, "nobatch", outputs=["NEXT"]),
        "INVALID_ARGUMENT",
        "unexpected inference output 'NEXT' for model",
    )


@IMPLICIT
def test_request_output(server):
    response = server.triton.infer(
        "shown",
        {"INPUT": ("INT32", [1])},
        outputs=["NEXT", "OUTPUT"],
        parameters={"sequence_id": 1, "sequence_start": True, "sequence_end": True},
    )
    assert {name: array.tolist() for name, array in response.arrays.items()} == {
        "NEXT": [1],
        "OUTPUT": [1],
    }


@IMPLICIT
def test_the_config_has_the_states(server):
    batching = server.triton.config("batched").sequence_batching
    assert [state.input_name for state in batching.state] == ["PAST"]
    assert [control.name for control in batching.control_input] == ["START"]
