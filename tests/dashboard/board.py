"""Grafana's JSON of the panels, made with Grafana's own builders, so that it is what Grafana reads."""

from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DynamicConfigValue,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

from tests.dashboard.panels import ROWS, Panel

FILE: Final = Path(__file__).resolve().parents[2] / "helm" / "transload" / "files" / "dashboard.json"
UID: Final = "transload"
"""Its address in any Grafana: /d/transload. The alerts' dashboard_url is that."""
_SOURCE: Final = DataSourceRef("prometheus", "${datasource}")
_WIDE: Final = 24
_COLORS: Final = MappingProxyType(
    {"green": "ack|ok", "orange": "retry|error|pending", "red": "dead|lost|parked|at most"}
)
"""Series of these names look the same in every panel."""
_HEIGHT: Final = 8
_NUMBER_HEIGHT: Final = 4


def rendered() -> str:
    """The file's content."""
    board = (
        dashboard.Dashboard("Transload")
        .uid(UID)
        .description("Transload's workers: intake, transfers, bundles, outbox, backends, process.")
        .tags(["transload"])
        .time("now-6h", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("job")
            .label("Job")
            .datasource(_SOURCE)
            .query("label_values(transload_build_info, job)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
    )
    ids, y = count(1), 0
    for row in ROWS:
        board.with_row(dashboard.Row(row.title).id(next(ids)).grid_pos(GridPos(h=1, w=_WIDE, x=0, y=y)))
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > _WIDE:
                x, y = 0, y + height
            height = _NUMBER_HEIGHT if panel.kind == "number" else _HEIGHT
            made = _number(panel) if panel.kind == "number" else _lines(panel)
            board.with_panel(made.id(next(ids)).grid_pos(GridPos(h=height, w=panel.width, x=x, y=y)))
            x += panel.width
        y += height
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


def _number(panel: Panel) -> stat.Panel:
    steps = [Threshold(value=None, color="text")]
    if panel.warn is not None:
        steps = [Threshold(value=None, color="green"), Threshold(value=panel.warn, color="orange")]
    return (
        stat.Panel()
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .decimals(1 if panel.unit == "s" else 0)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
        .targets(_targets(panel))
    )


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .min(0)
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(10)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .targets(_targets(panel))
    )
    for color, names in _COLORS.items():
        fixed = DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})
        made.override_by_regexp(f"/^({names})$/", [fixed])
    if panel.top is not None:
        made.max(panel.top)
    if panel.kind == "bars":
        made.draw_style(GraphDrawStyle.BARS).fill_opacity(80)
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return made


def _targets(panel: Panel) -> list[Builder[Dataquery]]:
    targets: list[Builder[Dataquery]] = []
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expression).datasource(_SOURCE)
        target.instant() if panel.kind == "number" else target.range()
        targets.append(target.legend_format(query.legend or "__auto"))
    return targets
