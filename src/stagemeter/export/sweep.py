"""A sweep as Markdown and charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.escape import Marked, markdown_code, spreadsheet_cell
from stagemeter.core.terminal import Section
from stagemeter.core.units import with_unit
from stagemeter.export.charts import Chart, Series, chart_picture, charts_page
from stagemeter.export.markdown import Document, unbroken

if TYPE_CHECKING:
    import pandas

    from stagemeter.sweeping.summary import SweepSummary


#: Rows of the table of pages at most.
_PAGES = 20
#: Rows of a CSV at most, some 2 MB: a page reads all of a file to show it.
_CSV_ROWS = 1000


PAGE_FILE = "charts.html"


def sweep_files(summary: SweepSummary, title: str) -> dict[str, str | bytes]:
    """Return the contents of a sweep's files by name: its charts as pictures, and together on a page."""
    charts = sweep_charts(summary)
    pictures = {f"{name}.png": chart_picture(chart) for name, chart in charts.items()}
    return {**pictures, PAGE_FILE: charts_page(charts, title)}


def table_csv(table: Path) -> dict[str, str]:
    """Return a Parquet table as CSV by name, which MLflow's page shows; of a long one, its first rows."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(table)
    name = f"{table.stem}.csv" if file.metadata.num_rows <= _CSV_ROWS else f"{table.stem}_first_{_CSV_ROWS}_rows.csv"
    rows = next(file.iter_batches(batch_size=_CSV_ROWS)).to_pandas()
    for column in rows.select_dtypes(exclude="number"):
        rows[column] = [spreadsheet_cell(value) if isinstance(value, str) else value for value in rows[column]]
    return {name: rows.to_csv(index=False, lineterminator="\n")}


def sweep_markdown(summary: SweepSummary, table_name: str, page_name: str, notes: Sequence[str] = ()) -> str:
    """Return a summary of a sweep: ranges, the cheapest way to see a page, and the rates of devices.

    The names are those of files beside this text: the table, and the page of charts. The notes are about the pages.
    """
    document = Document()
    table, page = markdown_code(table_name), markdown_code(page_name)
    drawn = f"**{summary.rows:,} workloads.** Each row of {table} is one; {page} draws them."
    document.paragraph(Marked(drawn))
    if notes:
        document.items(notes)
    ranges, *others = sweep_sections(summary)
    document.table(unbroken(ranges.rows))
    for section in others:
        document.header(2, section.title)
        document.table(unbroken(section.rows))
    return str(document)


def sweep_sections(summary: SweepSummary) -> list[Section]:
    """Return the ranges of some columns, the cheapest way to see a page, and the rates of devices, if any."""
    ranges = [["", "Least", "Mean", "Most"]]
    several = summary.ranges["model"].nunique() > 1
    for row in _rows(summary.ranges):
        name = f"{row.model} {row.column}" if several else str(row.column)
        ranges.append([name, *(with_unit(round(value)) for value in (row.min, row.mean, row.max))])
    sections = [Section(f"{summary.rows:,} workloads", ranges)]
    front = summary.pages[summary.pages["pareto"] & (summary.pages["pixels_seen"] > 0)]
    if len(front):
        pages = [["Mode", "Page", "Pixels of all views", "FLOPs per page, mean"]]
        for row in _rows(front.head(_PAGES)):
            seen, cost = with_unit(round(row.pixels_seen)), with_unit(round(row.flops_per_page))
            pages.append([str(row.mode), f"{row.image_width}x{row.image_height}", seen, cost])
        sections.append(Section("The cheapest way to see so much of a page", pages))
    if summary.devices is not None:
        hours = [["Device", "Mode", "Pages per hour"]]
        for device, mode, pages_per_hour in summary.devices.itertuples(index=False):
            fits = pages_per_hour == pages_per_hour
            hours.append([str(device), str(mode), f"{pages_per_hour:,.0f}" if fits else "does not fit"])
        sections.append(Section("Pages per hour at the roofline, at most", hours))
    return sections


def _rows(table: Any) -> Any:
    return table.itertuples(index=False)


def sweep_charts(summary: SweepSummary) -> dict[str, Chart]:
    """Return the charts of a sweep, without those of axes that it does not vary."""
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
    if summary.pages["pixels_seen"].any():
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
        z_title="FLOPs",
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
        # A workload that does not fit into a device has no bar.
        by_device = by_device.fillna(0.0)
        series.append(Series(str(mode), names, [float(by_device.get(name, 0.0)) for name in names]))
    return Chart(
        title="Pages per hour at the roofline, the best of each mode",
        x_title="device",
        y_title="pages per hour, at most",
        kind="bars",
        series=series,
    )
