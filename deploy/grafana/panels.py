"""The kinds of panels that the dashboards use, as builders of Grafana's SDK with common settings.

`layout` numbers the panels and puts them on the grid. Grafana shows a panel's description behind
its (i): it says what is shown and when to worry.
"""

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.builders import heatmap as heatmap_builder
from grafana_foundation_sdk.builders import prometheus as prometheus_builder
from grafana_foundation_sdk.builders import stat as stat_builder
from grafana_foundation_sdk.builders import statetimeline as state_timeline_builder
from grafana_foundation_sdk.builders import table as table_builder
from grafana_foundation_sdk.builders import timeseries as time_series_builder
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

Query = prometheus_builder.Dataquery
Thresholds = dashboard_builder.ThresholdsConfig
Link = dashboard_builder.DashboardLink
PanelBuilder = (
    heatmap_builder.Panel
    | stat_builder.Panel
    | state_timeline_builder.Panel
    | table_builder.Panel
    | time_series_builder.Panel
)


def query(expr: str, legend: str = "__auto", *, exemplars: bool = False) -> Query:
    """A PromQL query; `legend` names its series and may contain {{labels}}.

    `exemplars` shows the trace ids of single requests as dots, for histograms that carry them.
    """
    built = Query().expr(expr).legend_format(legend).range()
    built.datasource(DATASOURCE).editor_mode(QueryEditorMode.CODE)
    return built.exemplar(True) if exemplars else built


def thresholds(*steps: tuple[float | None, str]) -> Thresholds:
    """Colours from these values upwards; the value of the first is None."""
    return Thresholds().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(*step) for step in steps])


def time_series(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    width: int = 8,
    stacked: bool = False,
    minimum: float | None = 0,
    maximum: float | None = None,
    limit: float | None = None,
    logarithmic: bool = False,
    links: Sequence[Link] = (),
) -> time_series_builder.Panel:
    """Lines over time.

    `limit` draws a dashed line at the value above which it is time to worry; `links` are offered
    when a line is clicked.
    """
    panel = time_series_builder.Panel().title(title).description(description).datasource(DATASOURCE)
    panel.span(width).height(8).targets(_numbered(queries)).unit(unit)
    panel.color_scheme(_color(FieldColorModeId.PALETTE_CLASSIC))
    panel.draw_style(common.GraphDrawStyle.LINE).line_width(1).fill_opacity(25 if stacked else 8)
    panel.show_points(common.VisibilityMode.NEVER).span_nulls(False)
    stacking = common.StackingMode.NORMAL if stacked else common.StackingMode.NONE
    panel.stacking(common_builder.StackingConfig().mode(stacking).group("A"))
    panel.legend(_legend(shown=True))
    panel.tooltip(_tooltip(common.TooltipDisplayMode.MULTI, common.SortOrder.DESCENDING))
    if logarithmic:
        scale = common_builder.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel.scale_distribution(scale)
    elif minimum is not None:  # a logarithmic scale has no zero
        panel.min(minimum)
    if maximum is not None:
        panel.max(maximum)
    if links:
        panel.data_links(list(links))
    if limit is not None:
        style = common_builder.GraphThresholdsStyleConfig()
        panel.thresholds_style(style.mode(common.GraphTresholdsStyleMode.DASHED))
        panel.thresholds(thresholds((None, "transparent"), (limit, "red")))
    return panel


def stat(
    title: str,
    description: str,
    value: Query,
    *,
    unit: str,
    colors: Thresholds,
    width: int = 3,
    decimals: int | None = None,
    words: Mapping[str, str] | None = None,
) -> stat_builder.Panel:
    """The current value, in the colour of its threshold. `words` are shown instead of values."""
    panel = stat_builder.Panel().title(title).description(description).datasource(DATASOURCE)
    panel.span(width).height(4).targets(_numbered([value])).unit(unit)
    panel.thresholds(colors).color_scheme(_color(FieldColorModeId.THRESHOLDS))
    panel.color_mode(common.BigValueColorMode.VALUE)
    graph = common.BigValueGraphMode.NONE if words else common.BigValueGraphMode.AREA
    panel.graph_mode(graph).justify_mode(common.BigValueJustifyMode.AUTO)
    panel.orientation(common.VizOrientation.AUTO).text_mode(common.BigValueTextMode.AUTO)
    reduce = common_builder.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)
    panel.reduce_options(reduce)
    if decimals is not None:
        panel.decimals(decimals)
    if words:
        panel.mappings(_value_map({value: (word, None) for value, word in words.items()}))
    return panel


def heatmap(
    title: str, description: str, buckets: Query, *, unit: str, width: int = 8
) -> heatmap_builder.Panel:
    """The buckets of a histogram over time, darker where the counts are higher."""
    panel = heatmap_builder.Panel().title(title).description(description).datasource(DATASOURCE)
    panel.span(width).height(8)
    panel.targets(_numbered([buckets.format(PromQueryFormat.HEATMAP)]))
    colors = heatmap_builder.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
    colors.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5).steps(64).fill("dark-orange")
    panel.calculate(False).color(colors).cell_gap(1).exemplars_color("rgba(31, 96, 196, 0.8)")
    panel.rows_frame(heatmap_builder.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
    panel.show_value(common.VisibilityMode.NEVER)
    panel.filter_values(heatmap_builder.FilterValueRange().le(1e-9))
    axis = heatmap_builder.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT)
    panel.y_axis(axis.reverse(False))
    return panel.show_legend().show_tooltip().show_y_histogram()


def state_timeline(
    title: str, description: str, value: Query, *, states: Mapping[str, tuple[str, str]]
) -> state_timeline_builder.Panel:
    """A bar for each series over time; `states` maps values to words and colours."""
    panel = state_timeline_builder.Panel().title(title).description(description)
    panel.datasource(DATASOURCE).span(12).height(8).targets(_numbered([value]))
    panel.line_width(0).fill_opacity(80).thresholds(thresholds((None, "text")))
    panel.color_scheme(_color(FieldColorModeId.THRESHOLDS)).mappings(_value_map(states))
    panel.merge_values(True).show_value(common.VisibilityMode.AUTO).row_height(0.8)
    panel.align_value(common.TimelineValueAlignment.LEFT).legend(_legend(shown=False))
    return panel.tooltip(_tooltip(common.TooltipDisplayMode.SINGLE, common.SortOrder.NONE))


def table(
    title: str,
    description: str,
    *queries: Query,
    columns: Mapping[str, str],
    model_link: Link,
) -> table_builder.Panel:
    """The current values of queries, joined by their labels, one row for each set of labels.

    `columns` maps the labels that are shown, in this order, to their headings; "Value #A" is the
    value of the first query. `model_link` is the link of the column Model.
    """
    panel = table_builder.Panel().title(title).description(description).datasource(DATASOURCE)
    current = [one.instant().format(PromQueryFormat.TABLE) for one in queries]
    panel.span(12).height(8).targets(_numbered(current))
    panel.show_header(True).cell_height(common.TableCellHeight.SM)
    panel.override_by_name("Model", [DynamicConfigValue("links", [model_link.build()])])
    shown = {"include": {"names": list(columns)}}
    order = {name: index for index, name in enumerate(columns)}
    headings = {"renameByName": dict(columns), "indexByName": order, "excludeByName": {}}
    return panel.transformations(
        [
            DataTransformerConfig("merge", options={}),
            DataTransformerConfig("filterFieldsByName", options=shown),
            DataTransformerConfig("organize", options=headings),
        ]
    )


def _numbered(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    return [one.ref_id("ABCDEFGH"[index]) for index, one in enumerate(queries)]


def _color(mode: FieldColorModeId) -> dashboard_builder.FieldColor:
    return dashboard_builder.FieldColor().mode(mode)


def _value_map(words: Mapping[str, tuple[str, str | None]]) -> list[ValueMapping]:
    results = {value: ValueMappingResult(word, color) for value, (word, color) in words.items()}
    return [ValueMap(results)]


def _legend(*, shown: bool) -> common_builder.VizLegendOptions:
    legend = common_builder.VizLegendOptions().show_legend(shown)
    legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM)
    return legend.calcs([])


def _tooltip(
    mode: common.TooltipDisplayMode, sort: common.SortOrder
) -> common_builder.VizTooltipOptions:
    return common_builder.VizTooltipOptions().mode(mode).sort(sort)
