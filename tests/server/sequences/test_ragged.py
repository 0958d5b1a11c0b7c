"""Batches of sequences of different lengths: real models, whose answers are those of each alone."""

import gc
import time
import weakref

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.fakes import FakeRequest
from support.recurrent_models import FEATURES, RecurrentModel, save_recurrent

from neurona_server.batching.batch import BatchError, RowSlice
from neurona_server.batching.policy import BatchPolicy
from neurona_server.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    InvalidValueError,
)
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.sequences.cost import SequenceCostModel
from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm
from neurona_server.sequences.ragged import LengthGroup, LengthGrouper, RaggedJoiner, bucket_end
from neurona_server.telemetry.metrics import Metrics

FORM = SequenceForm({"steps": 1}, {1: 1}, state_size=2)
BASE = ((3,),)

MODELS = {
    "lstm": RecurrentModel(answer="both", read_out="gather"),
    "bidirectional": RecurrentModel(
        "GRU", layers=2, direction="bidirectional", answer="both", read_out="final"
    ),
    "lengths": RecurrentModel("RNN", lengths=True, answer="both", read_out="gather"),
    "tokens": RecurrentModel("LSTM", layers=2, tokens=True, answer="last", read_out="slice"),
}


@pytest.mark.parametrize(
    ("steps", "end"),
    [(1, 1), (2, 2), (7, 7), (8, 8), (9, 9), (14, 15), (15, 15), (18, 19), (400, 431)],
)
def test_length_buckets_end_at_close_numbers(steps, end):
    assert bucket_end(steps) == end


def test_no_sequence_is_padded_by_more_than_a_tenth_in_its_bucket():
    assert all(bucket_end(steps) <= 1.1 * steps + 0.5 for steps in range(1, 5000))


class TestGroups:
    def test_are_similar_lengths_of_equal_other_sizes(self):
        group = LengthGrouper(FORM, ["steps"])
        assert group({"steps": (1, (2, 14, 3))}) == group({"steps": (1, (5, 15, 3))})
        assert group({"steps": (1, (2, 14, 3))}) == LengthGroup(BASE, 15)
        assert group({"steps": (1, (2, 14, 4))}) != group({"steps": (1, (2, 14, 3))})

    def test_are_equal_lengths_where_no_others_can_share_a_run(self):
        group = LengthGrouper(FORM, ["steps"], is_mixed=False)
        assert group({"steps": (1, (2, 14, 3))}) == LengthGroup(BASE, 14)

    def test_have_equal_shapes_if_sequences_of_a_request_differ_in_length(self):
        group = LengthGrouper(SequenceForm({"source": 1, "target": 1}), ["source", "target"])
        assert group({"source": (1, (1, 5)), "target": (1, (1, 5))}) == LengthGroup(((), ()), 5)
        assert group({"source": (1, (1, 5)), "target": (1, (1, 4))}) == ((5,), (4,))

    def test_a_sequence_without_a_step_is_an_error(self):
        with pytest.raises(InvalidArgumentError, match=r"\[2, 0, 3\]: no step \(expected 1 step"):
            LengthGrouper(FORM, ["steps"])({"steps": (1, (2, 0, 3))})


def make_request(steps, rows=1, value=1.0, state=None, **inputs):
    arrays = {"steps": np.full((rows, steps, 3), value, np.float32), **inputs}
    arrays["steps"] += np.arange(steps, dtype=np.float32)[:, None]
    if state is not None:
        arrays[STATE] = np.full((rows, 2), state, np.float32)
    return FakeRequest(arrays, rows, LengthGroup(BASE, bucket_end(steps)))


class TestJoiner:
    def test_pads_with_copies_of_the_last_step_and_gives_lengths(self):
        joined = RaggedJoiner(FORM).join([make_request(2), make_request(4, 2)], 5, None)
        assert joined["steps"].shape == (5, 4, 3)
        assert joined["steps"][0, :, 0].tolist() == [1, 2, 2, 2]
        assert joined["steps"][4, :, 0].tolist() == [1, 2, 3, 4]
        assert joined[LENGTHS].tolist() == [2, 4, 4, 4, 4]
        assert joined[LENGTHS].dtype == np.int32
        assert STATE not in joined

    def test_equal_lengths_need_none(self):
        joined = RaggedJoiner(FORM).join([make_request(4), make_request(4)], 2, None)
        assert {*joined} == {"steps"}

    def test_another_axis_of_time_and_text_are_padded_too(self):
        form = SequenceForm({"words": 2})
        requests = [
            FakeRequest({"words": np.array([[list("ab")]], object)}, 1, LengthGroup((), 2)),
            FakeRequest({"words": np.array([[list("cdef")]], object)}, 1, LengthGroup((), 4)),
        ]
        joined = RaggedJoiner(form).join(requests, 2, None)
        assert joined["words"].tolist() == [[list("abbb")], [list("cdef")]]

    def test_states_are_zeros_for_requests_without_one(self):
        requests = [make_request(3, state=7), make_request(3), make_request(2)]
        joined = RaggedJoiner(FORM).join(requests, 4, None)
        assert joined[STATE].tolist() == [[7, 7], [0, 0], [0, 0], [0, 0]]
        equal = RaggedJoiner(FORM).join(requests[:2], 2, None)
        assert equal[STATE].tolist() == [[7, 7], [0, 0]]
        assert LENGTHS not in equal

    def test_rows_of_a_request_may_differ_in_length(self):
        lengths = np.array([1, 3], np.int32)
        joined = RaggedJoiner(FORM).join([make_request(3, 2, **{LENGTHS: lengths})], 2, None)
        assert joined[LENGTHS].tolist() == [1, 3]

    def test_callers_lengths_are_checked_against_their_own_arrays(self):
        form = SequenceForm({"steps": 1}, lengths_input="lengths")
        good = make_request(5, lengths=np.array([5]))
        joined = RaggedJoiner(form).join([good, make_request(3, lengths=np.array([2]))], 2, None)
        assert joined["lengths"].tolist() == [5, 2]
        assert joined[LENGTHS].tolist() == [5, 3]
        for wrong in (4, 0, -1):
            with pytest.raises(InvalidValueError, match="out of bounds"):
                RaggedJoiner(form).join([good, make_request(3, lengths=np.array([wrong]))], 2, None)

    def test_steps_are_rounded_up_where_new_shapes_cost_more(self):
        joiner = RaggedJoiner(FORM)
        joiner.rounds_steps = True
        requests = [make_request(14), make_request(14)]
        joined = joiner.join(requests, 2, None)
        assert joined["steps"].shape == (2, 15, 3)
        outputs = [np.zeros((2, 1)), np.zeros((2, 15, 1))]
        parts = joiner.split(outputs, requests, 2)
        assert [part[1].shape for part in parts] == [(1, 14, 1), (1, 14, 1)]

    def test_answers_are_cut_to_the_steps_of_each_request(self):
        requests = [make_request(2), make_request(2, 2, state=1), make_request(4)]
        last = np.arange(5)[:, None]
        each = np.arange(20).reshape(5, 4)
        state = np.arange(10).reshape(5, 2)
        steps = []
        joiner = RaggedJoiner(FORM, lambda *counts: steps.append(counts))
        first, second, third = joiner.split([last, each, state], requests, 5)
        assert [output.tolist() for output in first[:]] == [[[0]], [[0, 1]]]
        assert [output.tolist() for output in second[:]] == [
            [[1], [2]],
            [[4, 5], [8, 9]],
            [[2, 3], [4, 5]],
        ]
        assert [output.tolist() for output in third[:]] == [[[3]], [[12, 13, 14, 15]]]
        assert all(isinstance(part, RowSlice) for part in (first, second, third))
        assert steps == [(20, 10)]

    def test_equal_requests_share_what_their_responses_cache(self):
        requests = [make_request(2), make_request(2), make_request(3)]
        parts = RaggedJoiner(FORM).split([np.zeros((3, 1)), np.zeros((3, 3))], requests, 3)
        assert parts[0].batch is parts[1].batch
        assert parts[2].batch is not parts[0].batch

    @pytest.mark.parametrize("shapes", [((2, 1), (2, 5)), ((2, 1), (2,)), ((3, 1), (2, 4))])
    def test_an_output_of_another_shape_is_an_error(self, shapes):
        outputs = [np.zeros(shape) for shape in shapes]
        with pytest.raises(BatchError):
            RaggedJoiner(FORM).split(outputs, [make_request(2), make_request(4)], 2)

    def test_the_longest_group_has_the_cost(self):
        requests = [make_request(2), make_request(4), make_request(3)]
        assert RaggedJoiner(FORM).group(requests) == LengthGroup(BASE, 4)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Load each model once; returns the model, which serves, and a session of its file."""
    models = {}

    def load(name):
        if name not in models:
            path = tmp_path_factory.mktemp(name) / "model.onnx"
            save_recurrent(path, MODELS[name])
            options = ModelOptions(policy=BatchPolicy(max_rows=8), sequence_batching="ragged")
            model = Model(ModelSource(name, 1, path), options, Metrics(CollectorRegistry()))
            models[name] = model, onnxruntime.InferenceSession(path)
        return models[name]

    yield load
    for model, _ in models.values():
        model.close()


def random_inputs(kind, rows, steps, seed):
    inputs = kind.make_inputs(rows, steps, seed)
    if kind.lengths:
        inputs["lengths"] = np.random.default_rng(seed).integers(1, steps + 1, rows, np.int32)
    return inputs


def new_request(model, inputs, **options):
    types = {spec.name: (spec.dtype, inputs[spec.name].shape) for spec in model.signature.inputs}
    rows = model.signature.check(types)
    return FakeRequest(inputs, rows, model.signature.group(types), **options)


def assert_answered(request, session, kind):
    ((outputs, error),) = request.results
    assert error is None
    inputs = {name: array for name, array in request.inputs.items() if name != STATE}
    expected = session.run(None, inputs)
    for actual, one in zip(outputs[: len(expected)], expected, strict=True):
        assert actual.shape == one.shape
        np.testing.assert_allclose(actual, one, rtol=1e-5, atol=1e-5)
    assert len(outputs) == len(expected) + (STATE in request.inputs)


def count_steps(model):
    registry = model.metrics._metrics.registry
    labels = {"model": model.name, "version": "1"}
    return tuple(
        registry.get_sample_value(f"neurona_sequence_{name}_total", labels)
        for name in ("steps", "padding_steps")
    )


def run_all(model):
    """Run what waits, as an instance does."""
    new_run = model.sessions[0].new_run
    while (batch := model.batcher.queue.take_batch()) is not None:
        model.batcher.process(batch, new_run)


events = st.lists(
    st.fixed_dictionaries(
        {
            "rows": st.sampled_from([1, 1, 1, 2, 3, 11]),
            "steps": st.one_of(st.integers(1, 12), st.integers(1, 60)),
            "fate": st.sampled_from(["run", "run", "run", "run", "cancel", "expired", "state"]),
            "run": st.sampled_from([False, False, False, True]),
        }
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.parametrize("name", [*MODELS])
def test_any_mix_gives_the_answers_of_single_requests(loaded, name):
    model, session = loaded(name)
    assert model.sequences.ragged_reason == ""
    kind = MODELS[name]

    @settings(
        max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(events)
    def check(plan):
        requests = []
        for seed, step in enumerate(plan):
            inputs = random_inputs(kind, step["rows"], step["steps"], seed)
            if step["fate"] == "state" and model.sequences.has_state:
                inputs[STATE] = np.zeros((step["rows"], model.sequences.state_size), np.float32)
            deadline = time.monotonic() + (1e-9 if step["fate"] == "expired" else 60)
            request = new_request(model, inputs, deadline=deadline)
            try:
                model.batcher.submit(request)
            except DeadlineExceededError as error:
                request.fail(error)
            if step["fate"] == "cancel":
                request.cancel(CancelledError())
            requests.append((request, step["fate"]))
            if step["run"]:
                run_all(model)
        run_all(model)
        for request, fate in requests:
            if fate == "cancel":
                assert isinstance(request.results[0][1], CancelledError)
            elif fate == "expired":
                assert isinstance(request.results[0][1], DeadlineExceededError)
            else:
                assert_answered(request, session, kind)

    check()


def test_different_lengths_share_a_run(loaded, monkeypatch):
    model, session = loaded("lstm")
    monkeypatch.setattr(
        model.batcher.queue._merge, "choose", lambda _, waiting, __: sorted(waiting.rows)
    )
    kind = MODELS["lstm"]
    before = count_steps(model)
    requests = [new_request(model, kind.make_inputs(1, steps)) for steps in (5, 6, 7, 5)]
    for request in requests:
        model.batcher.submit(request)
    run_all(model)
    assert count_steps(model) == (before[0] + 23, before[1] + 5)  # one run of 4 rows of 7 steps
    for request in requests:
        assert_answered(request, session, kind)


def test_a_wrong_length_fails_alone(loaded):
    model, session = loaded("lengths")
    kind = MODELS["lengths"]
    good = [new_request(model, random_inputs(kind, 1, steps, steps)) for steps in (5, 7, 9)]
    wrong = []
    for length in (0, -1, 6):
        inputs = kind.make_inputs(1, 5)
        inputs["lengths"][0] = length
        wrong.append(new_request(model, inputs))
    for request in (good[0], *wrong, *good[1:]):
        model.batcher.submit(request)
    run_all(model)
    for request in good:
        assert_answered(request, session, kind)
    for request, length in zip(wrong, (0, -1, 6), strict=True):
        ((_, error),) = request.results
        assert isinstance(error, InvalidValueError)
        assert f"length {length} (expected 1 to 5" in str(error)


def test_a_failing_request_fails_alone_among_other_lengths(loaded):
    model, session = loaded("tokens")
    kind = MODELS["tokens"]
    good = [new_request(model, kind.make_inputs(1, steps, steps)) for steps in (5, 6, 8)]
    bad = new_request(model, {"tokens": np.full((1, 6), 10_000)})
    for request in (good[0], bad, *good[1:]):
        model.batcher.submit(request)
    run_all(model)
    for request in good:
        assert_answered(request, session, kind)
    assert bad.results[0][1] is not None


def test_states_of_one_caller_never_reach_another(loaded):
    model, session = loaded("lstm")
    kind = MODELS["lstm"]
    plain = [new_request(model, kind.make_inputs(1, steps, steps)) for steps in (5, 7)]
    poisoned = new_request(
        model,
        kind.make_inputs(1, 6) | {STATE: np.full((1, kind.state_size), np.nan, np.float32)},
    )
    for request in (plain[0], poisoned, plain[1]):
        model.batcher.submit(request)
    run_all(model)
    for request in plain:
        assert_answered(request, session, kind)


def test_a_sequence_in_pieces_among_others_has_the_answers_of_the_whole(loaded):
    model, session = loaded("lstm")
    kind = MODELS["lstm"]
    inputs = kind.make_inputs(2, 12)
    expected = session.run(None, inputs)
    state = np.zeros((2, kind.state_size), np.float32)
    answers = []
    for start, stop in [(0, 1), (1, 6), (6, 12)]:
        step = new_request(model, {"steps": inputs["steps"][:, start:stop], STATE: state})
        other = new_request(model, kind.make_inputs(1, 5, start))
        for request in (other, step):
            model.batcher.submit(request)
        run_all(model)
        ((outputs, error),) = step.results
        assert error is None
        *outputs, state = outputs[:]
        answers.append(outputs)
        assert_answered(other, session, kind)
    np.testing.assert_allclose(answers[-1][0], expected[0], rtol=1e-5, atol=1e-5)
    each = np.concatenate([outputs[1] for outputs in answers], axis=1)
    np.testing.assert_allclose(each, expected[1], rtol=1e-5, atol=1e-5)


def test_warm_up_measures_what_a_step_costs(loaded):
    model, _ = loaded("lstm")
    costs = model.batcher.cost_model
    assert isinstance(costs, SequenceCostModel)
    base = ((FEATURES,),)
    assert 0 < costs.predict(8, LengthGroup(base, 8)) < costs.predict(8, LengthGroup(base, 512))


def test_a_model_without_sequences_is_served_as_before(repository):
    metrics = Metrics(CollectorRegistry())
    path = repository / "classifier" / "1" / "model.onnx"
    model = Model(ModelSource("classifier", 1, path), ModelOptions(), metrics)
    assert model.signature.group_sequences is None
    assert model.batcher.queue.merge is None
    assert not isinstance(model.batcher.cost_model, SequenceCostModel)
    assert (
        metrics.registry.get_sample_value(
            "neurona_sequence_steps_total", {"model": "classifier", "version": "1"}
        )
        is None
    )
    model.close()


def test_a_recurrent_model_is_freed_without_the_garbage_collector(tmp_path):
    path = save_recurrent(tmp_path / "model.onnx")
    model = Model(ModelSource("m", 1, path), ModelOptions(), Metrics(CollectorRegistry()))
    gc.collect()
    gc.disable()
    try:
        reference = weakref.ref(model)
        batcher = weakref.ref(model.batcher.cost_model)
        model.close()
        del model
        assert reference() is None
        assert batcher() is None
    finally:
        gc.enable()
