"""A comparison or a tuning as a page: what was found in words, a chart, a table."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from neurona_training.report.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Picture,
    escape_math,
    make_picture,
    new_figure,
    shorten,
    style_plot,
)
from neurona_training.selection.comparison import RecipeComparison, Standing
from neurona_training.selection.summary import higher_is_better
from neurona_training.selection.tuning import TunedTrial, Tuning

_TEMPLATES = Environment(
    loader=PackageLoader("neurona_training.selection", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ABBREVIATIONS = ("rmse", "auc", "nll")
_METRIC_TITLES = {"rmse": "RMSE", "auc": "AUC", "nll": "NLL (mean -log of the true class)"}
_CHARTS_IN_A_ROW = 3


def comparison_page(comparison: RecipeComparison, notes: Sequence[str]) -> str:
    """Renders a comparison as one HTML document that needs no other file.

    Args:
        comparison: of at least one candidate.
        notes: further paragraphs: what became of the best one.
    """
    plan = comparison.plan
    how = f"Each was trained {_times(len(plan.seeds))}"
    how += f" on each of {plan.folds} folds" if plan.folds else ""
    how += ". The test rows were not used to choose."
    title, verdict = f"Comparison on {comparison.data_name}", comparison.verdict()
    description = "the validation metric of each training, with mean and standard deviation"
    picture = make_picture(draw_comparison(comparison), description)
    return _render(
        title,
        [f"{verdict[:1].upper()}{verdict[1:]}.", how, *notes],
        [picture],
        comparison_table(comparison),
    )


def tuning_page(title: str, tuning: Tuning, notes: Sequence[str]) -> str:
    """Renders a tuning as one HTML document that needs no other file."""
    best = tuning.best
    stopped = sum(trial.loss is None for trial in tuning.trials)
    best_text = (
        f"Best: trial {best.number} of {len(tuning.trials)}, validation loss {best.loss:.4g}."
    )
    trials = "1 trial was" if stopped == 1 else f"{stopped} trials were"
    how = f"{trials} stopped early. The test rows were not used to choose."
    if best.number == 1:
        best_text += " These are the settings with which the tuning began."
    description = "the validation loss of each trial, and by each setting"
    picture = make_picture(draw_tuning(tuning), description)
    return _render(title, [best_text, how, *notes], [picture], tuning_table(tuning))


def comparison_table(comparison: RecipeComparison) -> list[list[str]]:
    """Lines of cells, the head first, the best candidate next."""
    metric = comparison.metric
    title = metric.upper() if metric in _ABBREVIATIONS else metric.replace("_", " ")
    lines = [["", "candidate", f"validation {title}", "parameters", "time"]]
    rank = 0
    for standing in comparison.standings:
        if standing.failure:
            lines.append(["", standing.title, f"failed: {standing.failure}", "", ""])
            continue
        rank += 1
        text = comparison.format(standing.summary(metric)).removeprefix(f"{title} ")
        parameters = f"{standing.parameters:,}" if standing.parameters else ""
        lines.append([str(rank), standing.title, text, parameters, _duration(standing.seconds)])
    return lines


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def tuning_table(tuning: Tuning) -> list[list[str]]:
    """Lines of cells, the head first, the best trial next."""
    names = list(dict.fromkeys(name for trial in tuning.trials for name in trial.values))
    lines = [["trial", "validation loss", *(name.replace("_", " ") for name in names)]]
    for trial in sorted(tuning.trials, key=_loss_or_last):
        loss = f"stopped at {trial.epochs}" if trial.loss is None else f"{trial.loss:.4g}"
        values = [
            f"{trial.values[name]:.3g}" if name in trial.values else "default" for name in names
        ]
        lines.append([str(trial.number), loss, *values])
    return lines


def draw_comparison(comparison: RecipeComparison) -> Figure:
    """A line for each candidate, the best at the top: a point for each training, and the mean."""
    ranked = [standing for standing in comparison.standings if not standing.failure]
    figure = new_figure(9.5, 1.2 + 0.5 * len(ranked))
    axes = figure.subplots()
    style_plot(axes)
    for position, standing in enumerate(ranked):
        _draw_standing(axes, standing, comparison.metric, position)
    axes.set_yticks(range(len(ranked)), [shorten(standing.title, 28) for standing in ranked])
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    title = _METRIC_TITLES.get(comparison.metric, comparison.metric.replace("_", " "))
    unit = f" in {comparison.unit}" if comparison.unit else ""
    better = "larger" if higher_is_better(comparison.metric) else "smaller"
    axes.set_xlabel(escape_math(f"{title}{unit} on validation rows ({better} is better)"))
    if comparison.metric.endswith("accuracy"):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _draw_standing(axes: Axes, standing: Standing, metric: str, position: int) -> None:
    colour = BLUE if standing.is_network else GREY
    values, summary = standing.values(metric), standing.summary(metric)
    if summary.deviation is not None:
        ends = [summary.mean - summary.deviation, summary.mean + summary.deviation]
        axes.plot(ends, [position, position], color=colour, linewidth=5, alpha=0.25)
    # One above the other in order, so that equal values are seen as several.
    step = 0.5 / max(len(values) - 1, 1)
    heights = [position + step * (number - (len(values) - 1) / 2) for number in range(len(values))]
    axes.plot(values, heights, "o", color=colour, markersize=4, alpha=0.7)
    axes.plot([summary.mean], [position], "|", color=INK, markersize=14, markeredgewidth=2)


def draw_tuning(tuning: Tuning) -> Figure:
    """The loss of each trial in order, then the loss by each setting that was tried."""
    complete = [trial for trial in tuning.trials if trial.loss is not None]
    ranges = {
        name: [trial for trial in complete if name in trial.values]
        for name in dict.fromkeys(name for trial in complete for name in trial.values)
    }
    rows = -(-(1 + len(ranges)) // _CHARTS_IN_A_ROW)
    figure = new_figure(9.5, 2.7 * rows)
    grid = figure.subplots(rows, _CHARTS_IN_A_ROW, squeeze=False).flatten().tolist()
    first, *others = grid
    _draw_losses(first, complete, [float(trial.number) for trial in complete], tuning.best)
    best_so_far = [
        min(trial.loss or 0.0 for trial in complete[: index + 1]) for index in range(len(complete))
    ]
    numbers = [trial.number for trial in complete]
    first.step(numbers, best_so_far, where="post", color=INK, linewidth=1)
    first.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    first.set_xlabel("trial", fontsize=9)
    first.set_ylabel("validation loss", fontsize=9)
    for axes, (name, trials) in zip(others, ranges.items(), strict=False):
        values = [float(trial.values[name]) for trial in trials]
        _draw_losses(axes, trials, values, tuning.best)
        if tuning.space[name].log:
            axes.set_xscale("log")
        elif tuning.space[name].integer:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel(name.replace("_", " "), fontsize=9)
    for axes in others[len(ranges) :]:
        axes.set_visible(False)
    return figure


def _draw_losses(
    axes: Axes, trials: Sequence[TunedTrial], values: Sequence[float], best: TunedTrial
) -> None:
    style_plot(axes)
    losses = [trial.loss or 0.0 for trial in trials]
    axes.plot(values, losses, "o", color=BLUE, markersize=4.5, alpha=0.7)
    for value, trial in zip(values, trials, strict=True):
        if trial.number == best.number:
            axes.plot([value], [best.loss or 0.0], "o", color=ORANGE, markersize=7)
    if min(losses) > 0 and max(losses) > 20 * min(losses):
        axes.set_yscale("log")


def _loss_or_last(trial: TunedTrial) -> tuple[bool, float, int]:
    return (trial.loss is None, trial.loss or 0.0, trial.number)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times, from seeds that follow each other"


def _render(
    title: str, paragraphs: Sequence[str], pictures: Sequence[Picture], table: list[list[str]]
) -> str:
    return _TEMPLATES.get_template("page.html.jinja").render(
        title=title, paragraphs=paragraphs, pictures=pictures, table=table
    )
