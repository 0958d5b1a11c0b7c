"""Breast tumours, bundled with scikit-learn: 569 of them, 30 measurements each.

W. Street, W. Wolberg and O. Mangasarian, Nuclear Feature Extraction for Breast Tumor
Diagnosis, SPIE 1905 (1993); UCI Breast Cancer Wisconsin (Diagnostic).
"""

import numpy as np

from neurona_training.data import Dataset, Input
from neurona_training.data.parts import parts


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
