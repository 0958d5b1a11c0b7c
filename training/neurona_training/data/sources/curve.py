"""A function of one number, to be approximated: without noise, and of few rows with noise.

A network with one hidden layer approximates any continuous function if it has enough units
(G. Cybenko, Approximation by Superpositions of a Sigmoidal Function, 1989): on `curve` the error
falls as units are added. The waves of sin(x²) become shorter with x, so that each further unit
follows the curve a little further.

With as many units as there are rows a network can also learn the noise: on `noisy-curve` the
loss on the training rows then falls while the validation loss rises.

Each origin of data stands alone in its module.
"""

import numpy as np

from neurona_training.data import Dataset, Input, Split, Value

END = 4.0  # of x, which starts at 0
NOISE = 0.3  # standard deviation, of the noisy training and validation rows

_ROWS = {"train": 600, "validation": 200, "test": 400}
_NOISY_ROWS = {"train": 30, "validation": 30, "test": 400}
_SEED = 1989  # the same rows whatever the seed of a training run


def curve() -> Dataset:
    """Generates rows of sin(x²); each call gives the same.

    Returns:
        Inputs of shape (rows, 1), targets of shape (rows, 1).
    """
    parts = [_split(count, number, noise=0) for number, count in enumerate(_ROWS.values())]
    return _dataset(parts, "y = sin(x²) for x from 0 to 4, generated without noise")


def noisy_curve() -> Dataset:
    """Generates few rows of sin(2x) with noise, and test rows without.

    Returns:
        Inputs of shape (rows, 1), targets of shape (rows, 1).
    """
    parts = [
        _split(count, number, noise=0 if part == "test" else NOISE, simple=True)
        for number, (part, count) in enumerate(_NOISY_ROWS.items())
    ]
    return _dataset(
        parts,
        f"y = sin(2x) for x from 0 to 4, generated; noise of standard deviation {NOISE} in the "
        "training and validation rows, none in the test rows",
    )


def _split(rows: int, number: int, *, noise: float, simple: bool = False) -> Split:
    random = np.random.default_rng((_SEED, number))
    x = random.uniform(0, END, (rows, 1)) if number < 2 else np.linspace(0, END, rows)[:, None]
    y = np.sin(2 * x) if simple else np.sin(x**2)
    y = y + noise * random.standard_normal((rows, 1))
    return Split(x.astype(np.float32), y.astype(np.float32))


def _dataset(parts: list[Split], source: str) -> Dataset:
    train, validation, test = parts
    return Dataset(
        name="curve",
        source=source,
        train=train,
        validation=validation,
        test=test,
        input=Input("x", ("batch", "feature"), "x, from 0 to 4", "", columns=("x",)),
        values=(Value("y", ""),),
    )
