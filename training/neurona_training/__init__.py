"""Training, offline: a recipe becomes a model file that a server can serve.

Rooms, each importing only those below it:

cli/            the command neurona-train: arguments, tables, and the pipeline
                (train -> measure -> export -> report)
studies/        experiments with a picture as their result, commands by themselves
selection/      choosing on validation rows: comparison over seeds and folds, tuning
report/         the page about a trained model, with charts
recipes/        what can be trained by name: network, data, hyperparameters
tracking/       epochs and results, logged to TensorBoard or MLflow
export/         torch or scikit-learn -> ONNX, verified; metadata, stepwise form, smaller variants
baselines/      rules and scikit-learn's estimators on the same rows, which a network has to beat
learning/       learners (gradient descent and older rules), devices, checkpoints, metrics,
                calibration
architectures/  the networks: a caller's units in, logits or plain values out
data/           data sets: the catalogue, their sources, a user's own files
errors          what the person who starts a run can act on

How to add a data set is in data/__init__.py, a network or recipe in recipes/__init__.py, a
learner in learning/__init__.py.
"""

import os

# ONNX Runtime (1.31, on Linux too) sends events about the process and its models to Microsoft,
# and keeps a file for that in the home folder. Only this prevents it, and only before it is
# loaded: disable_telemetry_events() comes too late. A variable that is already set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
