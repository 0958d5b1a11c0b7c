"""Tables that come with scikit-learn: iris flowers, tumours, diabetes patients."""

import numpy as np

from neurona_training.data import Dataset, Input, Value
from neurona_training.data.splits import stratified_split

_SETOSA = 0  # scikit-learn's code


def iris() -> Dataset:
    """Which of three species is a flower?

    R. Fisher, The Use of Multiple Measurements in Taxonomic Problems, Annals of Eugenics 7
    (1936).

    Returns:
        150 rows, float32 of shape (rows, 4) in cm.
    """
    return _iris_dataset("iris", ("setosa", "versicolor", "virginica"))


def iris_setosa() -> Dataset:
    """Is a flower setosa or one of the other two species? See `iris`."""
    return _iris_dataset("iris-setosa", ("another", "setosa"))


def _iris_dataset(name: str, labels: tuple[str, ...]) -> Dataset:
    from sklearn.datasets import load_iris

    bunch = load_iris()
    targets = bunch.target.astype(np.int64)
    if len(labels) == 2:
        targets = (targets == _SETOSA).astype(np.int64)
    train, validation, test = stratified_split(bunch.data.astype(np.float32), targets)
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
            columns=tuple(bunch.feature_names),
        ),
        labels=labels,
    )


def breast_cancer() -> Dataset:
    """Is a tumour malignant or benign?

    W. Wolberg, O. Mangasarian, N. Street and W. Street, Breast Cancer Wisconsin (Diagnostic),
    UCI Machine Learning Repository (1995).

    Returns:
        569 rows, float32 of shape (rows, 30).
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    train, validation, test = stratified_split(
        bunch.data.astype(np.float32), bunch.target.astype(np.int64)
    )
    columns = tuple(str(name) for name in bunch.feature_names)
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
            + ", ".join(columns),
            unit="pixels, grey levels, ratios",
            columns=columns,
        ),
        labels=tuple(str(name) for name in bunch.target_names),
    )


def diabetes() -> Dataset:
    """How far has the disease progressed a year after the measurements?

    B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, Least Angle Regression, Annals of
    Statistics 32 (2004).

    Returns:
        442 rows, float32 of shape (rows, 10); targets of shape (rows, 1) in points.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    train, validation, test = stratified_split(
        bunch.data.astype(np.float32), bunch.target.astype(np.float32)[:, None]
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
            columns=tuple(bunch.feature_names),
        ),
        values=(Value(name="progression after a year", unit="points"),),
    )
