"""Iris flowers, bundled with scikit-learn: 150 flowers of three species, four lengths each.

R. A. Fisher, The Use of Multiple Measurements in Taxonomic Problems, Annals of Eugenics 7
(1936). Setosa can be told from the two others by a plane; those two cannot be told apart so.
"""

import numpy as np

from neurona_training.data import Dataset, Input
from neurona_training.data.parts import parts

SETOSA = 0  # scikit-learn's code


def species() -> Dataset:
    """Which of the three species, (rows, 4)."""
    return _dataset("iris", ("setosa", "versicolor", "virginica"))


def setosa() -> Dataset:
    """Setosa against the rest, (rows, 4)."""
    return _dataset("iris-setosa", ("another", "setosa"))


def _dataset(name: str, labels: tuple[str, ...]) -> Dataset:
    from sklearn.datasets import load_iris

    iris = load_iris()
    targets = iris.target.astype(np.int64)
    if len(labels) == 2:
        targets = (targets == SETOSA).astype(np.int64)
    train, validation, test = parts(iris.data.astype(np.float32), targets)
    return Dataset(
        name=name,
        source="scikit-learn load_iris: Fisher's iris flowers (1936)",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="flower",
            axes=("batch", "length"),
            description="sepal length, sepal width, petal length, petal width",
            unit="cm",
            columns=("sepal length", "sepal width", "petal length", "petal width"),
        ),
        labels=labels,
    )
