"""What can go wrong in a training run for a reason that its user can act on."""


class TrainingError(Exception):
    """The message is one line for the person who started the run."""


class DataError(TrainingError):
    """Data that cannot be read, or that no network can be trained on."""


class FitError(TrainingError):
    """A training that cannot go on: the loss is no number, or the checkpoint is another run's."""


class ExportError(TrainingError):
    """An exported graph that is not the trained network."""


class OutputError(TrainingError):
    """A place that cannot be written to."""
