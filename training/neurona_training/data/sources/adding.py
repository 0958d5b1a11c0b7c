"""The adding problem, a test of long memory.

Experiment 4 of S. Hochreiter and J. Schmidhuber, Long Short-Term Memory, Neural Computation
9, 1997, in the form of later papers (Q. Le and others, arXiv 1504.00941): each step has a
number from 0 to 1 and a mark; two numbers are marked, one in each half; the target is their
sum. Predicting 1 for every row has a squared error of 1/6, the variance of the sum.

Each origin of data stands alone in its module.
"""

import numpy as np

from neurona_training.data import Dataset, Input, Split, Value

STEPS = 100
VARIANCE = 1 / 6  # of the sum of two numbers that are uniform from 0 to 1

_ROWS = {"train": 20_000, "validation": 1_000, "test": 1_000}
_SEED = 1997  # the same rows whatever the seed of a training run


def adding_problem(steps: int = STEPS, rows: int | None = None) -> Dataset:
    """Generates the adding problem; each call gives the same rows.

    Args:
        steps: of each sequence.
        rows: of each part; None makes 20,000 for training and 1,000 for each of the others.

    Returns:
        Inputs of shape (rows, steps, 2), targets of shape (rows, 1).
    """
    train, validation, test = (
        _make_split(rows or size, steps, np.random.default_rng((_SEED, number)))
        for number, size in enumerate(_ROWS.values())
    )
    return Dataset(
        name="adding",
        source=f"the adding problem (Hochreiter and Schmidhuber, 1997), generated, {steps} steps",
        train=train,
        validation=validation,
        test=test,
        input=Input(
            name="sequence",
            axes=("batch", "time", "value"),
            description="at each step a number from 0 to 1, and 1 beside the two numbers that "
            f"are to be added, else 0; trained on {steps} steps",
            unit="a number and a mark",
            columns=("number", "mark"),
        ),
        values=(Value(name="sum", unit="as the numbers"),),
    )


def _make_split(rows: int, steps: int, random: np.random.Generator) -> Split:
    numbers = random.random((rows, steps), np.float32)
    marks = np.zeros((rows, steps), np.float32)
    half = steps // 2
    row_indices = np.arange(rows)
    first = random.integers(0, half, rows)
    second = random.integers(half, steps, rows)
    marks[row_indices, first] = marks[row_indices, second] = 1
    targets = (numbers[row_indices, first] + numbers[row_indices, second])[:, None]
    return Split(np.stack([numbers, marks], axis=2), targets)
