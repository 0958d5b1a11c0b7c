"""What a user may choose about a network, whichever its family.

It is alone because the command line and the recipes need it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from neurona_training.errors import OptionError


@dataclass(frozen=True)
class NetworkOptions:
    """Size and parts of a network; what is not given is the recipe's own choice for the data.

    Args:
        units: of each hidden layer, from the input on; of a recurrent network the numbers of
            its state, one for all layers.
        layers: number of hidden or recurrent layers.
        bidirectional: whether a recurrent network also reads each sequence from its end.
        dropout: fraction of a hidden layer that is dropped in training.
        activation: of the hidden layers, "tanh", "relu", "gelu", "silu" or "sigmoid".
        initialisation: of the weights, one of `INITIALISATIONS`.
        forecast: how a series is predicted, one of `FORECASTS`: "hybrid" by a linear function of
            the window that the network corrects, "network" by the network alone, or "count" by
            the network as the change of the square root of the last count.
        columns: of a table, one of `COLUMN_ENCODINGS`: "scaled" to mean 0 and variance 1, or
            with "pieces" between their quantiles too.
    """

    units: tuple[int, ...] | None = None
    layers: int | None = None
    bidirectional: bool = False
    dropout: float | None = None
    activation: str | None = None
    initialisation: str | None = None
    forecast: str | None = None
    columns: str | None = None

    def with_defaults(self, default: NetworkOptions) -> NetworkOptions:
        """Returns these options, and `default`'s where nothing is given.

        Raises:
            OptionError: `units` and `layers` contradict each other.
        """
        widths = default.units or self.units
        units = self.hidden_units(widths) if widths else None
        return NetworkOptions(
            units=units,
            layers=len(units) if units else None,
            bidirectional=self.bidirectional or default.bidirectional,
            dropout=default.dropout if self.dropout is None else self.dropout,
            activation=self.activation or default.activation,
            initialisation=self.initialisation or default.initialisation,
            forecast=self.forecast or default.forecast,
            columns=self.columns or default.columns,
        )

    def hidden_units(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the units of each hidden layer.

        Args:
            default: of the recipe, used where `units` is not given.

        Raises:
            OptionError: `units` and `layers` contradict each other.
        """
        units = self.units or default
        if self.layers is None or self.layers == len(units):
            return units
        if self.units and len(units) > 1:
            raise OptionError(
                f"{len(units)} numbers of units for {self.layers} layers (expected one number, or "
                "one for each layer)"
            )
        # Fewer layers are the first ones, more repeat the last.
        return (*units, *units[-1:] * self.layers)[: self.layers]


ACTIVATIONS = ("tanh", "relu", "gelu", "silu", "sigmoid")
COLUMN_ENCODINGS = ("scaled", "pieces")
FORECASTS = ("hybrid", "network", "count")
INITIALISATIONS = ("inputs", "he", "xavier")
