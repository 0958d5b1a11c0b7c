"""What stands on the page: metrics first, then charts, then how the model was made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from neurona_training.learning.evaluation import format_metric
from neurona_training.report import charts
from neurona_training.report.architecture_drawing import architecture_section
from neurona_training.report.calibration import calibration_section
from neurona_training.report.decision_border import decision_border_section
from neurona_training.report.drawing import Section
from neurona_training.report.feature_maps import feature_maps_section
from neurona_training.report.gates import gates_section
from neurona_training.report.glossary import FirstUse
from neurona_training.report.grad_cam import grad_cam_section
from neurona_training.report.importance import importance_section
from neurona_training.report.input_numbers import input_numbers_section
from neurona_training.report.latency import latency_section
from neurona_training.report.model_card import model_card_section
from neurona_training.report.preferred_stimuli import preferred_stimuli_section
from neurona_training.report.results import RunResults
from neurona_training.report.thresholds import thresholds_section
from neurona_training.report.weights import weights_section

_MAX_VALUE_LENGTH = 300  # characters of one value in the table of provenance
_MAX_LABELS = 50
_PART_COLOURS = {"train": "#0072B2", "validation": "#8a5f00", "test": "#00664b"}

_TEMPLATES = Environment(
    loader=PackageLoader("neurona_training.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render_page(results: RunResults) -> str:
    """Renders the report.

    Returns:
        One HTML document that needs no other file.
    """
    sections = list(_sections(results))
    return _TEMPLATES.get_template("page.html.jinja").render(
        name=results.name,
        description=results.metadata.description,
        tiles=_tiles(results),
        is_classification=results.data.is_classification,
        metrics=_compared_metrics(results),
        comparison=results.comparison.sentence,
        baselines=_baselines_table(results),
        parts=_parts(results),
        validation_use="only show how it goes" if results.keeps_last_epoch else "choose the epoch",
        populations=results.populations.summary if results.populations else "",
        sections=[section for section in sections if section is not None],
        explain=FirstUse().explain,
        figure_words=_figure_words(results),
        inputs=_inputs_table(results),
        outputs=_outputs(results),
    )


def _sections(results: RunResults) -> Iterator[Section | None]:
    """In the order of the page: the data, the network, its training, what came out, and why."""
    yield input_numbers_section(results)
    yield architecture_section(results)
    yield charts.training_section(results)
    yield charts.predictions_section(results)
    yield calibration_section(results)
    yield thresholds_section(results)
    yield decision_border_section(results)
    yield charts.mistakes_section(results)
    yield importance_section(results)
    yield weights_section(results)
    yield preferred_stimuli_section(results)
    yield feature_maps_section(results)
    yield grad_cam_section(results)
    yield gates_section(results)
    yield latency_section(results)
    yield _variants_section(results)
    yield model_card_section(results)
    yield _provenance_section(results.metadata.provenance)


def _figure_words(results: RunResults) -> list[str]:
    """Words of the tiles, of the first figures and of the bar of rows."""
    metrics = ["accuracy"] if results.data.is_classification else ["RMSE"]
    metrics += ["AUC"] * ("test_auc" in results.metadata.figures)
    epoch = ["epoch"] if results.fit_result.best_epoch else []
    rows = ["training row", "validation row", "test row"]
    return [*metrics, "parameter", *epoch, *rows, "baseline"]


@dataclass(frozen=True)
class _Tile:
    value: str
    name: str


def _tiles(results: RunResults) -> list[_Tile]:
    figures, unit = results.metadata.figures, results.unit
    first = "test_accuracy" if results.data.is_classification else "test_rmse"
    best, history = results.fit_result.best_epoch, results.fit_result.history
    tiles = [_metric_tile(first, figures[first], unit)]
    tiles += [_metric_tile(name, figures[name], unit) for name in ("test_auc",) if name in figures]
    tiles.append(_Tile(f"{int(results.metadata.provenance['parameters']):,}", "parameters"))
    if best:
        which = "last" if results.keeps_last_epoch else "best"
        tiles.append(_Tile(f"{best}", f"{which} epoch of {history[-1].number}"))
    tiles.append(_Tile(_format_time(results.seconds), "from data to file"))
    tiles.append(_Tile(_format_bytes(results.files["float32"][0]), "ONNX file"))
    return tiles


def _metric_tile(name: str, value: float, unit: str) -> _Tile:
    title, _, number = format_metric(name, value, unit).partition(" ")
    number = number.replace(" %", "\N{NO-BREAK SPACE}%")
    return _Tile(number, f"{title} on the test rows")


@dataclass(frozen=True)
class _ComparedMetric:
    """One bar; of_model tells the model's own metrics from the baselines'."""

    name: str
    percent: str
    value: str
    of_model: bool


def _compared_metrics(results: RunResults) -> list[_ComparedMetric]:
    """The model's own metrics first, then those of the baselines."""
    suffix = "_accuracy" if results.data.is_classification else "_rmse"
    figures = {
        name: value for name, value in results.metadata.figures.items() if name.endswith(suffix)
    }
    titles = {baseline.name: baseline.title for baseline in results.baselines}
    order = sorted(figures, key=lambda name: (not name.startswith(("test", "valid")), name))
    largest = max([*figures.values(), 1e-12])
    metrics = []
    for name in order:
        title = name.removesuffix(suffix).replace("_", " ")
        metrics.append(
            _ComparedMetric(
                name=titles.get(name.removesuffix(suffix), title),
                percent=f"{100 * figures[name] / largest:.1f}",
                value=format_metric(f"test{suffix}", figures[name], results.unit),
                of_model=name.startswith(("test", "validation")),
            )
        )
    return metrics


def _baselines_table(results: RunResults) -> list[list[str]]:
    """How each baseline was set up, and how good it is."""
    lines = [["baseline", "set up", "validation rows", "test rows"]]
    for baseline in results.baselines:
        texts = [
            ", ".join(format_metric(name, value, results.unit) for name, value in metrics.items())
            for metrics in (baseline.validation_metrics, baseline.test_metrics)
        ]
        lines.append([baseline.title, baseline.note, *texts])
    return lines


@dataclass(frozen=True)
class _Part:
    name: str
    colour: str
    rows: int
    share: str


def _parts(results: RunResults) -> list[_Part]:
    data = results.data
    rows = [len(split) for split in (data.train, data.validation, data.test)]
    return [
        _Part(name, colour, count, f"{count / sum(rows):.0%}")
        for (name, colour), count in zip(_PART_COLOURS.items(), rows, strict=True)
    ]


def _variants_section(results: RunResults) -> Section | None:
    if len(results.files) < 2:
        return None
    metrics = [
        name
        for name in ("test_accuracy", "test_auc", "test_rmse")
        if name in results.metadata.figures
    ]
    lines = [["", "bytes", *("test" for _ in metrics)]]
    for variant, (size, described) in results.files.items():
        values = [format_metric(name, described.figures[name], results.unit) for name in metrics]
        lines.append([variant, f"{size:,}", *values])
    caption = "The same network in fewer bits, measured on the test rows."
    return Section("Smaller variants", caption, table=lines)


def _inputs_table(results: RunResults) -> list[list[str]]:
    lines = [["input", "shape", "unit", "what"]]
    for described, array in zip(results.data.inputs, results.data.test.arrays, strict=True):
        shape = f"({', '.join(_axis_sizes(described.axes, array.shape))})"
        lines.append([described.name, shape, described.unit, described.description])
    return lines


def _axis_sizes(axes: Iterable[str], shape: Iterable[int]) -> list[str]:
    return [
        axis if axis in ("batch", "time") else f"{axis} {size}"
        for axis, size in zip(axes, shape, strict=True)
    ]


def _outputs(results: RunResults) -> str:
    values = [
        f"{value.name} ({value.unit})" if value.unit else value.name
        for value in results.data.values
    ]
    names = values or list(results.data.labels)
    more = [f"and {len(names) - _MAX_LABELS:,} more"] if len(names) > _MAX_LABELS else []
    return ", ".join([results.metadata.answer, *names[:_MAX_LABELS], *more])


def _provenance_section(provenance: Mapping[str, str]) -> Section:
    rows = [
        [name.replace("_", " "), _shorten_value(value)]
        for name, value in sorted(provenance.items())
        if value
    ]
    caption = "As it stands in the model's file: with this and the same data it can be made again."
    return Section("How it was made", caption, table=[["what", "value"], *rows])


def _shorten_value(value: str) -> str:
    return value if len(value) <= _MAX_VALUE_LENGTH else f"{value[:_MAX_VALUE_LENGTH]}…"


def _format_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _format_bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
