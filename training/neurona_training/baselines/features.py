"""Columns of numbers made of any kind of data, for estimators that take nothing else.

They are torch modules, as the networks are, so that an estimator's file begins with the same
graph that made its training columns, and takes what a network's file takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from neurona_training.architectures.audio import BANDS, LogMel
from neurona_training.architectures.input_layers import Normalise
from neurona_training.data import Dataset, Split
from neurona_training.learning.evaluation import predict

MAX_COLUMNS = 1024  # of images and sequences, which are pooled or resampled to fewer
_MAX_STEPS = 64  # to which a sequence is resampled
_STATISTICS = 4  # of each channel: mean, standard deviation, smallest and largest value
_EDGE_CHARACTERS = 3  # at either end of a text, which have columns of their own
_MAX_NGRAM = 3  # characters that are counted together
_MAX_NGRAMS = 8192  # the most frequent ones, each of which is a column
_MAX_NGRAM_CODES = 2_000_000  # in the table that finds them: 8 MB of a file
_SAMPLE_ROWS = 4096  # from which the scale of the columns is taken
_ROWS_AT_ONCE = 256


def make_columns(data: Dataset) -> dict[str, nn.Module]:
    """Builds the modules that make columns of the inputs of a data set.

    Args:
        data: its training rows give scales and sizes.

    Returns:
        By what the columns hold, for readers: modules that take `Split.arrays` and return float32
        of shape (rows, columns). Standardised columns of a table; pixels; resampled steps of a
        sequence with the statistics of all steps, or these statistics alone, the log-mel frames
        of sound so; counts and edges of a text, or its n-grams; the last value of a series' window
        and how far the others are from it.
    """
    inputs, lengths = data.train.inputs, data.train.lengths
    if data.kind == "images":
        pixels = nn.Sequential(Normalise.to_unit_variance(inputs), _Pixels(inputs.shape[1:]))
        return {"pixels": pixels}
    if data.kind == "rows":
        return {"columns": _scaled(nn.Flatten(), data)}
    if data.is_series:
        return {"window": _scaled(_Window(inputs.shape[1]), data)}
    if data.input.categories:
        return {
            "characters": _scaled(_Characters(len(data.input.categories)), data),
            "n-grams of characters": NGrams(len(data.input.categories)).fit(inputs, lengths),
        }
    steps, channels = inputs.shape[1], int(np.prod(inputs.shape[2:]))
    frames: LogMel | None = None
    if data.input.sample_rate and lengths is not None:
        sample = take_rows(data.train, sample_rows(data.train, _ROWS_AT_ONCE))
        frames = LogMel(data.input.sample_rate).fit(sample.inputs, sample.arrays[1])
        steps, channels = int(frames.frame_count(torch.tensor(steps))), BANDS
    count = min(steps, _MAX_STEPS, max(2, MAX_COLUMNS // channels - _STATISTICS))
    return {
        title: _scaled(summary if frames is None else _Sound(frames, summary), data)
        for title, summary in (
            ("resampled steps", _Steps(count)),
            ("statistics of all steps", _Steps(0)),
        )
    }


def sample_rows(split: Split, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Draws rows at random, each class in its share; all rows in their order if there are few.

    Returns:
        Indices, ascending.
    """
    if len(split) <= count:
        return np.arange(len(split))
    random = np.random.default_rng((seed, count))
    is_class = split.targets.dtype == np.int64
    codes = split.targets if is_class else np.zeros(len(split), np.int64)
    shares = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    drawn = [
        random.permutation(share)[: max(1, round(count * len(share) / len(split)))]
        for share in shares
    ]
    return np.sort(np.concatenate(drawn))


def predict_rows(module: nn.Module, split: Split, rows: NDArray[np.int64]) -> NDArray[Any]:
    """What a module makes of some rows; a part at a time, as the inputs may be large.

    Returns:
        (rows, columns).
    """
    parts = np.array_split(rows, -(-len(rows) // _ROWS_AT_ONCE))
    return np.concatenate([predict(module, take_rows(split, part)).numpy() for part in parts])


def make_estimator_columns(
    columns: nn.Module, split: Split, rows: NDArray[np.int64]
) -> NDArray[Any] | sparse.csr_array:
    """The columns of some rows, sparse where nearly all are 0.

    Returns:
        (rows, columns).
    """
    if not isinstance(columns, NGrams):
        return predict_rows(columns, split, rows)
    parts = np.array_split(rows, -(-len(rows) // _ROWS_AT_ONCE))
    return sparse.vstack(
        [sparse.csr_array(predict_rows(columns, split, part)) for part in parts], format="csr"
    )


def take_rows(split: Split, rows: NDArray[np.int64]) -> Split:
    """A copy of some rows."""
    return Split(
        split.inputs[rows],
        split.targets[rows],
        None if split.lengths is None else split.lengths[rows],
        tuple(array[rows] for array in split.extra_inputs),
    )


def _scaled(columns: nn.Module, data: Dataset) -> nn.Module:
    """Adds a layer that gives the training columns mean 0 and variance 1."""
    rows = sample_rows(data.train, _SAMPLE_ROWS)
    return _Scaled(columns, predict_rows(columns, data.train, rows))


class _Scaled(nn.Module):
    """Columns with mean 0 and variance 1; what is constant in training counts for nothing.

    Args:
        columns: makes them.
        values: those of training rows, (rows, columns).
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, columns: nn.Module, values: NDArray[Any]) -> None:
        super().__init__()
        self.columns = columns
        mean = values.mean(axis=0, dtype=np.float64)
        spread = values.std(axis=0, dtype=np.float64)
        # Sums are rounded, so that the spread of a constant column need not be exactly 0.
        constant = spread <= 1e-6 * np.abs(mean)
        factor = np.where(constant, 0, 1 / np.where(constant, 1, spread))
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("factor", torch.from_numpy(factor.astype(np.float32)))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Takes a split's arrays; returns (rows, columns)."""
        scaled: Tensor = (self.columns(*inputs) - self.mean) * self.factor
        return scaled


class _Pixels(nn.Module):
    """The pixels of an image, averaged over blocks if there are more than `MAX_COLUMNS`.

    Args:
        shape: of one image, (height, width) or (channels, height, width).
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        height, width = shape[-2:]
        count = int(np.prod(shape))
        factor = min(1.0, (MAX_COLUMNS / count) ** 0.5)
        self.is_pooled = factor < 1
        self.register_buffer("rows", _averages(height, max(1, int(height * factor))))
        self.register_buffer("columns", _averages(width, max(1, int(width * factor))).T)

    def forward(self, images: Tensor) -> Tensor:
        """Takes (rows, [channels,] height, width); returns (rows, columns)."""
        if self.is_pooled:
            images = self.rows @ images @ self.columns
        return images.flatten(1)


def _averages(size: int, parts: int) -> Tensor:
    """A matrix (parts, size) whose product with a vector has the means of equal parts of it."""
    bounds = np.linspace(0, size, parts + 1)
    covered = np.minimum(bounds[1:, None], np.arange(1, size + 1)) - np.maximum(
        bounds[:-1, None], np.arange(size)
    )
    weights = np.clip(covered, 0, None) * parts / size
    return torch.from_numpy(weights.astype(np.float32))


class _Steps(nn.Module):
    """A sequence resampled to a fixed number of steps, and statistics of all its steps.

    Steps between two are interpolated. The statistics of each channel are mean, standard
    deviation, smallest and largest value; one more column is the length.

    Args:
        count: steps to which it is resampled; 0 leaves the statistics.
    """

    positions: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("positions", torch.linspace(0, 1, count))

    def forward(self, sequences: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Takes (rows, time, channels), and lengths (rows,) if steps are padding."""
        rows, time = sequences.shape[0], sequences.shape[1]
        sequences = sequences.reshape(rows, time, -1)
        if lengths is None:
            lengths = sequences.new_ones(rows, dtype=torch.int64) * time
        last = (lengths.long() - 1)[:, None]
        is_step = (torch.arange(time, device=sequences.device) <= last)[:, :, None]
        count = (last + 1).float()
        steps = torch.where(is_step, sequences, 0.0)
        mean = steps.sum(dim=1) / count
        squares = torch.where(is_step, (sequences - mean[:, None]).square(), 0.0)
        spread = (squares.sum(dim=1) / count).sqrt()
        smallest = torch.where(is_step, sequences, torch.inf).amin(dim=1)
        largest = torch.where(is_step, sequences, -torch.inf).amax(dim=1)
        statistics = torch.cat([mean, spread, smallest, largest, count], dim=1)
        if not len(self.positions):
            return statistics
        exact = last.float() * self.positions
        lower = exact.floor().long()
        upper = torch.minimum(lower + 1, last)
        share = (exact - lower.float())[:, :, None]
        resampled = _steps_at(sequences, lower) * (1 - share) + _steps_at(sequences, upper) * share
        return torch.cat([resampled.flatten(1), statistics], dim=1)


def _steps_at(sequences: Tensor, indices: Tensor) -> Tensor:
    """(rows, time, channels) and (rows, count) -> (rows, count, channels)."""
    wide = indices[:, :, None].expand(-1, -1, sequences.shape[2])
    return sequences.gather(1, wide)


class _Sound(nn.Module):
    """Log-mel frames of a waveform, resampled: (rows, samples) and lengths -> (rows, columns)."""

    def __init__(self, log_mel: LogMel, steps: _Steps) -> None:
        super().__init__()
        self.log_mel = log_mel
        self.steps = steps

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Takes samples and lengths in samples."""
        columns: Tensor = self.steps(
            self.log_mel(waveform, lengths), self.log_mel.frame_count(lengths)
        )
        return columns


class _Characters(nn.Module):
    """How often each character is in a text, and which are at its beginning and end.

    Args:
        characters: how many are known; codes beyond are unknown.
    """

    one_hot: Tensor

    def __init__(self, characters: int) -> None:
        super().__init__()
        vectors = torch.cat([torch.eye(characters), torch.zeros(1, characters)])
        self.register_buffer("one_hot", vectors)

    def forward(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Takes codes (rows, time), and lengths (rows,) if steps are padding."""
        rows, time = codes.shape
        if lengths is None:
            lengths = codes.new_ones(rows) * time
        last = (lengths.long() - 1)[:, None]
        unknown = self.one_hot.shape[0] - 1
        is_step = torch.arange(time, device=codes.device) <= last
        counts = self.one_hot[torch.where(is_step, codes, unknown)].sum(dim=1)
        offsets = torch.arange(_EDGE_CHARACTERS, device=codes.device)
        edges = []
        for indices in (offsets.expand(rows, -1), last - offsets):
            inside = (indices >= 0) & (indices <= last)
            edge = codes.gather(1, torch.where(inside, indices, 0))
            edges.append(self.one_hot[torch.where(inside, edge, unknown)].flatten(1))
        return torch.cat([counts, *edges], dim=1)


class NGrams(nn.Module):
    """How often groups of one to three characters are in a text, the rare ones counting more.

    The ends of a text are characters, too. Frequencies are weighted by how few texts have the
    group (TF-IDF: Sparck Jones, "A statistical interpretation of term specificity", 1972), and a
    text's columns have a length of 1. With many characters the groups are of fewer.

    Args:
        characters: how many are known; codes beyond are unknown.
    """

    table: Tensor
    weights: Tensor

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.base = characters + 3  # and unknown ones, the beginning and the end
        self.sizes = [
            size
            for size in range(1, _MAX_NGRAM + 1)
            if size == 1 or sum(self.base**n for n in range(1, size + 1)) <= _MAX_NGRAM_CODES
        ]
        codes = sum(self.base**size for size in self.sizes)
        self.register_buffer("table", torch.zeros(codes, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(1))

    def fit(self, codes: NDArray[Any], lengths: NDArray[Any] | None) -> NGrams:
        """Finds the most frequent groups of training texts, and how few texts have them.

        Args:
            codes: (rows, time).
            lengths: (rows,); None if all texts have all steps.
        """
        texts = np.zeros(len(self.table), np.int64)
        for start in range(0, len(codes), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            groups, inside = self._groups(
                torch.from_numpy(codes[rows]),
                None if lengths is None else torch.from_numpy(lengths[rows]),
            )
            for group, in_text in zip(groups.numpy(), inside.numpy(), strict=True):
                texts[np.unique(group[in_text])] += 1
        order = np.argsort(-texts, kind="stable")[: min(_MAX_NGRAMS, np.count_nonzero(texts))]
        self.table = torch.zeros(len(self.table), dtype=torch.int32)  # 0: not among them
        self.table[order] = torch.arange(1, len(order) + 1, dtype=torch.int32)
        weights = 1 + np.log((1 + len(codes)) / (1 + texts[order]))
        self.weights = torch.from_numpy(weights.astype(np.float32))
        return self

    def forward(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Takes codes (rows, time), and lengths (rows,) if steps are padding."""
        groups, inside = self._groups(codes, lengths)
        columns = torch.where(inside, self.table[groups].long(), 0)
        counts = torch.zeros(codes.shape[0], len(self.weights) + 1, device=codes.device)
        counts = counts.scatter_add(1, columns, torch.ones_like(columns, dtype=torch.float32))
        frequencies = counts[:, 1:] * self.weights
        norm = frequencies.square().sum(dim=1, keepdim=True).sqrt()
        return frequencies / norm.clamp(min=1e-12)

    def _groups(self, codes: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Indices into the table of all groups, and which are inside the text: (rows, groups)."""
        rows, time = codes.shape
        if lengths is None:
            lengths = codes.new_ones(rows) * time
        unknown, begin, end = self.base - 3, self.base - 2, self.base - 1
        count = lengths.long()[:, None]
        step = torch.arange(time + 1, device=codes.device)
        texts = codes.long()
        texts = torch.where((texts >= 0) & (texts < unknown), texts, unknown)
        edge = torch.full_like(texts[:, :1], end)
        texts = torch.where(step < count, torch.cat([texts, edge], dim=1), end)
        texts = torch.cat([torch.full_like(edge, begin), texts], dim=1)
        groups, inside, first = [], [], 0
        for size in self.sizes:
            places = time + 3 - size
            group = torch.zeros_like(texts[:, :places])
            for offset in range(size):
                group = group * self.base + texts[:, offset : offset + places]
            groups.append(group + first)
            last = torch.arange(places, device=codes.device) + (size - 1)
            inside.append(last <= count + 1)
            first += self.base**size
        return torch.cat(groups, dim=1), torch.cat(inside, dim=1)


class _Window(nn.Module):
    """The last value of a series, and how far those before it in a window are from it.

    Differences leave to an estimator what changes, wherever the series has drifted to.

    Args:
        size: how many values are read; a shorter series is continued by its first value.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, series: Tensor) -> Tensor:
        """Takes (rows, time, channels); returns (rows, size * channels)."""
        values = series.index_select(1, latest_steps(series, self.size))
        last = values[:, -1:]
        return torch.cat([values[:, :-1] - last, last], dim=1).flatten(1)


def latest_steps(series: Tensor, count: int) -> Tensor:
    """Indices of the last steps of (rows, time, ...), the first again for those before it."""
    steps = torch.arange(count, device=series.device) + (series.shape[1] - count)
    return steps.clamp(min=0)
