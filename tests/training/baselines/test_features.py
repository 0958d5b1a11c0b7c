"""Columns made of inputs: what they must not depend on, and that they are bounded."""

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from neurona_training.baselines.features import MAX_COLUMNS, NGrams, make_columns, sample_rows
from neurona_training.data import Dataset, Input, Split, Value

RANDOM = np.random.default_rng(6)


def dataset(inputs, axes, lengths=None, window=0):
    split = Split(inputs, RANDOM.normal(size=(len(inputs), 1)).astype(np.float32), lengths)
    described = Input("x", axes, "", "", window=window)
    return Dataset("d", "", split, split, split, described, values=(Value("y", ""),))


def columns_of(data):
    return next(iter(make_columns(data).values()))


def test_a_constant_column_counts_for_nothing():
    inputs = RANDOM.normal(size=(50, 3)).astype(np.float32)
    inputs[:, 1] = 0.1
    columns = columns_of(dataset(inputs, ("batch", "c")))
    inputs[:, 1] = 1e9
    made = columns(torch.from_numpy(inputs)).numpy()
    np.testing.assert_array_equal(made[:, 1], 0)
    np.testing.assert_allclose(made[:, [0, 2]].std(axis=0), 1, rtol=1e-5)


def test_large_pictures_are_averaged():
    pictures = RANDOM.integers(0, 256, (4, 3, 90, 160)).astype(np.float32)
    pictures[0] = 7
    made = columns_of(dataset(pictures, ("batch", "channel", "height", "width")))(
        torch.from_numpy(pictures)
    ).numpy()
    assert made.shape[1] <= MAX_COLUMNS
    expected = (7 - pictures.mean()) / pictures.std()
    np.testing.assert_allclose(made[0], expected, rtol=1e-4)
    np.testing.assert_allclose(made.mean(), 0, atol=1e-4)  # each pixel counts the same


@pytest.mark.parametrize("length", [1, 2, 17])
def test_a_sequence_and_its_padding(length):
    inputs = RANDOM.normal(size=(6, 17, 2)).astype(np.float32)
    lengths = np.array([17, 1, 2, 9, 17, 5], np.int32)
    columns = columns_of(dataset(inputs, ("batch", "time", "c"), lengths))
    row = torch.from_numpy(inputs[:1, :length])
    alone = columns(row, torch.tensor([length], dtype=torch.int32))
    noise = torch.full((1, 9, 2), 1e9)
    padded = columns(torch.cat([row, noise], 1), torch.tensor([length], dtype=torch.int32))
    torch.testing.assert_close(alone, padded)
    assert torch.isfinite(alone).all()


def encode_texts(texts, alphabet="abcde"):
    """Codes and lengths of texts; unknown characters have a code beyond the known ones."""
    lengths = np.array([len(text) for text in texts])
    codes = np.full((len(texts), lengths.max() + 2), 1)  # padding that is a known character
    for row, text in zip(codes, texts, strict=True):
        row[: len(text)] = [alphabet.find(character) % 77 for character in text]
    return codes, lengths


def test_ngrams_are_those_of_scikit_learn():
    texts = ["".join(RANDOM.choice([*"abcde"], RANDOM.integers(1, 9))) for _ in range(40)]
    codes, lengths = encode_texts(texts)
    made = NGrams(5).fit(codes, lengths)(torch.from_numpy(codes), torch.from_numpy(lengths)).numpy()
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3))
    expected = vectorizer.fit_transform([f"<{text}>" for text in texts]).toarray()
    assert made.shape == expected.shape
    np.testing.assert_allclose(made @ made.T, expected @ expected.T, atol=1e-5)


def test_ngrams_of_what_no_training_text_has():
    codes, lengths = encode_texts(["ab", "ba", "aab"])
    columns = NGrams(5).fit(codes, lengths)
    texts, sizes = encode_texts(["ab", "zz", "abz"])
    made = columns(torch.from_numpy(texts), torch.from_numpy(sizes)).numpy()
    alone = columns(torch.from_numpy(texts[:1, :2])).numpy()
    np.testing.assert_allclose(made[:1], alone)  # as if it had no padding
    np.testing.assert_array_equal(made[1] > 0, columns(torch.tensor([[-5, 99]])).numpy()[0] > 0)
    assert np.count_nonzero(made[1]) == 2  # its beginning and its end
    assert np.isfinite(made).all()


def test_ngrams_of_many_characters_are_of_fewer():
    codes = RANDOM.integers(0, 3000, (20, 30))
    columns = NGrams(3000).fit(codes, None)
    assert columns.sizes == [1]
    assert columns(torch.from_numpy(codes)).shape == (20, len(np.unique(codes)) + 2)


def test_a_window_is_relative_to_its_last_value():
    inputs = RANDOM.normal(size=(30, 5, 1)).astype(np.float32)
    columns = columns_of(dataset(inputs, ("batch", "time", "c"), window=5))
    made = columns(torch.from_numpy(inputs))
    higher = columns(torch.from_numpy(inputs + 64))
    torch.testing.assert_close(made[:, :-1], higher[:, :-1], atol=1e-4, rtol=0)
    longer = torch.cat([torch.zeros(30, 3, 1), torch.from_numpy(inputs)], dim=1)
    torch.testing.assert_close(columns(longer), made)  # only the last five are read


def test_a_sample_has_each_class_in_its_share():
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    split = Split(np.arange(1000, dtype=np.float32)[:, None], targets)
    sample = sample_rows(split, 100)
    np.testing.assert_array_equal(np.bincount(targets[sample]), [90, 9, 1])
    np.testing.assert_array_equal(sample_rows(split, 1000), np.arange(1000))
    np.testing.assert_array_equal(sample, sample_rows(split, 100))
