"""A training's epochs and results, sent to TensorBoard or MLflow.

tracker       the run that a training is logged to, and when; nothing here stops a training
tensorboard   event files below the model's folder
mlflow        a run on the tracking server that MLflow's own environment variables name

To add a service: a module with a class that has the methods of `tracker.Backend`, and a line in
`tracker.BACKENDS`. What it needs beyond Neurona is an extra in pyproject.toml.
"""
