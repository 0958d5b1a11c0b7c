"""The proof of a rewritten graph finds every way in which its answers can be wrong."""

import numpy as np
import onnxruntime
import pytest
from support.recurrent_models import CLASSES, RecurrentModel, make_recurrent

from neurona_server.sequences.form import LENGTHS, STATE, SequenceForm
from neurona_server.sequences.proof import (
    MAX_TOLERANCE,
    TOLERANCE,
    disprove_lengths,
    disprove_state,
    find_tolerance,
)

MODEL = RecurrentModel("GRU", answer="both")
FORM = SequenceForm({"steps": 1}, {1: 1}, state_size=MODEL.state_size)


@pytest.fixture(scope="module")
def file():
    content = make_recurrent(MODEL).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


class RowByRow:
    """Answers as a right graph would: each row by itself with the file.

    Its state is all steps so far of each row, of which it knows as many as FORM has numbers.
    """

    def __init__(self, file, *, extra_steps=0, error=0.0, keeps_state=True):
        self.file, self.extra_steps, self.error = file, extra_steps, error
        self.keeps_state = keeps_state
        self.histories = []

    def __call__(self, inputs):
        steps = inputs["steps"]
        rows, width = steps.shape[:2]
        lengths = inputs.get(LENGTHS, np.full(rows, width))
        state = inputs.get(STATE, np.zeros((rows, FORM.state_size), np.float32))
        last = np.zeros((rows, CLASSES), np.float32)
        every = np.zeros((rows, width, CLASSES), np.float32)
        following = np.zeros_like(state)
        for row, length in enumerate(lengths):
            number = int(state[row, 0]) if self.keeps_state else 0
            before = self.histories[number - 1] if number else steps[row, :0]
            own = steps[row, : length + self.extra_steps]
            whole = np.concatenate([before, own])
            last[row], answers = (output[0] for output in self.file({"steps": whole[None]}))
            every[row, : len(own)] = answers[len(before) :]
            self.histories.append(whole)
            following[row, 0] = len(self.histories)
        outputs = [last + self.error, every]
        return [*outputs, following] if STATE in inputs else outputs


def make_rows(rows, steps, seed):
    return MODEL.make_inputs(rows, steps, seed)


def test_right_answers_are_proved(file):
    assert disprove_lengths(file, RowByRow(file), FORM, make_rows) == ""
    assert disprove_state(file, RowByRow(file), FORM, make_rows) == ""


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (lambda file: RowByRow(file, extra_steps=1), "output 0 by"),
        (lambda file: RowByRow(file, error=3e-5), "output 0 of sequences without padding"),
        (lambda file: lambda inputs: file({"steps": inputs["steps"]}), "output 0 by"),
    ],
    ids=["a step of padding", "a small error", "no lengths"],
)
def test_wrong_answers_to_rows_of_different_lengths_are_noticed(file, graph, reason):
    assert reason in disprove_lengths(file, graph(file), FORM, make_rows)


def test_a_state_that_is_lost_is_noticed(file):
    reason = disprove_state(file, RowByRow(file, keeps_state=False), FORM, make_rows)
    assert "in pieces differ" in reason


def test_a_small_error_of_rows_is_allowed(file):
    assert disprove_lengths(file, RowByRow(file, error=1e-6), FORM, make_rows) == ""
    assert disprove_lengths(file, RowByRow(file, error=3e-5), FORM, make_rows, 1e-3) == ""


def test_constant_answers_prove_nothing():
    def run(inputs):
        rows, width = inputs["steps"].shape[:2]
        return [np.ones((rows, CLASSES), np.float32), np.ones((rows, width, 1), np.float32)]

    assert "shows nothing" in disprove_lengths(run, run, FORM, make_rows)


def test_lengths_of_callers_are_cut_with_their_sequences():
    description = RecurrentModel(lengths=True)
    form = SequenceForm({"steps": 1}, lengths_input="lengths")
    content = make_recurrent(description).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(inputs):
        return session.run(None, {name: inputs[name] for name in ("steps", "lengths")})

    assert disprove_lengths(run, run, form, description.make_inputs) == ""


def test_a_file_whose_own_answers_differ_in_a_batch_is_compared_less_strictly(file):
    def noisy(error):
        def run(inputs):
            last, every = file(inputs)
            return [last + (error if len(last) > 1 else 0), every]

        return run

    assert find_tolerance(file, FORM, make_rows) == TOLERANCE
    assert find_tolerance(noisy(5e-5), FORM, make_rows) == pytest.approx(2e-4, rel=0.2)
    assert find_tolerance(noisy(0.1), FORM, make_rows) == MAX_TOLERANCE
