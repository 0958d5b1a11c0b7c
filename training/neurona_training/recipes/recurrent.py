"""Recipes of recurrent networks: plain (1990), LSTM (1997) and GRU (2014).

For a data set whose rows have lengths the network has a second input, `sequence_lens`. A series
is forecast by a linear function of its window, which the network corrects.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from neurona_training.architectures.network_options import NetworkOptions
from neurona_training.errors import OptionError
from neurona_training.learning.run import AugmentationRange, FitResult, Hyperparameters, Run
from neurona_training.recipes.recipe import Recipe
from neurona_training.recipes.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from neurona_training.architectures.recurrent import Cell
    from neurona_training.data import Dataset


_UNITS = 64  # numbers in the state
_CHARACTER_SIZE = 32  # of the vector that represents a character


def _network(cell: Cell, data: Dataset, options: NetworkOptions) -> nn.Module:
    import numpy as np
    from torch import nn

    from neurona_training.architectures.audio import BANDS, SPEECH_RATE, AudioNetwork, LogMel
    from neurona_training.architectures.forecast import Forecast
    from neurona_training.architectures.input_layers import (
        Denormalise,
        StandardiseColumns,
        channel_scale,
    )
    from neurona_training.architectures.recurrent import LastState, NextCount

    inputs, lengths = data.train.inputs, data.train.lengths
    all_units = options.hidden_units((_UNITS,))
    units = all_units[0]
    if len(set(all_units)) > 1:
        raise OptionError(f"units of recurrent layers are {all_units} (expected one number)")
    dropout, bidirectional = options.dropout or 0.0, options.bidirectional
    outputs = len(data.labels) or len(data.values)

    def last_state(step_encoder: nn.Module, features: int) -> LastState:
        return LastState(
            step_encoder,
            cell,
            features=features,
            hidden=units,
            outputs=outputs,
            denormalise=None if data.is_classification else Denormalise(data.train.targets),
            dropout=dropout,
            layers=len(all_units),
            bidirectional=bidirectional,
        )

    is_series = data.input.window > 0 and not data.is_classification and inputs.shape[2:] == (1,)
    if options.forecast not in (None, "network") and not is_series:
        raise OptionError(f"data set {data.name!r} is no series (option 'forecast' is for series)")
    if options.forecast == "count":
        if outputs > 1:
            raise OptionError(f"{outputs} steps of counts (forecast 'count' expects 1)")
        smallest = min(float(inputs.min()), float(data.train.targets.min()))
        if smallest < 0:
            raise OptionError(f"count below 0: {smallest:g} (forecast 'count' expects 0 or more)")
        return NextCount(
            cell,
            data.train,
            hidden=units,
            dropout=dropout,
            layers=len(all_units),
            bidirectional=bidirectional,
        )
    if is_series and options.forecast != "network":
        return Forecast(
            cell,
            data,
            hidden=units,
            dropout=dropout,
            layers=len(all_units),
            bidirectional=bidirectional,
        )
    if data.input.categories:
        # One more, for characters unknown in training: zeros, and never learned.
        unknown = len(data.input.categories)
        return last_state(
            nn.Embedding(unknown + 1, _CHARACTER_SIZE, padding_idx=unknown), _CHARACTER_SIZE
        )
    if lengths is None:
        return last_state(channel_scale(inputs), inputs.shape[2])
    if inputs.ndim == 2:  # samples of sound
        log_mel = LogMel(data.input.sample_rate or SPEECH_RATE).fit(inputs, lengths)
        return AudioNetwork(log_mel, last_state(nn.Identity(), BANDS))
    is_step = np.arange(inputs.shape[1]) < lengths[:, None]  # the others are padding
    return last_state(StandardiseColumns(inputs[is_step]), inputs.shape[2])


def _learn(
    network: nn.Module, data: Dataset, hyperparameters: Hyperparameters, run: Run
) -> FitResult:
    from neurona_training.learning.forecasts import learn_forecast

    return learn_forecast(network, data, hyperparameters, run)


_VOWELS = Settings(
    Hyperparameters(
        epochs=40, batch_rows=16, learning_rate=6e-3, weight_decay=1e-2, label_smoothing=0.1
    ),
    NetworkOptions(units=(64,), dropout=0.5),
)
_NAMES = Settings(
    Hyperparameters(epochs=12, batch_rows=64, learning_rate=3e-3, weight_decay=1e-2),
    NetworkOptions(units=(128,), dropout=0.5),
)
_SPOKEN_DIGITS = Settings(
    Hyperparameters(
        epochs=20, batch_rows=32, learning_rate=3e-3, weight_decay=1e-2, label_smoothing=0.1
    ),
    NetworkOptions(units=(96,), dropout=0.3),
)
_MONTHLY_SUNSPOTS = Settings(
    Hyperparameters(epochs=60, batch_rows=128, learning_rate=1e-2, weight_decay=1e-2),
    NetworkOptions(units=(16,), dropout=0.2, forecast="count"),
)
# The same for every cell, because their memory is compared (studies/long_memory.py).
_ADDING = Settings(
    Hyperparameters(epochs=10, batch_rows=100, learning_rate=5e-3, gradient_clip_norm=1.0)
)
_SHARED = {
    "vowels": _VOWELS,
    "names": _NAMES,
    "spoken-digits": _SPOKEN_DIGITS,
    "monthly-sunspots": _MONTHLY_SUNSPOTS,
    "adding": _ADDING,
}
_DEFAULT_NETWORK = NetworkOptions(units=(_UNITS,), dropout=0.0)
_MINUTES = {"adding": 1}
_NETWORK_OPTIONS = ("units", "layers", "bidirectional", "dropout", "initialisation", "forecast")

RECIPES = (
    Recipe(
        name="rnn",
        description="plain recurrent network (1990)",
        network=partial(_network, "rnn"),
        takes=("sequences",),
        tuned={
            "sunspots": Settings(
                Hyperparameters(epochs=200, batch_rows=16, learning_rate=3e-3, weight_decay=1e-2),
                NetworkOptions(units=(16,)),
            ),
            **_SHARED,
            # Slower to learn than the networks with gates, and alone no better than linear.
            "monthly-sunspots": _MONTHLY_SUNSPOTS.with_changes(
                {"learning_rate": 3e-3, "forecast": "hybrid"}
            ),
        },
        learner=_learn,
        first_weights="units",  # uniform within 1 / sqrt(units) of 0
        default_network=_DEFAULT_NETWORK,
        network_options=_NETWORK_OPTIONS,
        minutes=_MINUTES,
    ),
    Recipe(
        name="gru",
        description="GRU, a recurrent network with two gates (2014)",
        network=partial(_network, "gru"),
        takes=("sequences",),
        tuned=_SHARED,
        learner=_learn,
        first_weights="units",  # uniform within 1 / sqrt(units) of 0
        default_network=_DEFAULT_NETWORK,
        network_options=_NETWORK_OPTIONS,
        minutes=_MINUTES,
    ),
    Recipe(
        name="lstm",
        description="LSTM, a recurrent network with a long memory (1997)",
        network=partial(_network, "lstm"),
        takes=("sequences",),
        tuned={
            "digit-rows": Settings(
                Hyperparameters(
                    epochs=80,
                    batch_rows=32,
                    learning_rate=5e-3,
                    label_smoothing=0.1,
                    augmentation=AugmentationRange(pixels=0.7, degrees=12),
                )
            ),
            **_SHARED,
        },
        learner=_learn,
        first_weights="units",  # uniform within 1 / sqrt(units) of 0
        default_network=_DEFAULT_NETWORK,
        network_options=_NETWORK_OPTIONS,
        minutes=_MINUTES,
    ),
)
