"""A test of long memory in one chart: an LSTM solves the adding problem, a plain RNN does not.

    python -m neurona_training.studies.long_memory --out long_memory.png

Trains the recipes `rnn` and `lstm` on the data set `adding` (the sum of the two marked ones of
100 numbers, data/sources/adding.py) with the same size, hyperparameters, epochs and seed, and
draws the squared error on the validation rows after each epoch. `neurona-train lstm --data
adding` trains, exports and measures one of them alone.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neurona_training.data import Dataset
from neurona_training.errors import TrainingError
from neurona_training.export.files import check_writable, write_file
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES

DATA = "adding"
NAMES = ("rnn", "lstm")
SOLVED = 0.01  # a squared error of 6 % of the sum's variance

Curves = Mapping[str, Sequence[float]]  # by recipe, the squared error after each epoch


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 1 if the run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m neurona_training.studies.long_memory",
        description="Trains rnn and lstm on the adding problem and draws their errors.",
    )
    parser.add_argument("--out", type=Path, default=Path("long_memory.png"), help="the chart")
    parser.add_argument("--epochs", type=int, help="of each network (default: the recipes')")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    options = parser.parse_args(argv)
    try:
        check_writable(options.out)
        data = RECIPES[NAMES[0]].load(DATA)
        curves, test_errors = compare(data, options.epochs, options.seed)
        write_file(draw_curves(curves, test_errors, data), options.out)
    except (TrainingError, OSError) as error:
        print(f"long_memory: error: {error}", file=sys.stderr)
        return 1
    for name, squared in test_errors.items():
        print(f"{name}: squared error {squared:.4g} on {len(data.test)} test rows")
    print(options.out)
    return 0


def compare(data: Dataset, epochs: int | None, seed: int) -> tuple[Curves, Mapping[str, float]]:
    """Trains both networks alike.

    Returns:
        By recipe, the squared validation error after each epoch, and the squared test error of
        the best epoch.

    Raises:
        TrainingError: data or training failed.
    """
    import torch

    from neurona_training.learning.evaluation import predict, rmse

    curves, test_errors = {}, {}
    for name in NAMES:
        recipe = RECIPES[name]
        settings = recipe.settings(data, DATA)
        if epochs:
            settings = settings.with_changes({"epochs": epochs})
        torch.set_num_threads(settings.hyperparameters.threads)
        result = recipe.fit(data, settings, Run(f"{name}-{DATA}", seed))
        curves[name] = [epoch.metric**2 for epoch in result.history]
        outputs = predict(result.network, data.test).numpy()
        test_errors[name] = rmse(outputs, data.test.targets) ** 2
    return curves, test_errors


def draw_curves(curves: Curves, test_errors: Mapping[str, float], data: Dataset) -> bytes:
    """Draws a PNG of the curves on a logarithmic scale, with the error of the mean."""
    from matplotlib.figure import Figure  # without pyplot: no window, no state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, errors in curves.items():
        numbers = range(1, len(errors) + 1)
        axes.semilogy(
            numbers, errors, marker="o", ms=3, label=f"{name}: {test_errors[name]:.2g} (test)"
        )
    variance = float(data.validation.targets.var())
    axes.axhline(variance, ls="--", color="grey", label=f"predicting the mean: {variance:.3f}")
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
