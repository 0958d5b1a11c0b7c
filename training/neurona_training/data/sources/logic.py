"""Truth tables of logic: what W. McCulloch and W. Pitts's neurons were made for (1943), and
XOR, which M. Minsky and S. Papert (Perceptrons, 1969) showed one neuron to be unable to learn.

There are no other rows than those of the table, so that it is training, validation and test.
"""

import itertools
from collections.abc import Callable

import numpy as np

from neurona_training.data import Dataset, Input, Split

# By name: how many inputs it has, and what it says about how many of them are true.
TABLES: dict[str, tuple[int, Callable[[int], bool]]] = {
    "not": (1, lambda true: true == 0),
    "and": (2, lambda true: true == 2),
    "or": (2, lambda true: true >= 1),
    "nand": (2, lambda true: true < 2),
    "xor": (2, lambda true: true == 1),
    "majority": (3, lambda true: true >= 2),
}


def table(name: str) -> Dataset:
    """Every row of the truth table, (2 ** inputs, inputs), false as 0 and true as 1."""
    inputs, says = TABLES[name]
    rows = np.array(list(itertools.product((0, 1), repeat=inputs)), np.float32)
    targets = np.array([says(int(row.sum())) for row in rows], np.int64)
    whole = Split(rows, targets)
    return Dataset(
        name=name,
        source=f"the truth table of {name.upper()}",
        train=whole,
        validation=whole,
        test=whole,
        input=Input(
            name="inputs",
            axes=("batch", "input"),
            description=f"what {name.upper()} is asked about: 0 is false, 1 is true",
            unit="0 or 1",
        ),
        labels=("false", "true"),
    )
