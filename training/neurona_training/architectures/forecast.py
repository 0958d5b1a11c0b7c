"""Forecasts of a series: a linear autoregression, and a recurrent network that corrects it.

A network alone cannot leave the range of values that it was trained in, so it fails on a series
with a trend; and few series depart so far from a linear rule that it even comes near one. Here
the forecast is the last value, plus a linear function of the window (G. Yule, On a Method of
Investigating Periodicities in Disturbed Series, 1927), plus what the network adds to it
(G. P. Zhang, Time Series Forecasting using a Hybrid ARIMA and Neural Network Model,
Neurocomputing 50, 2003). The network starts at zero, and `Forecast.strength` is what validation
leaves of it: with 0 the forecast is the linear one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neurona_training.architectures.input_layers import ValueScale
from neurona_training.architectures.recurrent import Cell, LastState
from neurona_training.data import Dataset, Split

# Of the squared weights, where each input has variance 1; fewer rows need a larger one.
RIDGE_PENALTIES = (0.0, 0.1, 1.0, 10.0, 100.0)
# How much smaller the error on the validation rows has to be for another scale than the values'
# own: a small difference is chance, and the next values decide otherwise.
_WORTHWHILE = 0.97

_ROWS_PER_WEIGHT = 2  # in training; plain least squares of fewer fit the noise
_MAX_LEVERAGE = 0.999  # of a row on its own prediction
# Of the smallest value in training, down to which a logarithm is taken as it is; further where
# the training values themselves are further apart.
_LOWEST_FRACTION = 0.01
_SMALLEST_NUMBER = 1e-34  # whose logarithm `ValueScale` takes
_SMALLEST_SQUARED, _LARGEST_SQUARED = 1e-12, 1e12  # spreads whose squares are float32's
_LARGEST_ROOT = 1e18  # of a float32
_SMALLEST_SPREAD = 0.1  # of a window, as a fraction of the training windows'


@dataclass(frozen=True)
class Autoregression:
    """A linear function of a window, for the change from its last value.

    change = weights @ (window without its last value - last) + level * (last - centre) + bias

    Args:
        scale: on which windows and changes are.
        penalty: the ridge penalty that was chosen.
        weights: (horizon, window - 1).
        level: (horizon,).
        bias: (horizon,).
        centre: mean of the training windows.
        residual_spread: (horizon,), standard deviation of the training rows' residuals.
    """

    scale: ValueScale
    penalty: float
    weights: Tensor
    level: Tensor
    bias: Tensor
    centre: float
    residual_spread: Tensor

    def predict(self, inputs: Tensor) -> Tensor:
        """Returns values (rows, horizon) for windows (rows, window)."""
        windows = self.scale(inputs)
        last = windows[:, -1:]
        change = (windows[:, :-1] - last) @ self.weights.T + (last - self.centre) * self.level
        return self.scale.inverse(last + change + self.bias)


def fit_autoregression(train: Split, validation: Split) -> Autoregression:
    """Fits the linear part of a forecast, by least squares with a ridge penalty.

    The penalty on the differences of successive values draws the forecast to the last value.
    It is the one with the smallest leave-one-out error on the training rows, unless the plain
    least squares, of twice as many rows as weights, are better on the validation rows. Another
    scale than the values' own is chosen only if it is clearly better on the validation rows.

    Args:
        train: windows (rows, window, 1) and targets (rows, horizon).
        validation: the same.
    """
    rows = _Windows(*_as_double(train), *_as_double(validation))
    smallest = float(min(rows.inputs.min(), rows.targets.min()))
    largest = float(max(rows.inputs.max(), rows.targets.max()))
    scales = [ValueScale("identity")]
    if smallest >= 0:
        scales.append(ValueScale("root"))
    if smallest > _SMALLEST_NUMBER:
        # What decays goes on to; a caller's 0 has no logarithm.
        floor = smallest * min(smallest / largest, _LOWEST_FRACTION)
        scales.append(ValueScale("log", max(floor, _SMALLEST_NUMBER)))
    best, best_error = _fit_on_scale(rows, scales[0])
    limit = _WORTHWHILE * best_error
    for scale in scales[1:]:
        fitted, error = _fit_on_scale(rows, scale)
        if error < min(limit, best_error):
            best, best_error = fitted, error
    return best


class Forecast(nn.Module):
    """Predicts the next values of a series: (rows, time, 1) -> (rows, horizon).

    Reads the last `window` values. Before fewer than those the first is taken to have been the
    value all along.

    The network reads each window in the window's own units: differences from the last value, by
    the window's spread, in which its answer is given too. So it can leave the range of values
    that it was trained in (T. Kim and others, Reversible Instance Normalization for Accurate
    Time-Series Forecasting against Distribution Shift, ICLR 2022).

    Args:
        cell: kind of recurrent layer.
        data: its training rows are windows and the values that follow them.
        hidden: numbers of the state.
        layers: recurrent layers.
        bidirectional: whether the window is read from its end too.
        dropout: fraction of the states that is dropped in training.
    """

    weights: Tensor
    level: Tensor
    bias: Tensor
    centre: Tensor
    residual_spread: Tensor
    spread: Tensor
    strength: Tensor

    def __init__(
        self,
        cell: Cell,
        data: Dataset,
        *,
        hidden: int,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        linear = fit_autoregression(data.train, data.validation)
        self.scale, self.penalty = linear.scale, linear.penalty
        self.window = data.train.inputs.shape[1]
        for name in ("weights", "level", "bias", "residual_spread"):
            self.register_buffer(name, getattr(linear, name).float())
        self.register_buffer("centre", torch.tensor(linear.centre, dtype=torch.float32))
        windows = linear.scale(_as_double(data.train)[0])
        spread = float((windows - windows[:, -1:]).square().mean().sqrt()) or 1.0
        self.register_buffer("spread", torch.tensor(spread, dtype=torch.float32))
        # Of squares, which may be beyond float32; a power of 2 rounds nothing.
        is_usual = _SMALLEST_SQUARED < spread < _LARGEST_SQUARED
        self.unit = 1.0 if is_usual else 2.0 ** round(math.log2(spread))
        self.register_buffer("strength", torch.tensor(1.0))
        self.correction = LastState(
            nn.Identity(),
            cell,
            features=1,
            hidden=hidden,
            outputs=data.train.targets.shape[1],
            dropout=dropout,
            layers=layers,
            bidirectional=bidirectional,
        )
        nn.init.zeros_(self.correction.output.weight)
        nn.init.zeros_(self.correction.output.bias)

    def forward(self, sequence: Tensor) -> Tensor:
        """Returns the next values of each row."""
        linear, correction = self.parts(sequence)
        return self.scale.inverse(linear + self.strength * correction)

    def parts(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the linear forecast and the network's correction, on the forecast's scale."""
        values = sequence[:, :, 0]
        earlier = values[:, :1].expand(-1, self.window - 1)
        windows = self.scale(torch.cat([earlier, values], dim=1)[:, -self.window :])
        last = windows[:, -1:]
        differences, level = windows - last, windows - self.centre
        # Not a matrix product, which on a GPU would be computed in half precision.
        change = (differences[:, None, :-1] * self.weights).sum(dim=2)
        linear = last + change + level[:, -1:] * self.level + self.bias
        centred = differences - differences.mean(dim=1, keepdim=True)
        if self.unit != 1:
            centred = centred / self.unit
        # A caller's values may be far larger than any in training.
        centred = centred.clamp(-_LARGEST_ROOT, _LARGEST_ROOT)
        relative = centred.square().mean(dim=1, keepdim=True).sqrt() / (self.spread / self.unit)
        relative = relative + _SMALLEST_SPREAD  # or noise would be all of a constant window
        correction = self.correction((differences / (relative * self.spread))[:, :, None])
        return linear, correction * relative * self.residual_spread

    def describe(self) -> str:
        """One line for readers of the file."""
        of = {"identity": "values", "root": "square roots", "log": "logarithms"}[self.scale.scale]
        return (
            f"last value + linear function of the last {self.window} {of} (ridge penalty "
            f"{self.penalty:g}) + {float(self.strength):.3g} * network"
        )


@dataclass(frozen=True)
class _Windows:
    """Windows (rows, window) and targets (rows, horizon) in float64."""

    inputs: Tensor
    targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor


def _as_double(split: Split) -> tuple[Tensor, Tensor]:
    inputs, targets = torch.from_numpy(split.inputs), torch.from_numpy(split.targets)
    return inputs[:, :, 0].double(), targets.double()


def _fit_on_scale(rows: _Windows, scale: ValueScale) -> tuple[Autoregression, float]:
    """Returns the linear function with the best penalty and its error on the validation rows."""
    windows, following = scale(rows.inputs), scale(rows.targets)
    last, centre = windows[:, -1:], float(windows.mean())
    # Differences of successive values, and the level.
    columns = torch.cat([windows.diff(dim=1), last - centre], dim=1)
    means, spreads = columns.mean(dim=0), columns.std(dim=0, correction=0)
    spreads[spreads <= 1e-12 * spreads.max()] = 1  # a constant column
    change = following - last
    mean_change = change.mean(dim=0)
    u, singular, vh = torch.linalg.svd((columns - means) / spreads, full_matrices=False)
    projected = u.T @ (change - mean_change)
    # What is numerically 0 has no direction; as numpy.linalg.lstsq does it.
    kept = singular > singular.max() * max(columns.shape) * torch.finfo(torch.float64).eps

    def fit(penalty: float) -> tuple[float, Autoregression]:
        denominator = torch.where(kept, singular.square() + penalty, torch.inf)
        slopes = (vh.T @ ((singular / denominator)[:, None] * projected)) / spreads[:, None]
        bias = mean_change - means @ slopes
        residuals = change - columns @ slopes - bias
        leverage = (u.square() * (singular.square() / denominator)).sum(dim=1) + 1 / len(u)
        # A row that decides its own prediction cannot be left out: the others say nothing of it,
        # and their mean is what is left. Where all do, the error is unknown.
        is_decided = (leverage > _MAX_LEVERAGE)[:, None]
        left_out = residuals / (1 - leverage.clamp(max=_MAX_LEVERAGE))[:, None]
        left_out = torch.where(is_decided, change - mean_change, left_out)
        error = scale.inverse(following - left_out) - rows.targets
        # The weight of a value is the difference of those of the differences beside it.
        on_differences = torch.cat([torch.zeros_like(slopes[:1]), slopes[:-1]])
        spread = residuals.std(dim=0, correction=0)
        mean_square = math.inf if is_decided.all() else float(error.square().mean())
        return mean_square, Autoregression(
            scale=scale,
            penalty=penalty,
            weights=(on_differences[:-1] - on_differences[1:]).T,
            level=slopes[-1],
            bias=bias,
            centre=centre,
            residual_spread=torch.where(spread > 0, spread, 1.0),
        )

    def validation_error(fitted: Autoregression) -> float:
        errors = fitted.predict(rows.validation_inputs) - rows.validation_targets
        return float(errors.square().mean().sqrt())

    fits = [fit(penalty) for penalty in RIDGE_PENALTIES]
    (_, plain), (_, best) = fits[0], min(fits, key=lambda pair: pair[0])
    plain_error, best_error = validation_error(plain), validation_error(best)
    is_determined = len(u) >= _ROWS_PER_WEIGHT * (int(kept.sum()) + 1)
    if is_determined and plain_error < best_error:
        return plain, plain_error
    return best, best_error
