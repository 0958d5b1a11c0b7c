"""Sequences that run in chunks: whatever joins or leaves, answers are those of running alone."""

import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.recurrent_models import RecurrentModel, save_recurrent

from neurona_protos.prediction_pb2 import SequenceMethod
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Request
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.sequences.form import LENGTHS, STATE
from neurona_server.telemetry.metrics import Metrics

CELLULAR = SequenceMethod.SEQUENCE_METHOD_CELLULAR
POLICY = BatchPolicy(max_rows=8)
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

    def load(model=MODELS["lstm"], *, starts=True, policy=POLICY, **settings):
        path = save_recurrent(tmp_path / f"{len(models)}" / "model.onnx", model)
        settings = ModelSettings(**{"sequence_batching": "cellular"} | settings)
        source = ModelSource("m", 1, path, settings)
        loaded = Model(source, ModelOptions(policy), Metrics(CollectorRegistry()))
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
