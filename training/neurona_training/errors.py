"""Errors of a training run that the person who started it can act on.

They are alone because all other modules raise them.
"""


class TrainingError(Exception):
    """Base of the others; the message is one line for the person who started the run."""


class DataError(TrainingError):
    """Data that cannot be read, or on which no network can be trained."""


class OptionError(TrainingError):
    """An option that the recipe or the data do not have, or a value outside its range."""


class FitError(TrainingError):
    """Training cannot continue: the loss is not finite, or the checkpoint is of another run."""


class WeightsError(TrainingError):
    """Weights that cannot be read, or are not of the network that should start from them."""


class ExportError(TrainingError):
    """The exported graph differs from the trained network, or cannot be made."""


class TrackingError(TrainingError):
    """A service to which a training is logged cannot be used."""


class OutputError(TrainingError):
    """A file that cannot be written, or a model repository that cannot be read."""
