"""L0_batcher and L0_optional_input: which requests share a run, and when it starts.

A model named `patient` waits a minute for its batch to fill: a response to it was not delayed.
"""

import time

import grpc
import numpy as np
import pytest
from support import triton_models
from support.triton_calls import wait_for

pytestmark = pytest.mark.triton("L0_batcher", cause="preferred_batch_size")
TYPES = ("FP32", ("FP32", "FP32"))
DELAY = 0.5
"""Seconds that the models named `delayed` wait."""

SOON = 20
"""Seconds after which a response was delayed."""


def batching(delay, preferred="[ 2, 6 ]", more=""):
    return (
        f"dynamic_batching {{ preferred_batch_size: {preferred} "
        f"max_queue_delay_microseconds: {round(delay * 1e6)} {more} }}"
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="module")
def server(serve, repository):
    for name, delay in (("delayed", DELAY), ("patient", 60)):
        folder = repository / name
        triton_models.save_add_sub(folder / "1" / "model.onnx", *TYPES, size="n")
        config = triton_models.add_sub_config(*TYPES, size=-1, more=batching(delay))
        triton_models.write_config(folder, config)
    folder = repository / "ordered"
    triton_models.save_add_sub(folder / "1" / "model.onnx", *TYPES)
    triton_models.write_config(
        folder,
        triton_models.add_sub_config(*TYPES, more=batching(0.1, more="preserve_ordering: true")),
    )
    folder = repository / "ragged"
    triton_models.save_add_sub(folder / "1" / "model.onnx", *TYPES, size="n")
    text = triton_models.add_sub_config(*TYPES, size=-1, more=batching(60))
    text = text.replace("dims: [ -1 ]  } ]", "dims: [ -1 ] allow_ragged_batch: true } ]", 2)
    triton_models.write_config(folder, text)
    folder = repository / "optional"
    triton_models.save_identities(
        folder / "1" / "model.onnx", "FP32", [["batch", 1]] * 2, optional=True
    )
    return serve(repository, "--threads", "1").triton


@pytest.fixture(scope="module")
def slow_server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("slow")
    for name, delay in (("busy", 60), ("busy_without_delay", 0)):
        triton_models.save_slow_identity(root / name / "1" / "model.onnx")
        config = triton_models.identities_config("FP32", [[1]], more=batching(delay))
        triton_models.write_config(root / name, config)
    return serve(root, "--threads", "1").triton


@pytest.fixture
def runs(server):
    """Returns the runs of a model since the test began, by their rows."""
    before = {statistics.name: server.runs(statistics.name) for statistics in server.statistics()}

    def runs(model):
        return {
            rows: count - before[model].get(rows, 0)
            for rows, count in server.runs(model).items()
            if count > before[model].get(rows, 0)
        }

    return runs


def start(server, model, rows, size=16, **options):
    left = np.arange(rows * size, dtype=np.float32).reshape(rows, size)
    inputs = {"INPUT0": ("FP32", left), "INPUT1": ("FP32", left * 2)}
    return server.start(model, inputs, timeout=SOON, **options)


def check(call, rows, size=16):
    sums, differences = (np.frombuffer(c, "<f4") for c in call.result().raw_output_contents)
    left = np.arange(rows * size)
    assert (sums == left * 3).all()
    assert (differences == -left).all()


def test_preferred_sizes_go_at_once(server, runs):
    model = "patient"
    for rows in (2, 6):
        check(start(server, model, rows), rows)
    assert runs(model) == {2: 1, 6: 1}


@pytest.mark.parametrize("rows", [1, 3])
def test_other_sizes_wait(server, runs, rows):
    model, begin = "delayed", time.monotonic()
    check(start(server, model, rows), rows)
    assert time.monotonic() - begin >= DELAY
    assert runs(model) == {rows: 1}


def test_a_size_above_the_preferred_ones_goes_at_once(server, runs):
    model = "patient"
    check(start(server, model, 7), 7)
    assert runs(model) == {7: 1}


@pytest.mark.triton("L0_batcher", declared="a request of another shape")
def test_multi_batch_different_shape(server, runs):
    model = "delayed"
    begin = time.monotonic()
    first = start(server, model, 1, 16)
    second = start(server, model, 3, 8)
    check(first, 1, 16)  # Triton: at once
    assert time.monotonic() - begin >= DELAY
    check(second, 3, 8)
    assert runs(model) == {1: 1, 3: 1}


@pytest.mark.triton("L0_batcher", declared="a request of another shape")
def test_multi_batch_not_preferred_different_shape(server, runs):
    model = "delayed"
    calls = [start(server, model, 1), start(server, model, 3)]
    last = start(server, model, 1, 8)
    check(calls[0], 1)  # Triton: at once
    check(calls[1], 3)
    check(last, 1, 8)
    assert runs(model) == {4: 1, 1: 1}


@pytest.mark.triton("L0_batcher", declared="a request of another shape")
def test_multi_batch_preferred_different_shape(server, runs):
    model = "patient"
    first = start(server, model, 1)
    time.sleep(0.1)
    others = [start(server, model, 1, 8), start(server, model, 5, 8)]
    check(others[0], 1, 8)
    check(others[1], 5, 8)
    assert not first.done()  # Triton: it was closed at once
    first.cancel()
    assert runs(model) == {6: 1}


def test_a_sum_between_preferred_sizes_waits(server, runs):
    model, begin = "delayed", time.monotonic()
    calls = [start(server, model, 1), start(server, model, 3)]
    check(calls[0], 1)
    check(calls[1], 3)
    assert time.monotonic() - begin >= DELAY
    assert runs(model) == {4: 1}


def test_a_batch_that_cannot_grow_goes_at_once(server, runs):
    model = "patient"
    first = start(server, model, 3)
    time.sleep(0.2)
    second = start(server, model, 7)
    check(first, 3)
    check(second, 7)
    assert runs(model) == {3: 1, 7: 1}


def test_of_a_sum_above_the_preferred_sizes_the_first_goes_at_once(server, runs):
    model = "patient"
    first = start(server, model, 3)
    time.sleep(0.2)
    second = start(server, model, 4)
    check(first, 3)
    time.sleep(0.2)
    assert not second.done()
    second.cancel()
    assert runs(model) == {3: 1}


@pytest.mark.parametrize(
    "outputs",
    [
        (["OUTPUT0"], ["OUTPUT0"]),
        (["OUTPUT1"], ["OUTPUT1"]),
        (["OUTPUT0"], ["OUTPUT1"]),
        (["OUTPUT1", "OUTPUT0"], ["OUTPUT0", "OUTPUT1"]),
    ],
    ids=["same_output0", "same_output1", "different_outputs", "different_output_order"],
)
def test_requests_of_different_outputs_share_a_batch(server, runs, outputs):
    model = "patient"
    calls = []
    for names in outputs:
        calls.append(start(server, model, 1, outputs=names))
        time.sleep(0.1)
    for call, names in zip(calls, outputs, strict=True):
        assert [output.name for output in call.result().outputs] == names
    assert runs(model) == {2: 1}


def test_one_that_does_not_fit_the_preferred_size_waits(server, runs):
    model = "patient"
    calls = [start(server, model, 1), start(server, model, 1)]
    for call in calls:
        check(call, 1)
    last = start(server, model, 1)
    time.sleep(0.3)
    assert not last.done()
    last.cancel()
    assert runs(model) == {2: 1}


def ask(server, model):
    inputs = {"INPUT0": ("FP32", np.ones((1, 1), np.float32))}
    return server.start(model, inputs, timeout=SOON)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["busy", "busy_without_delay"])
def test_what_waits_for_a_run_forms_the_largest_preferred_size(slow_server, model):
    first = [ask(slow_server, model) for _ in range(2)]
    wait_for(lambda: any(call.running() for call in first))
    time.sleep(0.05)
    rest = [ask(slow_server, model) for _ in range(6)]
    for call in [*first, *rest]:
        assert call.result().raw_output_contents[0] == np.float32(1).tobytes()
    runs = slow_server.runs(model)
    assert sum(rows * count for rows, count in runs.items()) == 8
    assert max(runs) >= 6


def test_preserve_ordering(server):
    ends = []
    calls = []
    for rows in (4, 3, 1, 2, 5, 6, 1, 1):
        call = start(server, "ordered", rows)
        call.add_done_callback(ends.append)
        calls.append((rows, call))
    for rows, call in calls:
        check(call, rows)
    wait_for(lambda: len(ends) == len(calls))
    assert ends == [call for _, call in calls]


@pytest.mark.triton("L0_batcher", declared="ragged batches")
def test_ragged_batches_run_apart(server, runs):
    calls = [(16, start(server, "ragged", 2, 16)), (8, start(server, "ragged", 2, 8))]
    for size, call in calls:
        check(call, 2, size)
    assert runs("ragged") == {2: 2}


def test_statistics_of_batches(server):
    model = "patient"
    before = server.statistics(model)[0]
    calls = [start(server, model, 1), start(server, model, 1)]
    for call in calls:
        check(call, 1)
    after = server.statistics(model)[0]
    assert after.inference_count - before.inference_count == 2
    assert after.execution_count - before.execution_count == 1


OPTIONAL = {
    "all": [("INPUT0", "INPUT1")] * 3,
    "same": [("INPUT1",)] * 3,
    "mix": [("INPUT0",), ("INPUT1",), ("INPUT0",), ("INPUT1",)],
    "mix_2": [("INPUT0",), ("INPUT0", "INPUT1"), ("INPUT0",), ("INPUT0", "INPUT1")],
}


@pytest.mark.triton("L0_optional_input")
@pytest.mark.parametrize("sets", OPTIONAL.values(), ids=OPTIONAL)
def test_optional_inputs(server, sets):
    calls = []
    for number, names in enumerate(sets):
        value = np.full((1, 1), number + 1, np.float32)
        inputs = dict.fromkeys(names, ("FP32", value))
        outputs = [name.replace("IN", "OUT") for name in names]
        calls.append((number, server.start("optional", inputs, outputs=outputs)))
    for number, call in calls:
        for content in call.result().raw_output_contents:
            assert content == np.float32(number + 1).tobytes()


def test_cancelled_requests_leave_their_batch(server, runs):
    model = "patient"
    first = start(server, model, 1)
    time.sleep(0.2)
    first.cancel()
    assert first.code() == grpc.StatusCode.CANCELLED
    time.sleep(0.2)
    second = start(server, model, 2)
    check(second, 2)
    assert runs(model) == {2: 1}
