"""A run in MLflow.

Where it is logged is said as for every MLflow program: MLFLOW_TRACKING_URI, or else the file
mlflow.db in the current folder; MLFLOW_EXPERIMENT_NAME, or else "neurona".
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# A training tells nobody about itself but the server that the user names.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from neurona_training.tracking.tracker import Parameters

EXPERIMENT = "neurona"
_MAX_PARAMETER_LENGTH = 6000  # of a value, MLflow's own limit
_MAX_BATCH = 100  # parameters of one request, MLflow's own limit


class MlflowBackend:
    """One run of the experiment.

    Args:
        name: of the model and the run.
        folder: of the model; not used.
        parameters: become the run's.
    """

    def __init__(self, name: str, folder: Path, parameters: Parameters) -> None:
        del folder
        self._client = mlflow.MlflowClient()
        experiment = self._experiment_id(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
        self.run_id: str = self._client.create_run(experiment, run_name=name).info.run_id
        params = [
            Param(parameter, str(value)[:_MAX_PARAMETER_LENGTH])
            for parameter, value in parameters.items()
        ]
        for start in range(0, len(params), _MAX_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + _MAX_BATCH])

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another training has just created it
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Adds a point to each metric, in one request."""
        now = time.time_ns() // 1_000_000  # MLflow counts milliseconds
        points = [Metric(metric, value, now, epoch) for metric, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=points)

    def log_results(self, figures: Mapping[str, float], files: Sequence[Path], epoch: int) -> None:
        """Adds the figures, and the files as artifacts."""
        self.log_metrics(figures, epoch)
        for file in files:
            self._client.log_artifact(self.run_id, str(file))

    def close(self, *, failed: bool) -> None:
        """Ends the run as FINISHED or FAILED."""
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
