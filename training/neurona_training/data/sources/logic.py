"""Truth tables of logic.

They were the subject of W. McCulloch and W. Pitts's neurons (1943); XOR cannot be learned by one
neuron (M. Minsky and S. Papert, Perceptrons, 1969).

A truth table has no other rows, so that the same ones are training, validation and test.
Each origin of data stands alone in its module.
"""

import itertools
from collections.abc import Callable

import numpy as np

from neurona_training.data import Dataset, Input, Split

# By name: the number of inputs, and the output by the number of inputs that are true.
TABLES: dict[str, tuple[int, Callable[[int], bool]]] = {
    "not": (1, lambda true: true == 0),
    "and": (2, lambda true: true == 2),
    "or": (2, lambda true: true >= 1),
    "nand": (2, lambda true: true < 2),
    "xor": (2, lambda true: true == 1),
    "majority": (3, lambda true: true >= 2),
}


def truth_table(name: str) -> Dataset:
    """Every row of a truth table, float32 of shape (2 ** inputs, inputs): 0 false, 1 true.

    Args:
        name: one of `TABLES`.
    """
    inputs, output = TABLES[name]
    rows = np.array(list(itertools.product((0, 1), repeat=inputs)), np.float32)
    targets = np.array([output(int(row.sum())) for row in rows], np.int64)
    all_rows = Split(rows, targets)
    return Dataset(
        name=name,
        source=f"the truth table of {name.upper()}",
        train=all_rows,
        validation=all_rows,
        test=all_rows,
        input=Input(
            name="inputs",
            axes=("batch", "input"),
            description=f"what {name.upper()} is asked about: 0 is false, 1 is true",
            unit="0 or 1",
        ),
        labels=("false", "true"),
    )
