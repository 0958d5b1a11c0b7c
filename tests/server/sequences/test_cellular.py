"""Sequences that run in chunks: whatever joins or leaves, answers are those of running alone."""

import math
import random
import threading
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support import cuda_stand_ins
from support.recurrent_models import TOKENS, RecurrentModel, save_recurrent

from neurona_protos.prediction_pb2 import SequenceMethod
from neurona_server.batching import batcher as batcher_module
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.request import Request
from neurona_server.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    ModelFailedError,
    QueueFullError,
    UnavailableError,
)
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.onnx import session as session_module
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.sequences.cellular import SequenceSlots
from neurona_server.sequences.form import LENGTHS, STATE
from neurona_server.telemetry.metrics import Metrics

CELLULAR = SequenceMethod.SEQUENCE_METHOD_CELLULAR
POLICY = BatchPolicy(max_rows=8)
CPU = RuntimeOptions()
MODELS = {
    "lstm": RecurrentModel(answer="both", layers=2),
    "gru": RecurrentModel("GRU"),
    "rnn": RecurrentModel("RNN", answer="steps", tokens=True),
}


class SequenceRequest(Request):
    """A request that keeps what it was finished with."""

    def __init__(self, model, inputs, **options):
        named = {name: array for name, array in inputs.items() if name not in (STATE, LENGTHS)}
        specs = {spec.name: spec for spec in model.signature.inputs}
        types = {name: (specs[name].dtype, array.shape) for name, array in named.items()}
        rows = model.signature.check(types)
        super().__init__(inputs, rows, model.signature.group(types), **options)
        self.ends = []
        self.ended = threading.Event()

    def finish(self, outputs, error):
        self.ends.append(error if outputs is None else [np.array(one) for one in outputs])
        self.ended.set()

    def result(self, seconds=20):
        assert self.ended.wait(seconds)
        assert len(self.ends) == 1
        if isinstance(self.ends[0], Exception):
            raise self.ends[0]
        return self.ends[0]


@pytest.fixture
def load(tmp_path):
    models = []

    def load(model=MODELS["lstm"], *, starts=True, policy=POLICY, runtime=CPU, **settings):
        path = save_recurrent(tmp_path / f"{len(models)}" / "model.onnx", model)
        settings = ModelSettings(**{"sequence_batching": "cellular"} | settings)
        source = ModelSource("m", 1, path, settings)
        loaded = Model(source, ModelOptions(policy, runtime=runtime), Metrics(CollectorRegistry()))
        models.append(loaded)
        if starts:
            loaded.start()
        return loaded

    yield load
    for model in models:
        model.drain(5.0)
        model.close()


def make_inputs(model, rows, steps, seed):
    return model.make_inputs(rows, steps, seed)


def assert_equal(outputs, expected):
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.shape == wanted.shape
        np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5)


def alone(model, inputs):
    return [np.array(one) for one in model.sessions[0].run(inputs)]


@pytest.mark.parametrize("name", MODELS)
def test_sequences_of_any_length_have_the_answers_of_running_alone(load, name):
    model = load(MODELS[name])
    assert model.sequence_method == CELLULAR
    assert model.chunk_steps
    lengths = [1, 300, 7, 64, 65, 2, 129, 500, 33, 1, 40, 8, 200]
    rows = [1, 1, 3, 1, 8, 2, 1, 1, 1, 20, 1, 1, 4]
    requests = [
        SequenceRequest(model, MODELS[name].make_inputs(*shape, seed))
        for seed, shape in enumerate(zip(rows, lengths, strict=True))
    ]
    for request in requests:
        model.batcher.submit(request)
    for request in requests:
        assert_equal(request.result(), alone(model, request.inputs))


def test_a_state_continues_a_sequence_and_no_other_row_sees_it(load):
    recurrent = MODELS["lstm"]
    model = load()
    size = model.sequences.state_size
    whole = recurrent.make_inputs(2, 90, 5)
    expected = alone(model, whole)
    others = [SequenceRequest(model, recurrent.make_inputs(1, 70 + i, i)) for i in range(6)]
    state = np.zeros((2, size), np.float32)
    outputs = []
    for start, stop in ((0, 1), (1, 30), (30, 31), (31, 90)):
        inputs = {"steps": whole["steps"][:, start:stop], STATE: state}
        request = SequenceRequest(model, inputs)
        model.batcher.submit(request)
        if others:
            model.batcher.submit(others.pop())
        *answers, state = request.result()
        outputs.append(answers)
    assert_equal([outputs[-1][0]], expected[:1])
    assert_equal([np.concatenate([one[1] for one in outputs], axis=1)], expected[1:])


def test_a_state_of_nan_reaches_no_request_that_gets_its_slot(load):
    model = load()
    size = model.sequences.state_size
    for seed in range(3):
        state = np.full((8, size), np.nan, np.float32)
        inputs = {**MODELS["lstm"].make_inputs(8, 70, seed), STATE: state}
        poisoned = SequenceRequest(model, inputs)
        model.batcher.submit(poisoned)
        clean = SequenceRequest(model, MODELS["lstm"].make_inputs(8, 3, seed + 10))
        model.batcher.submit(clean)
        assert_equal(clean.result(), alone(model, clean.inputs))
        assert poisoned.ended.wait(20)
        again = SequenceRequest(model, MODELS["lstm"].make_inputs(40, 5, seed + 20))
        model.batcher.submit(again)
        assert_equal(again.result(), alone(model, again.inputs))


class CombinedRequest(SequenceRequest):
    """Two callers' requests in one, as those of a stream are combined."""

    count = 2

    def __init__(self, model, inputs, **options):
        super().__init__(model, inputs, **options)
        self.model, self.halves = model, []

    def halve(self):
        if not self.withdraw():
            return ()
        middle = self.rows // 2
        for part in (slice(middle), slice(middle, None)):
            half = SequenceRequest(self.model, {k: a[part] for k, a in self.inputs.items()})
            half.queued_at, half.dequeued_at = self.queued_at, self.dequeued_at
            self.halves.append(half)
        return self.halves


def test_a_sequence_that_makes_a_run_fail_fails_alone(load):
    model = load(MODELS["rnn"])
    good = [SequenceRequest(model, MODELS["rnn"].make_inputs(1, 40 + 9 * i, i)) for i in range(9)]
    bad = MODELS["rnn"].make_inputs(1, 150, 7)
    bad["tokens"][0, 100] = TOKENS + 5  # found in a later chunk, when the others are in progress
    bad = SequenceRequest(model, bad)
    combined = MODELS["rnn"].make_inputs(4, 120, 8)
    combined["tokens"][3, 70] = TOKENS + 5
    combined = CombinedRequest(model, combined)
    for request in (*good[:5], bad, combined, *good[5:]):
        model.batcher.submit(request)
    with pytest.raises((ModelFailedError, InvalidArgumentError)):
        bad.result()
    for request in good:
        assert_equal(request.result(), alone(model, request.inputs))
    first, second = combined.halves
    assert_equal(first.result(), alone(model, first.inputs))
    with pytest.raises((ModelFailedError, InvalidArgumentError)):
        second.result()
    assert combined.ends == []


@pytest.mark.parametrize("seed", range(4))
def test_any_interleaving_gives_the_answers_of_running_alone(load, seed):
    """Joins, cancellations, deadlines, failures, interrupted runs, states and priorities."""
    choose = random.Random(seed)  # noqa: S311  a test
    recurrent = MODELS["rnn" if seed % 2 else "lstm"]
    model = load(recurrent, policy=BatchPolicy(max_rows=choose.choice((1, 4, 16))))
    size = model.sequences.state_size
    requests, wrong, failing = [], set(), set()
    for number in range(150):
        rows = choose.choice((1, 1, 1, 2, 5))
        steps = min(int(math.exp(choose.gauss(math.log(25), 1.2))) + 1, 400)
        inputs = recurrent.make_inputs(rows, steps, number)
        if recurrent.tokens and choose.random() < 0.05:
            inputs["tokens"][0, choose.randrange(steps)] = TOKENS + 1
            wrong.add(number)
        if choose.random() < 0.3:
            state = np.random.default_rng(number).standard_normal((rows, size))
            inputs[STATE] = state.astype(np.float32)
        deadline = math.inf
        if choose.random() < 0.1:
            deadline = time.monotonic() + choose.random() * 0.02
        priority = choose.choice(list(Priority))
        request = SequenceRequest(model, inputs, deadline=deadline, priority=priority)
        try:
            model.batcher.submit(request)
        except (QueueFullError, DeadlineExceededError):  # its deadline could not be met
            continue
        requests.append(request)
        if number in wrong:
            failing.add(request)
        if choose.random() < 0.2:
            choose.choice(requests).cancel(CancelledError("cancelled by the caller"))
        if choose.random() < 0.05:
            for batch in list(model.batcher._active_batches):
                batch.interrupt()  # as the watchdog does
        if choose.random() < 0.3:
            time.sleep(choose.random() * 0.002)
    succeeded = 0
    for request in requests:
        try:
            outputs = request.result()
        except (CancelledError, DeadlineExceededError):
            continue
        except (ModelFailedError, InvalidArgumentError):
            assert request in failing
            continue
        assert request not in failing
        expected = alone(model, request.inputs)
        assert_equal(outputs, expected)
        succeeded += 1
    assert succeeded > 50
    assert all(len(request.ends) == 1 for request in requests)


def test_a_short_sequence_does_not_wait_for_long_ones(load):
    """It joins those that are in progress, also when these fill a run and more wait."""
    model = load(policy=BatchPolicy(max_rows=2))
    long = [SequenceRequest(model, MODELS["lstm"].make_inputs(1, 40_000, i)) for i in range(4)]
    for request in long:
        model.batcher.submit(request)
    deadline = time.monotonic() + 10
    while model.batcher.queue.rows and time.monotonic() < deadline:
        time.sleep(0.001)
    short = SequenceRequest(model, MODELS["lstm"].make_inputs(1, 5, 9))
    model.batcher.submit(short)
    assert_equal(short.result(), alone(model, short.inputs))
    assert not any(request.ends for request in long)
    for request in long:
        request.cancel(CancelledError("enough"))


def test_draining_finishes_sequences_that_are_under_way(load):
    model = load()
    requests = [SequenceRequest(model, MODELS["lstm"].make_inputs(1, 900, i)) for i in range(20)]
    for request in requests:
        model.batcher.submit(request)
    assert model.drain(20.0)
    for request in requests:
        assert_equal(request.result(), alone(model, request.inputs))
    stuck = load()
    request = SequenceRequest(stuck, MODELS["lstm"].make_inputs(1, 200_000, 1))
    stuck.batcher.submit(request)
    assert stuck.drain(0.01)
    with pytest.raises(UnavailableError):
        request.result()


def test_a_request_that_cannot_share_the_slots_runs_by_itself(load):
    """Rows of different lengths in one request: these are known as a whole only."""
    model = load()
    inputs = MODELS["lstm"].make_inputs(3, 20, 1)
    request = SequenceRequest(model, {**inputs, LENGTHS: np.array([20, 3, 9], np.int32)})
    other = SequenceRequest(model, MODELS["lstm"].make_inputs(1, 300, 2))
    model.batcher.submit(other)
    model.batcher.submit(request)
    last, _ = request.result()
    for row, steps in enumerate((20, 3, 9)):
        expected, _ = alone(model, {"steps": inputs["steps"][row : row + 1, :steps]})
        assert_equal([last[row : row + 1]], [expected])
    assert_equal(other.result(), alone(model, other.inputs))


@pytest.mark.parametrize(
    ("recurrent", "option", "method", "reason"),
    [
        (RecurrentModel(), "ragged", "RAGGED", "by the option"),
        (RecurrentModel(), "equal-lengths", "EQUAL_LENGTHS", "by the option"),
        (RecurrentModel(), "cellular", "CELLULAR", "by the option"),
        (RecurrentModel(), "auto", None, "of the rate of ragged ones"),
        (RecurrentModel(direction="reverse"), "cellular", "RAGGED", "not cellular"),
        (RecurrentModel(lengths=True), "cellular", "RAGGED", "callers send lengths"),
    ],
)
def test_the_method_is_that_of_the_option_where_it_is_possible(
    load, recurrent, option, method, reason
):
    model = load(recurrent, sequence_batching=option)
    chosen = SequenceMethod.Name(model.sequence_method).removeprefix("SEQUENCE_METHOD_")
    assert chosen == method or (method is None and chosen in ("RAGGED", "CELLULAR"))
    assert reason in model.sequence_reason
    assert bool(model.chunk_steps) == (chosen == "CELLULAR")
    requests = [
        SequenceRequest(model, recurrent.make_inputs(1, steps, steps)) for steps in (3, 30, 7, 3)
    ]
    for request in requests:
        model.batcher.submit(request)
    for request in requests:
        assert_equal(request.result(), alone(model, request.inputs))


def test_the_thread_of_the_transport_runs_whole_sequences_beside_the_slots(load):
    model = load(inline="always")
    assert model.batcher.inline
    assert not load(inline=None).batcher.inline
    recurrent = MODELS["lstm"]
    for steps in (6, 50, 400):  # runs of a length that was not measured are left to the instances
        measured = SequenceRequest(model, recurrent.make_inputs(8, steps, 1))
        model.batcher.submit(measured)
        measured.result()
    deferred, requests = [], []
    for number in range(60):
        inputs = recurrent.make_inputs(1, 1 + number * 7 % 200, number)
        request = SequenceRequest(model, inputs)
        model.batcher.submit(request, deferred.append if number % 2 else None)
        requests.append(request)
    for call in deferred:
        while call():
            pass
    for request in requests:
        assert_equal(request.result(), alone(model, request.inputs))


def test_sequences_beyond_a_run_are_left_to_an_idle_instance(load):
    model = load(policy=BatchPolicy(max_rows=2), instances=2)
    batcher = model.batcher
    end = time.monotonic() + 10
    while len(batcher._slots) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    requests = [SequenceRequest(model, MODELS["lstm"].make_inputs(1, 200_000, i)) for i in range(4)]
    for request in requests:
        batcher.queue.put([request], notify=False)
    batcher.queue.notify()
    seen = []
    while (rows := [slots.rows for slots in batcher._slots]) != [2, 2] and time.monotonic() < end:
        seen.append(rows)
        time.sleep(0.001)
    assert rows == [2, 2], seen[:9]
    for request in requests:
        request.cancel(CancelledError("enough"))


def test_an_instance_goes_on_after_a_lack_of_memory_between_two_runs(load, monkeypatch):
    model = load()
    next_requests = SequenceSlots.next_requests

    def find_no_memory(slots, max_rows):
        monkeypatch.setattr(SequenceSlots, "next_requests", next_requests)
        raise MemoryError

    monkeypatch.setattr(SequenceSlots, "next_requests", find_no_memory)
    for expected in (ModelFailedError, None):
        request = SequenceRequest(model, MODELS["lstm"].make_inputs(1, 20, 1))
        model.batcher.submit(request)
        if expected is None:
            assert_equal(request.result(), alone(model, request.inputs))
        else:
            with pytest.raises(expected):
                request.result()


ILLEGAL_ADDRESS = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running LSTM node. "
    "Name:'m' Status Message: CUDA failure 700: an illegal memory access was encountered ; GPU=0 "
)


def test_sequences_of_a_device_that_is_lost_go_on_with_another_one(load, cuda_stub, monkeypatch):
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=2)
    monkeypatch.setattr(session_module, "_abandoned_sessions", [])
    run, runs, lost = Session._run, [], []

    def run_or_fail(session, *arguments):
        runs.append(session.device.label)
        if session.device.label in lost:
            raise RuntimeError(ILLEGAL_ADDRESS)
        return run(session, *arguments)

    monkeypatch.setattr(Session, "_run", run_or_fail)
    options = RuntimeOptions(threads=1, devices="all")
    model = load(policy=BatchPolicy(max_rows=4), runtime=options)
    inputs = [MODELS["lstm"].make_inputs(1, 900 + number, number) for number in range(40)]
    expected = [alone(model, one) for one in inputs]
    requests = [SequenceRequest(model, one) for one in inputs]
    runs.clear()
    for request in requests:
        model.batcher.submit(request)
    while runs.count("cuda:0") < 10:
        time.sleep(0.001)
    lost.append("cuda:0")
    for request, wanted in zip(requests, expected, strict=True):
        assert_equal(request.result(), wanted)
    assert runs[-1] == "cuda:1"


def test_sequences_in_the_slots_of_an_instance_that_is_abandoned_run_elsewhere(
    load, cuda_stub, monkeypatch
):
    """Its run is that of a request which has no place in the slots, and does not return."""
    cuda_stand_ins.install(monkeypatch, cuda_stub, devices=2)
    monkeypatch.setattr(session_module, "_abandoned_sessions", [])
    monkeypatch.setattr(batcher_module, "ABANDON_SECONDS", 0.05)
    run, released, stuck = Session._run, threading.Event(), []

    def run_or_hang(session, runtime_session, inputs, *arguments):
        if LENGTHS in inputs and STATE not in inputs and not stuck:
            stuck.append(session.device.label)
            model.batcher._scheduler.mark_lost(session.device.label, "for this test")
            assert released.wait(20)
        return run(session, runtime_session, inputs, *arguments)

    options = RuntimeOptions(threads=1, devices="all")
    model = load(policy=BatchPolicy(max_rows=4), runtime=options)
    inputs = [MODELS["lstm"].make_inputs(1, 3000, number) for number in range(40)]
    expected = [alone(model, one) for one in inputs]
    monkeypatch.setattr(Session, "_run", run_or_hang)
    requests = [SequenceRequest(model, one) for one in inputs]
    for request in requests:
        model.batcher.submit(request)
    lengths = np.array([20, 3], np.int32)
    ragged = SequenceRequest(model, {**MODELS["lstm"].make_inputs(2, 20, 1), LENGTHS: lengths})
    model.batcher.submit(ragged)
    end = time.monotonic() + 10
    while not all(one.ended.is_set() for one in (*requests, ragged)) and time.monotonic() < end:
        model.batcher.check_runs()  # as the watchdog does
        time.sleep(0.01)
    for request, wanted in zip(requests, expected, strict=True):
        assert_equal(request.result(0), wanted)
    assert ragged.result(0)
    assert len(stuck) == 1
    released.set()
