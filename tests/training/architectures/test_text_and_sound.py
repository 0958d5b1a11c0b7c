"""Characters and sound: callers send them unprocessed, and the graph does the rest."""

import numpy as np
import onnxruntime
import pytest
import torch

from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.data import Dataset, Input, Split
from neurona_training.data.transforms import pad_sequences
from neurona_training.export.metadata import model_metadata
from neurona_training.export.onnx_export import export_trained_network
from neurona_training.learning.evaluation import accuracy, predict
from neurona_training.learning.run import Hyperparameters, Run
from neurona_training.recipes import RECIPES
from neurona_training.recipes.settings import Settings


def _fit_and_export(data, epochs):
    hyperparameters = Hyperparameters(epochs=epochs, batch_rows=16, learning_rate=1e-2)
    result = RECIPES["gru"].fit(data, Settings(hyperparameters), Run(data.name, 0))
    model = export_trained_network(result.network, data, model_metadata(data, "a test", {}, {}))
    return result.network, onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def words():
    """Does a word end in a vowel?"""
    random = np.random.default_rng(0)
    letters = tuple("abcdeiou")

    def split(rows):
        spelled = [random.integers(0, 8, random.integers(1, 6)) for _ in range(rows)]
        inputs, lengths = pad_sequences(spelled, len(letters))
        ends = np.array([int(letters[word[-1]] in "aeiou") for word in spelled])
        return Split(inputs, ends, lengths)

    text_or_sound = Input(
        "characters", ("batch", "time"), "a word", "character", categories=letters
    )
    return Dataset(
        "words", "", split(160), split(40), split(40), text_or_sound, labels=("no", "yes")
    )


def test_words_are_sent_as_their_characters(words):
    network, session = _fit_and_export(words, epochs=6)
    assert accuracy(predict(network, words.test).numpy(), words.test.targets) >= 0.9
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("characters", "tensor(string)", ["batch", "time"]),
        ("sequence_lens", "tensor(int32)", ["batch"]),
    ]

    def ask(*rows):
        longest = max(map(len, rows))
        session_inputs = np.array([[*row, *[""] * (longest - len(row))] for row in rows], object)
        lengths = np.array([len(row) for row in rows], np.int32)
        return session.run(None, {"characters": session_inputs, "sequence_lens": lengths})[0]

    together = ask("ab", "beada", "o")
    assert together.argmax(axis=1).tolist() == [0, 1, 1]
    for word, answer in zip(("ab", "beada", "o"), together, strict=True):
        np.testing.assert_allclose(ask(word)[0], answer, rtol=1e-4)
    np.testing.assert_array_equal(ask("aЖ"), ask("a?"))  # all unknown characters are equal


def test_unknown_characters_have_a_zero_embedding(words):
    network, _ = _fit_and_export(words, epochs=1)
    letters = network.reading.weight
    assert not letters[-1].any()
    assert letters[:-1].any(dim=1).all()


@pytest.fixture(scope="module")
def tones():
    """A low tone or a high one?"""
    random = np.random.default_rng(0)

    def split(rows):
        targets = random.integers(0, 2, rows)
        sounds = []
        for high in targets:
            time = np.arange(random.integers(100, 900)) / 8000
            wave = np.sin(2 * np.pi * (2000 if high else 400) * time) * random.uniform(0.05, 0.5)
            sounds.append((wave + random.normal(size=len(time)) * 1e-3).astype(np.float32))
        inputs, lengths = pad_sequences(sounds)
        return Split(inputs, targets, lengths)

    text_or_sound = Input("waveform", ("batch", "time"), "a tone, 8 kHz", "amplitude -1..1")
    return Dataset(
        "tones", "", split(96), split(32), split(32), text_or_sound, labels=("low", "high")
    )


def test_sound_is_sent_as_its_samples(tones):
    network, session = _fit_and_export(tones, epochs=4)
    assert accuracy(predict(network, tones.test).numpy(), tones.test.targets) == 1
    test = tones.test
    session_inputs = {"waveform": test.inputs.copy(), "sequence_lens": test.lengths}
    (together,) = session.run(None, session_inputs)
    expected = torch.softmax(predict(network, test), dim=1)
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-6)
    for row, length, answer in zip(test.inputs, test.lengths, together, strict=True):
        alone = {"waveform": row[None, :length], "sequence_lens": np.array([length], np.int32)}
        np.testing.assert_allclose(session.run(None, alone)[0][0], answer, rtol=1e-4, atol=1e-6)
    padding = np.arange(test.inputs.shape[1]) >= test.lengths[:, None]
    session_inputs["waveform"][padding] = 0.9  # noise in the padding
    np.testing.assert_allclose(session.run(None, session_inputs)[0], together, rtol=1e-5, atol=1e-6)


def test_training_cuts_a_batch_to_its_longest_row(tones):
    torch.manual_seed(0)
    network = RECIPES["gru"].network(tones, NetworkOptions())
    waves, lengths = torch.from_numpy(tones.test.inputs), torch.from_numpy(tones.test.lengths)
    some = lengths < lengths.max()
    lengths_read = []
    network.log_mel.register_forward_pre_hook(
        lambda _, text_or_sound: lengths_read.append(text_or_sound[0].shape[1])
    )
    learning = network.train()(waves[some], lengths[some])
    assert lengths_read == [lengths[some].max()]
    torch.testing.assert_close(network.eval()(waves[some], lengths[some]), learning)
