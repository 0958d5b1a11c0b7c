"""Diabetes patients, bundled with scikit-learn: 442 of them, ten measurements each.

B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, Least Angle Regression, Annals of
Statistics 32 (2004).
"""

import numpy as np
from numpy.typing import NDArray

from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.data.parts import parts

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
