"""Event files for TensorBoard, in OUT/NAME/tensorboard/TIME: `tensorboard --logdir OUT`.

It is alone because only here TensorBoard is imported.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from neurona_training.tracking.tracker import Parameters

FOLDER = "tensorboard"


class TensorBoardBackend:
    """One run; each has a folder of its own, so that their curves are not mixed.

    Args:
        name: of the model.
        folder: of the model.
        parameters: shown in the tab of hyperparameters.
    """

    def __init__(self, name: str, folder: Path, parameters: Parameters) -> None:
        started = datetime.now().astimezone().strftime("%Y-%m-%dT%H-%M-%S.%f")
        self.folder = folder / FOLDER / started
        self._parameters = {"name": name, **parameters}
        self._writer = SummaryWriter(self.folder)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Adds a point to each curve."""
        for metric, value in metrics.items():
            self._writer.add_scalar(metric, value, epoch)
        self._writer.flush()

    def log_results(self, figures: Mapping[str, float], files: Sequence[Path], epoch: int) -> None:
        """Adds the figures beside the hyperparameters; the files are on this disk already."""
        del files, epoch
        named = {f"results/{figure}": value for figure, value in figures.items()}
        # "." : in this run's folder; a run of its own would appear beside it.
        self._writer.add_hparams(self._parameters, named, run_name=".")

    def close(self, *, failed: bool) -> None:
        """Writes what is left; a run that failed has curves without results."""
        del failed
        self._writer.close()
