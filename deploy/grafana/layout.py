"""What the dashboards share: the grid of panels, variables, links and annotations."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model
from panels import DATASOURCE, Link, PanelBuilder
from promql import PROCESSES

UIDS = {"Overview": "neurona-overview", "Model": "neurona-model", "Process": "neurona-process"}

SCHEMA_VERSION = 38
"""Of Grafana 10.1's dashboards: the SDK writes an older one, which Grafana would migrate."""


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it, from the left, as many side by side as fit."""

    title: str
    panels: Sequence[PanelBuilder]


def dashboard(
    title: str,
    description: str,
    variables: Sequence[builder.QueryVariable],
    rows: Sequence[Row],
) -> model.Dashboard:
    """The dashboard `title` with its variables (after the data source) and rows of panels."""
    board = builder.Dashboard(f"Neurona / {title}").uid(UIDS[title]).description(description)
    board.tags(["neurona"]).version(1).editable().timezone("browser").refresh("30s")
    board.time("now-1h", "now").fiscal_year_start_month(0)
    board.tooltip(model.DashboardCursorSync.CROSSHAIR)  # all panels show the same point in time
    board.links([_dashboard_link(other) for other in UIDS if other != title])
    board.variables([_datasource_variable(), *variables])
    board.annotations(_annotations())
    number = 0
    for row in rows:
        board.with_row(builder.Row(row.title).id(number := number + 1))
        for panel in row.panels:
            board.with_panel(panel.id(number := number + 1))
    built = board.build()
    built.schema_version = SCHEMA_VERSION
    return built


def job_variable() -> builder.QueryVariable:
    return _label_variable("job", "Job", "label_values(neurona_transport_info, job)")


def instance_variable(*, multiple: bool = True) -> builder.QueryVariable:
    values = 'label_values(neurona_transport_info{job=~"$job"}, instance)'
    return _label_variable("instance", "Process", values, multiple=multiple)


def model_variable(*, multiple: bool = True) -> builder.QueryVariable:
    values = f"label_values(neurona_version_state{{{PROCESSES}}}, model)"
    return _label_variable("model", "Model", values, multiple=multiple)


def version_variable() -> builder.QueryVariable:
    values = f'label_values(neurona_version_state{{{PROCESSES}, model=~"$model"}}, version)'
    variable = _label_variable("version", "Version", values)
    return variable.sort(model.VariableSort.NUMERICAL_ASC)


def model_dashboard_link(name: str = "${__field.labels.model}") -> Link:
    """Link from a panel to the dashboard of the model that was clicked."""
    selection = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
    return Link("This model").url(f"/d/{UIDS['Model']}?var-model={name}&{selection}")


def _dashboard_link(title: str) -> Link:
    """Link to another dashboard, which keeps the time range and the variables."""
    link = Link(title).type(model.DashboardLinkType.LINK).url(f"/d/{UIDS[title]}")
    link.tooltip(f"Neurona / {title}").icon("dashboard")
    return link.include_vars(True).keep_time(True)


def _datasource_variable() -> builder.DatasourceVariable:
    return builder.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _label_variable(
    name: str, label: str, values: str, *, multiple: bool = True
) -> builder.QueryVariable:
    """A variable with the values of a Prometheus label; `multiple` also allows "All"."""
    variable = builder.QueryVariable(name).label(label).datasource(DATASOURCE).query(values)
    variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).regex("")
    variable.sort(model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
    variable.multi(multiple).include_all(multiple)
    if multiple:
        every = model.VariableOption(selected=True, text=["All"], value=["$__all"])
        # Not the empty value: requests for unknown models are counted under it.
        variable.current(every).all_value(".+")
    return variable


class _PrometheusAnnotation(model.AnnotationQuery):
    """An annotation with the options of the Prometheus data source, which the SDK's type lacks."""

    title_format = ""

    def to_json(self) -> dict[str, object]:
        options = {"step": "15s", "titleFormat": self.title_format, "textFormat": ""}
        return {**super().to_json(), **options}


class _Annotation(builder.AnnotationQuery):
    def __init__(self, title_format: str) -> None:
        super().__init__()
        self._internal = _PrometheusAnnotation()
        self._internal.title_format = title_format


def _annotations() -> list[Builder[model.AnnotationQuery]]:
    """Events that explain most steps in the lines."""
    started = f"(time() - process_start_time_seconds{{{PROCESSES}}}) < 60"
    ready = f'neurona_version_state{{{PROCESSES}, state="ready"}} == 1'
    ready = f"{ready} unless neurona_version_state offset 1m"
    labels = f"neurona_version_label{{{PROCESSES}}} unless neurona_version_label offset 1m"
    return [
        _annotation("Restarts", "red", started, "{{instance}} started"),
        _annotation("Versions", "blue", ready, "{{model}} version {{version}} is ready"),
        _annotation("Labels", "purple", labels, "{{label}} of {{model}} is version {{version}}"),
    ]


def _annotation(name: str, color: str, expr: str, title: str) -> builder.AnnotationQuery:
    annotation = _Annotation(title).name(name).datasource(DATASOURCE).enable(True).hide(False)
    return annotation.icon_color(color).expr(expr)
