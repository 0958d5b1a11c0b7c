"""WAV files: the right samples, or a clear error; never a part as if it were the whole."""

import numpy as np
import pytest
from support.sounds import RATE, WAVEFORM, rejected_sounds, sounds

from neurona_client.files.audio import read_sound
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


def test_any_beginning_of_a_file_is_rejected(tmp_path):
    path = tmp_path / "a.wav"
    for content in (sounds()["16 bits"], sounds()["extensible float"]):
        for size in range(len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(FileContentError):
                read_sound(path).mono(RATE)
