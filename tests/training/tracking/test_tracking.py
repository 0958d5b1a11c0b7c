"""Trainings that are logged to TensorBoard and MLflow, by the command."""

import mlflow
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neurona_server.models.repository.scanner import find_models
from neurona_training.cli.main import main
from neurona_training.errors import TrackingError
from neurona_training.learning.run import Epoch
from neurona_training.tracking.tracker import Tracker, flatten_parameters, open_tracker

EPOCHS = 4
CURVES = ["accuracy/validation", "learning_rate", "loss/training", "loss/validation"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A model that was logged to both at once; MLflow's files instead of a server."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"file:{folder / 'mlruns'}")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        arguments = ["mlp", "--data", "iris", "--epochs", str(EPOCHS), "--out", str(folder)]
        assert main([*arguments, "--log", "tensorboard", "--log", "mlflow"]) == 0
        yield folder


def _events(model):
    (run,) = (model / "tensorboard").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def test_tensorboard_has_the_curves_and_the_results(out):
    events = _events(out / "mlp-iris")
    scalars = events.Tags()["scalars"]
    assert sorted(one for one in scalars if not one.startswith("results/")) == CURVES
    for curve in CURVES:
        assert [point.step for point in events.Scalars(curve)] == list(range(1, EPOCHS + 1))
    losses = [point.value for point in events.Scalars("loss/training")]
    assert losses[-1] < losses[0]
    (accuracy,) = events.Scalars("results/test_accuracy")
    assert 0 <= accuracy.value <= 1
    hyperparameters = events.PluginTagToContent("hparams")
    assert b"weight_decay" in hyperparameters["_hparams_/session_start_info"]


def test_mlflow_has_parameters_metrics_and_the_files(out):
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("neurona")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "mlp-iris"
    assert run.info.status == "FINISHED"
    expected = {"recipe": "mlp", "data": "iris", "seed": "0", "epochs": str(EPOCHS)}
    assert expected.items() <= run.data.params.items()
    history = client.get_metric_history(run.info.run_id, "loss/validation")
    assert [point.step for point in history] == list(range(1, EPOCHS + 1))
    assert {"test_accuracy", "test_ece", "test_nll"} <= run.data.metrics.keys()
    files = [one.path for one in client.list_artifacts(run.info.run_id)]
    assert sorted(files) == ["model.onnx", "report.html"]


def test_the_model_is_the_same_with_and_without_a_log(out, tmp_path):
    arguments = ["mlp", "--data", "iris", "--epochs", str(EPOCHS), "--no-report"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    file = "mlp-iris/1/model.onnx"
    assert (tmp_path / file).read_bytes() == (out / file).read_bytes()
    assert [str(model) for model in find_models([out])] == ["mlp-iris/1"]


def test_a_service_that_cannot_be_used_is_an_error_before_the_training(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["mlp", "--data", "iris", "--out", str(tmp_path), "--log", "mlflow"]) == 1
    assert "error: --log mlflow: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class _Recorder:
    """A backend that keeps what it is sent, and fails at one epoch."""

    def __init__(self, failing=0):
        self.failing, self.epochs, self.ends = failing, [], []

    def log_metrics(self, metrics, epoch):
        if epoch == self.failing:
            raise ConnectionError("the server\nis away")
        self.epochs.append((epoch, metrics["rmse/validation"]))

    def log_results(self, figures, files, epoch):
        self.ends.append((dict(figures), epoch))

    def close(self, *, failed):
        self.ends.append(failed)


def test_a_service_that_fails_does_not_end_the_training(capsys):
    good, bad = _Recorder(), _Recorder(failing=2)
    tracker = Tracker({"good": good, "bad": bad}, is_classification=False)
    history = [Epoch(number, 0.5, 0.5, number / 10, 0.1) for number in (1, 2, 3)]
    for epoch in history:
        tracker.log_epoch(epoch)
    tracker.log_results(history, {"test_rmse": 1.0}, [], epoch=3)
    tracker.close(failed=False)
    assert good.epochs == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert good.ends == [({"test_rmse": 1.0}, 3), False]
    assert bad.epochs == [(1, 0.1)]
    assert bad.ends == []
    assert capsys.readouterr().err == "--log bad: logging ends here, the server is away\n"


def test_epochs_before_an_interruption_are_logged_at_the_end():
    recorder = _Recorder()
    tracker = Tracker({"recorder": recorder}, is_classification=False)
    history = [Epoch(number, 0.5, 0.5, 0.0, 0.1) for number in (1, 2, 3)]
    tracker.log_epoch(history[2])
    tracker.log_results(history, {}, [], epoch=2)
    assert [epoch for epoch, _ in recorder.epochs] == [3, 1, 2]


def test_a_run_that_fails_is_marked(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    with (
        pytest.raises(KeyboardInterrupt),
        open_tracker(["mlflow"], "mlp", tmp_path, {}, is_classification=True),
    ):
        raise KeyboardInterrupt
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("other").experiment_id])
    assert run.info.status == "FAILED"


def test_a_run_does_not_go_on_if_another_service_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "tensorboard").write_text("no folder")
    with (
        pytest.raises(TrackingError, match="--log tensorboard"),
        open_tracker(["mlflow", "tensorboard"], "mlp", tmp_path, {}, is_classification=True),
    ):
        pass
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("neurona").experiment_id])
    assert run.info.status == "FAILED"


def test_parameters_are_flat():
    parameters = {"seed": 0, "patience": None, "units": (32, 16), "augmentation": {"pixels": 2.0}}
    assert flatten_parameters(parameters) == {
        "seed": 0,
        "units": "(32, 16)",
        "augmentation.pixels": 2.0,
    }
