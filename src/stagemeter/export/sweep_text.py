"""A sweep for people, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stagemeter.core.escape import Marked, markdown_code
from stagemeter.core.units import with_unit
from stagemeter.export.document import (
    add_header,
    add_list,
    add_paragraph,
    add_table,
    document_text,
    new_document,
    unbroken,
)

if TYPE_CHECKING:
    from stagemeter.sweeping.summary import SweepSummary

#: Rows that a table of pages shows.
_PAGES = 20


def sweep_markdown(summary: SweepSummary, table_name: str, page_name: str, notes: Sequence[str] = ()) -> str:
    """Say what a sweep comes to: ranges, the cheapest way to see a page, and what devices can do.

    Parameters
    ----------
    summary : SweepSummary
        What the sweep comes to.
    table_name, page_name : str
        Files that lie beside this text: the table, and the page of charts.
    notes : sequence of str
        What one should know of the pages.
    """
    document = new_document()
    table, page = markdown_code(table_name), markdown_code(page_name)
    drawn = f"**{summary.rows:,} workloads.** Each row of {table} is one; {page} draws them."
    add_paragraph(document, Marked(drawn))
    if notes:
        add_list(document, notes)
    ranges = [["", "Least", "Mean", "Most"]]
    several = summary.ranges["model"].nunique() > 1
    for row in _rows(summary.ranges):
        name = f"{row.model} {row.column}" if several else str(row.column)
        ranges.append([name, *(with_unit(round(value)) for value in (row.min, row.mean, row.max))])
    add_table(document, unbroken(ranges))
    front = summary.pages[summary.pages["pareto"]]
    add_header(document, 2, "The cheapest way to see so much of a page")
    pages = [["Mode", "Page", "Pixels of all views", "FLOPs per page, mean"]]
    for row in _rows(front.head(_PAGES)):
        seen, cost = with_unit(round(row.pixels_seen)), with_unit(round(row.flops_per_page))
        pages.append([str(row.mode), f"{row.image_width}x{row.image_height}", seen, cost])
    add_table(document, unbroken(pages))
    if summary.devices is not None:
        add_header(document, 2, "Pages per hour at the roofline, at most")
        hours = [["Device", "Mode", "Pages per hour"]]
        for device, mode, pages in summary.devices.itertuples(index=False):
            hours.append([str(device), str(mode), f"{pages:,.0f}" if pages == pages else "does not fit"])
        add_table(document, unbroken(hours))
    return document_text(document)


def _rows(table: Any) -> Any:
    return table.itertuples(index=False)
