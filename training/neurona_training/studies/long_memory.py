"""The test of long memory in one picture: an LSTM solves the adding problem, an RNN does not.

    python -m neurona_training.studies.long_memory --out long_memory.png

Trains the recipes `rnn` and `lstm` on the data `adding` (data/adding.py: which two of 100
numbers were marked, and what is their sum?) with the same size, hyper-parameters, epochs and
seed, and draws the squared error on the validation rows after each epoch. `neurona-train lstm
--data adding` trains, exports and measures one of them by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neurona_training.data import Dataset
from neurona_training.errors import TrainingError
from neurona_training.export.files import check_writable, write
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES

DATA = "adding"
NAMES = ("rnn", "lstm")
SOLVED = 0.01  # a squared error well under the sum's variance, of which this is 6 %

Curves = Mapping[str, Sequence[float]]  # by recipe, the squared error after each epoch


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 when the run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m neurona_training.studies.long_memory",
        description="Trains rnn and lstm on the adding problem and draws how each one does.",
    )
    parser.add_argument("--out", type=Path, default=Path("long_memory.png"), help="the picture")
    parser.add_argument("--epochs", type=int, help="of each (default: the recipes')")
    parser.add_argument("--seed", type=int, default=0, help="for weights and order (default: 0)")
    said = parser.parse_args(argv)
    try:
        check_writable(said.out)
        data = RECIPES[NAMES[0]].load(DATA)
        curves, tested = compare(data, said.epochs, said.seed)
        write(picture(curves, tested, data), said.out)
    except (TrainingError, OSError) as error:
        print(f"long_memory: error: {error}", file=sys.stderr)
        return 1
    for name, squared in tested.items():
        print(f"{name}: squared error {squared:.4g} on {len(data.test)} test rows")
    print(said.out)
    return 0


def compare(data: Dataset, epochs: int | None, seed: int) -> tuple[Curves, Mapping[str, float]]:
    """Both trained alike: the validation error after each epoch, and the test error of the best.

    Raises TrainingError.
    """
    import torch

    from neurona_training.learning.evaluation import answers, rmse

    curves, tested = {}, {}
    for name in NAMES:
        recipe = RECIPES[name]
        training = recipe.trainings[DATA]
        training = dataclasses.replace(training, epochs=epochs or training.epochs)
        torch.set_num_threads(training.threads)
        fitted = recipe.fit(data, training, Run(f"{name}-{DATA}", seed))
        curves[name] = [epoch.metric**2 for epoch in fitted.history]
        tested[name] = rmse(answers(fitted.network, data.test).numpy(), data.test.targets) ** 2
    return curves, tested


def picture(curves: Curves, tested: Mapping[str, float], data: Dataset) -> bytes:
    """A PNG of the curves, on a logarithmic scale, beside what the mean would get."""
    from matplotlib.figure import Figure  # without pyplot: no window, no state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, errors in curves.items():
        numbers = range(1, len(errors) + 1)
        axes.semilogy(numbers, errors, marker="o", ms=3, label=f"{name}: {tested[name]:.2g} (test)")
    variance = float(data.validation.targets.var())
    axes.axhline(variance, ls="--", color="grey", label=f"saying the mean: {variance:.3f}")
    axes.axhline(SOLVED, ls=":", color="grey", label=f"solved: {SOLVED}")
    steps = data.train.inputs.shape[1]
    axes.set(
        title=f"The adding problem over {steps} steps (Hochreiter and Schmidhuber, 1997)",
        xlabel=f"epoch of {len(data.train):,} rows",
        ylabel="mean squared error, validation",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
