"""Sound for a recurrent network: log-mel frames, computed from the waveform inside the graph.

S. Davis and P. Mermelstein, Comparison of Parametric Representations for Monosyllabic Word
Recognition, IEEE Transactions on Acoustics, Speech and Signal Processing 28, 1980: the power
of short windows of sound in bands on the mel scale of pitch, as logarithms.
"""

import math
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

SPEECH_RATE = 8000  # samples a second of sound that does not say it
HOP_SECONDS = 0.016  # from one frame to the next; a frame is twice as long
MIN_HOP = 128  # samples: shorter frames would have bands of pitch without a frequency
BANDS = 40
# Added to each power, in units of full scale: about the noise of rounding to 16 bits in a
# window, so that silence is finite and rounding errors of float32 do not matter.
NOISE = 1e-6


class LogMel(nn.Module):
    """Log-mel frames: (rows, samples) of -1..1 and lengths (rows,) -> (rows, frames, BANDS).

    Frames of 32 ms begin every 16 ms, of 256 samples every 128 at 8 kHz or less; a row has as many
    as start within it. Samples beyond a row's length count as silence. `fit` gives each band mean 0
    and variance 1.

    Args:
        rate: samples per second.
    """

    waves: Tensor
    bands: Tensor
    offset: Tensor
    factor: Tensor

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.hop = max(MIN_HOP, round(HOP_SECONDS * rate))  # samples
        self.window = 2 * self.hop
        self.register_buffer("waves", _windowed_waves(self.window))
        bands = _bands(rate, self.window)
        squares_to_bands = torch.cat([bands] * 2)  # of cosine and sine parts
        self.register_buffer("bands", squares_to_bands)
        self.register_buffer("offset", torch.zeros(BANDS))
        self.register_buffer("factor", torch.ones(BANDS))

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Takes samples and lengths; returns normalised frames."""
        return (self._log_power(waveform, lengths) - self.offset) * self.factor

    def _log_power(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        step = torch.arange(waveform.shape[1], device=waveform.device, dtype=lengths.dtype)
        masked = torch.where(step < lengths[:, None], waveform, 0.0)
        # The last frame starts at a row's last sample at the latest.
        padded = functional.pad(masked, (0, self.window - 1))
        parts = functional.conv1d(padded[:, None], self.waves, stride=self.hop)
        power = parts.square().transpose(1, 2) @ self.bands
        return torch.log(power + NOISE)

    @torch.no_grad()
    def fit(self, waveforms: NDArray[Any], lengths: NDArray[Any]) -> Self:
        """Sets the normalisation for these waveforms, and returns the layer."""
        frames = torch.cat(
            [
                self._log_power(row[None, :length], length[None])[0]
                for row, length in zip(
                    torch.from_numpy(waveforms), torch.from_numpy(lengths), strict=True
                )
            ]
        )
        self.offset.copy_(frames.mean(dim=0))
        spread = frames.std(dim=0)
        self.factor.copy_(1 / torch.where(spread > 0, spread, 1.0))  # of silence: as it is
        return self

    def frame_count(self, samples: Tensor) -> Tensor:
        """Number of frames that start within this number of samples (at least 1)."""
        return torch.ceil(samples / self.hop).to(samples.dtype)


class AudioNetwork(nn.Module):
    """A network of frames that takes a waveform (rows, samples) and lengths in samples (rows,).

    Args:
        log_mel: makes frames of the waveform.
        network: takes frames (rows, frames, BANDS) and lengths in frames.
    """

    def __init__(self, log_mel: LogMel, network: nn.Module) -> None:
        super().__init__()
        self.log_mel = log_mel
        self.network = network

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Takes samples and lengths; returns the outputs of the network."""
        if self.training:  # cut to the longest row of the batch
            waveform = waveform[:, : int(lengths.max())]
        frames = self.log_mel(waveform, lengths)
        output: Tensor = self.network(frames, self.log_mel.frame_count(lengths))
        return output


def _windowed_waves(window: int) -> Tensor:
    """The discrete Fourier transform of a Hann window as filters, (2 * frequencies, 1, window).

    Scaled so that a full-scale sine has the power 1 at its frequency.
    """
    sample = torch.arange(window, dtype=torch.float64)
    hann = (1 - torch.cos(2 * math.pi * sample / window)) / 2
    frequency = torch.arange(window // 2 + 1, dtype=torch.float64)
    angle = 2 * math.pi * frequency[:, None] * sample / window
    waves = torch.cat([torch.cos(angle), torch.sin(angle)]) * hann / (hann.sum() / 2)
    return waves[:, None].float()


def _bands(rate: int, window: int) -> Tensor:
    """Triangles of equal width on the mel scale, (frequencies, BANDS), from 0 to rate / 2.

    Mel: 2595 log10(1 + f / 700 Hz), D. O'Shaughnessy's formula (1987).
    """
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    mel = torch.linspace(0, highest, BANDS + 2, dtype=torch.float64)
    corner = 700 * (10 ** (mel / 2595) - 1)  # Hz
    low, middle, high = corner[:-2], corner[1:-1], corner[2:]
    frequency = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)[:, None]
    rising, falling = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()
