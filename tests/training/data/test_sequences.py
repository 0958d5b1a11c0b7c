"""Data sets of sequences, from published files and generated."""

import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from neurona_training.architectures.audio import LogMel
from neurona_training.data.sources import adding, names, spoken_digits, sunspots, vowels
from neurona_training.errors import DataError
from neurona_training.learning.evaluation import accuracy, balanced_accuracy
from neurona_training.studies import long_memory

SHARED = os.environ.get("NEURONA_SHARED")
needs_files = pytest.mark.skipif(
    SHARED is None, reason="NEURONA_SHARED names no folder with the files"
)


@pytest.fixture(scope="module")
def folder():
    return Path(SHARED) / "data"


def _sizes(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


@needs_files
def test_vowels_are_the_published_recordings(folder):
    data = vowels.vowel_recordings(folder)
    assert _sizes(data) == [216, 54, 370]
    lengths = np.concatenate([s.lengths for s in (data.train, data.validation, data.test)])
    assert (lengths.min(), lengths.max()) == (7, 29)
    assert data.test.inputs[0, 0, :2] == pytest.approx([1.635533, 0.018966], abs=2)
    assert np.bincount(data.test.targets).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert np.bincount(data.validation.targets).tolist() == [6] * 9
    last = data.test.inputs[np.arange(370), data.test.lengths - 1]
    assert not (last == 1).all(axis=1).any()  # the row of ones that ends a block is no frame


@needs_files
def test_no_test_name_is_a_training_name(folder):
    data = names.names_by_character(folder)
    assert _sizes(data) == [11707, 2702, 3603]
    assert len(data.labels) == 18

    def decode_names(part):
        characters = (*data.input.categories, "?")
        return {
            ("".join(characters[code] for code in row[:length]), target)
            for row, length, target in zip(part.inputs, part.lengths, part.targets, strict=True)
        }

    train, test = decode_names(data.train), decode_names(data.test)
    assert len(test) == len(data.test)  # each once
    assert not train & test
    assert ("Nakamura", data.labels.index("Japanese")) in train | test | decode_names(
        data.validation
    )
    share = [
        np.bincount(part.targets, minlength=18) / len(part) for part in (data.train, data.test)
    ]
    np.testing.assert_allclose(*share, atol=1e-3)
    unknown = len(data.input.categories)
    padding = np.arange(data.train.inputs.shape[1]) >= data.train.lengths[:, None]
    assert ((data.train.inputs == unknown) == padding).all()


@needs_files
def test_spoken_digits_are_split_by_take(folder):
    data = spoken_digits.spoken_waveforms(folder)
    assert _sizes(data) == [2280, 420, 300]
    assert np.bincount(data.test.targets).tolist() == [30] * 10
    published = spoken_digits.read_wave(folder / "fsdd" / "0_george_0.wav")
    np.testing.assert_array_equal(data.test.inputs[0, : data.test.lengths[0]], published)
    assert 0.1 < np.abs(data.train.inputs).max() <= 1
    with pytest.raises(DataError, match="the 1 files in .* are not the published ones"):
        spoken_digits.verify_recordings([folder / "fsdd" / "0_george_0.wav"])


@needs_files
def test_months_follow_each_other(folder):
    data = sunspots.monthly_sunspots(folder)
    assert data.values[0].name == "next month"
    np.testing.assert_array_equal(data.test.inputs[1:, -1], data.test.targets[:-1])


def test_files_of_another_format_are_rejected(tmp_path):
    path = tmp_path / "file"
    path.write_text("1 2 3\n")
    with pytest.raises(DataError, match="line 1: 3 values"):
        vowels.read_blocks(path)
    path.write_text("a b\n")
    with pytest.raises(DataError, match="line 1: could not convert"):
        vowels.read_blocks(path)
    with pytest.raises(DataError, match="not a WAV file"):
        spoken_digits.read_wave(path)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(8))
    with pytest.raises(DataError, match="has 2 channels at 16000 Hz"):
        spoken_digits.read_wave(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="line 1: byte 0xff is not UTF-8"):
        names.read_names(path)
    path.write_text(" \n")
    with pytest.raises(DataError, match="has no names"):
        names.read_names(path)
    path.write_text("Month,Sunspots\n1749-01,many\n")
    with pytest.raises(DataError, match="not a month and a number"):
        sunspots.read_months(path)


def test_blocks_end_with_ones_or_an_empty_line(tmp_path):
    path = tmp_path / "blocks"
    frame, end = " ".join(["0.5"] * 12), " ".join(["1.000000"] * 12)
    path.write_text(f"{frame}\n{frame}\n{end}\n\n{frame}\n\n{end}\n")
    assert [block.shape for block in vowels.read_blocks(path)] == [(2, 12), (1, 12)]


def test_the_target_is_the_sum_of_the_marked_numbers():
    data = adding.adding_problem(steps=20, rows=500)
    numbers, marks = data.train.inputs[:, :, 0], data.train.inputs[:, :, 1]
    assert (marks[:, :10].sum(axis=1) == 1).all()
    assert (marks[:, 10:].sum(axis=1) == 1).all()
    np.testing.assert_allclose((numbers * marks).sum(axis=1), data.train.targets[:, 0], rtol=1e-6)
    assert data.train.targets.var() == pytest.approx(adding.VARIANCE, rel=0.2)
    assert not np.array_equal(data.train.targets, data.test.targets)
    again = adding.adding_problem(steps=20, rows=500)
    np.testing.assert_array_equal(again.test.inputs, data.test.inputs)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050])
def test_a_tone_is_in_its_band_and_padding_is_ignored(rate):
    log_mel = LogMel(rate)
    time = torch.arange(rate // 2) / rate
    tones = torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (300, 1000, 3000)])
    lengths = torch.tensor([len(time), len(time), rate // 8], dtype=torch.int32)
    frames = log_mel(tones, lengths)
    assert frames.shape == (3, 32, 40)  # one every 16 ms
    places = frames[:, 3].argmax(dim=1)
    assert places.tolist() == sorted(set(places.tolist()))  # higher is further
    assert frames[:, 3].max(dim=1).values.exp().sub(1).abs().max() < 0.7  # full scale: about 1
    own = int(log_mel.frame_count(lengths)[2])
    assert own == -(-(rate // 8) // round(0.016 * rate))
    alone = log_mel(tones[2:, : rate // 8], lengths[2:])
    torch.testing.assert_close(frames[2:, :own], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [500, 4000, 8000, 44_100])
def test_every_band_has_a_finite_scale_at_any_rate(rate):
    waves = np.random.default_rng(0).normal(size=(3, rate)).astype(np.float32) / 10
    log_mel = LogMel(rate).fit(waves, np.full(3, rate, np.int32))
    silence = log_mel(torch.zeros(1, rate), torch.tensor([rate], dtype=torch.int32))
    assert torch.isfinite(silence).all()
    assert log_mel.factor.max() < 100  # no band is empty


def test_the_study_draws_one_chart(monkeypatch, tmp_path, capsys):
    small = adding.adding_problem(steps=6, rows=100)
    monkeypatch.setattr(adding, "adding_problem", lambda: small)
    out = tmp_path / "memory.png"
    assert long_memory.main(["--epochs", "1", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    expected = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in expected[:2]] == ["rnn", "lstm"]


def test_balanced_accuracy_weights_classes_equally():
    targets = np.array([0] * 8 + [1] * 2)
    always_first = np.eye(3)[np.zeros(10, int)]  # of a third class there are no rows
    assert accuracy(always_first, targets) == 0.8
    assert balanced_accuracy(always_first, targets) == 0.5
