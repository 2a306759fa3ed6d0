"""A sweep as charts: cost against tokens, batch and resolution, and what devices can do at best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagemeter.export.charts import Chart, Series

if TYPE_CHECKING:
    import pandas

    from stagemeter.sweeping.summary import SweepSummary


def sweep_charts(summary: SweepSummary) -> dict[str, Chart]:
    """Work out the charts of a sweep; those of an axis that it does not vary are left out."""
    charts = {}
    if summary.by_new_tokens is not None:
        charts["cost_by_tokens"] = Chart(
            title="Cost against the tokens that are generated, mean over the rest",
            x_title="new tokens",
            y_title="FLOPs per page",
            kind="lines",
            series=_lines(summary.by_new_tokens, "new_tokens", "flops_per_page"),
        )
    if summary.by_batch is not None:
        charts["bytes_by_batch"] = Chart(
            title="Bytes moved for a page against pages at once, mean over the rest",
            x_title="batch size",
            y_title="bytes per page",
            kind="lines",
            series=_lines(summary.by_batch, "batch_size", "bytes_per_page"),
            log=True,
        )
    if summary.heat is not None:
        charts["heat_map"] = _heat(summary.heat)
    charts["cost_by_resolution"] = _resolution(summary.pages)
    if summary.devices is not None:
        charts["pages_per_hour"] = _devices(summary.devices)
    return charts


def _lines(table: pandas.DataFrame, x: str, y: str) -> list[Series]:
    return [
        Series(str(mode), *(part.sort_values(x)[name].tolist() for name in (x, y)))
        for mode, part in table.groupby("mode", observed=True, sort=False)
    ]


def _heat(table: pandas.DataFrame) -> Chart:
    x, y = table.columns[:2]
    wide = table.pivot_table(index=y, columns=x, values="flops/total")
    return Chart(
        title="FLOPs of a request, mean over the rest",
        x_title=x.replace("_", " "),
        y_title=y.replace("_", " "),
        kind="heat",
        heat=wide.to_numpy().tolist(),
        x_values=wide.columns.tolist(),
        y_values=wide.index.tolist(),
    )


def _resolution(pages: pandas.DataFrame) -> Chart:
    def points(part: pandas.DataFrame, name: str, joined: bool = False) -> Series:
        labels = [f"{row.mode}, page {row.image_width}x{row.image_height}" for row in part.itertuples()]
        return Series(name, part["pixels_seen"].tolist(), part["flops_per_page"].tolist(), labels, joined)

    groups: Any = pages.groupby("mode", observed=True, sort=False)
    front = pages[pages["pareto"]]
    return Chart(
        title="Cost against what the model sees of a page, mean over the rest",
        x_title="pixels of all views",
        y_title="FLOPs per page",
        kind="points",
        series=[*(points(part, str(mode)) for mode, part in groups), points(front, "Pareto front", joined=True)],
    )


def _devices(devices: pandas.DataFrame) -> Chart:
    names = devices["device"].astype(str).unique().tolist()
    series = []
    for mode, part in devices.groupby("mode", observed=True, sort=False):
        by_device = part.assign(device=part["device"].astype(str)).set_index("device")["at_roofline/pages_per_hour"]
        # What does not fit into a device has no bar.
        by_device = by_device.fillna(0.0)
        series.append(Series(str(mode), names, [float(by_device.get(name, 0.0)) for name in names]))
    return Chart(
        title="Pages per hour at the roofline, the best of each mode",
        x_title="device",
        y_title="pages per hour, at most",
        kind="bars",
        series=series,
    )
