"""Baselines: simple rules and scikit-learn's estimators on the same rows as a network.

estimators   fits them: `fit_baselines`
problem      what an estimator learns, and the choice of its settings
features     torch modules that make columns of numbers of any kind of data
model        an estimator with its columns, as a function of a data set's inputs
seasons      how long the season of a series is
comparison   whether a baseline is better than the network, in words

What learns is fitted on the training rows and set up on the validation rows, as a network is;
the test rows only measure. `export/estimators.py` writes any of them as an ONNX file.
"""

# Every baseline by its name in metrics and on the command line; not each suits all data.
TITLES = {
    "linear": "linear model",
    "gradient_boosting": "gradient boosting",
    "nearest_neighbours": "nearest neighbours",
    "support_vectors": "support vector machine",
    "persistence": "the last value again",
    "seasonal_persistence": "the value of a season before",
    "majority": "always the most frequent class",
    "mean": "always the mean",
}
