"""Diabetes patients, bundled with scikit-learn: 442 of them, ten measurements each.

B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, Least Angle Regression, Annals of
Statistics 32 (2004).
"""

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.splits import parts

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


def tumours() -> Dataset:
    """Malignant or benign, (rows, 30)."""
    from sklearn.datasets import load_breast_cancer

    cancer = load_breast_cancer()
    train, validation, test = parts(cancer.data.astype(np.float32), cancer.target.astype(np.int64))
    return Dataset(
        name="breast-cancer",
        source="scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic, 1995)",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="tumour",
            axes=("batch", "measurement"),
            description="what an image of a fine needle aspirate shows of the cell nuclei: "
            + ", ".join(str(name) for name in cancer.feature_names),
            unit="pixels, grey levels, ratios",
            columns=tuple(str(name) for name in cancer.feature_names),
        ),
        labels=tuple(str(name) for name in cancer.target_names),
    )


_COLUMNS = (
    *("age", "sex", "body mass index", "blood pressure", "total cholesterol"),
    *("LDL", "HDL", "cholesterol / HDL", "log triglycerides", "blood sugar"),
)


def progression() -> Dataset:
    """How far the disease has come a year after the measurements, (rows, 10) -> (rows, 1)."""
    from sklearn.datasets import load_diabetes

    diabetes = load_diabetes(scaled=False)
    train, validation, test = parts(
        diabetes.data.astype(np.float32), diabetes.target.astype(np.float32)[:, None]
    )
    return Dataset(
        name="diabetes",
        source="scikit-learn load_diabetes: Efron and others, Least Angle Regression (2004)",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="patient",
            axes=("batch", "measurement"),
            description="age, sex (1 or 2), body mass index, mean blood pressure and six values "
            "of the blood serum: total cholesterol, LDL, HDL, total cholesterol / HDL, logarithm "
            "of the triglycerides, blood sugar",
            unit="years, 1 or 2, kg/m2, mmHg, mg/dl",
            columns=_COLUMNS,
        ),
        values=(Value(name="progression after a year", unit="points"),),
        baselines={
            "mean": np.full_like(test.targets, train.targets.mean()),
            "least_squares": least_squares(train, test.inputs),
        },
    )


def least_squares(train: Split, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the plane closest to the training rows says, in closed form: (rows, values)."""
    mean, spread = train.inputs.mean(axis=0), train.inputs.std(axis=0)

    def with_one(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        scaled = ((rows - mean) / spread).astype(np.float64)
        return np.column_stack([scaled, np.ones(len(rows))])

    plane = np.linalg.lstsq(with_one(train.inputs), train.targets.astype(np.float64), rcond=None)[0]
    return (with_one(inputs) @ plane).astype(np.float32)
