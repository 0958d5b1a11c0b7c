"""WAV files: the right samples, or a clear error; never a part as if it were the whole."""

import sys

import numpy as np
import pytest
from support.sounds import RATE, WAVEFORM, rejected_sounds, sounds

from neurona_client.files.audio import Sound, read_sound
from neurona_client.files.content import FileContentError


@pytest.mark.parametrize("name", sounds())
def test_every_encoding_has_the_same_samples(name, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(sounds()[name])
    sound = read_sound(path)
    assert (sound.rate, sound.channels) == (RATE, 1)
    samples = sound.mono(RATE)
    assert samples.dtype == np.float32
    assert np.array_equal(samples, WAVEFORM)


@pytest.mark.parametrize("name", rejected_sounds())
def test_a_file_that_is_not_the_models_sound_is_rejected(name, tmp_path):
    path = tmp_path / "a.wav"
    content, message = rejected_sounds()[name]
    path.write_bytes(content)
    with pytest.raises(FileContentError) as caught:
        read_sound(path).mono(RATE)
    assert message in str(caught.value)


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100])
def test_another_rate_keeps_the_tone_and_several_channels_become_their_mean(rate):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)

    stereo = np.stack([tone(48_000), 0.5 * tone(48_000)], axis=1)
    mixed = Sound(stereo, 48_000).mix(rate)
    assert (mixed.dtype, mixed.shape) == (np.float32, (rate,))
    middle = slice(rate // 4, -rate // 4)  # the filter begins and ends in silence
    np.testing.assert_allclose(mixed[middle], 0.75 * tone(rate)[middle], atol=0.005)


def test_what_the_new_rate_cannot_represent_is_removed_and_no_sample_exceeds_1():
    time = np.arange(48_000) / 48_000
    high = Sound(_mono(np.sin(2 * np.pi * 6000 * time)), 48_000).mix(8000)
    assert np.abs(high[100:-100]).max() < 0.01
    square = np.sign(np.sin(2 * np.pi * 100 * time))
    assert np.abs(Sound(_mono(square), 48_000).mix(8000)).max() == 1


def test_another_rate_without_scipy_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.signal", None)
    sound = Sound(_mono(np.zeros(8)), 8000)
    assert len(sound.mix(8000)) == 8
    with pytest.raises(FileContentError, match=r"8000 Hz \(expected 4000 Hz; neurona\[sound\]"):
        sound.mix(4000)


def _mono(samples):
    return samples[:, None].astype(np.float32)


def test_any_beginning_of_a_file_is_rejected(tmp_path):
    path = tmp_path / "a.wav"
    for content in (sounds()["16 bits"], sounds()["extensible float"]):
        for size in range(len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(FileContentError):
                read_sound(path).mono(RATE)
