"""A comparison as Markdown, CSV and a page, and on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stagemeter.comparing.compare import SUMS
from stagemeter.core.escape import Marked, markdown_link, markdown_text, printable, spreadsheet_cell
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, REQUEST, TOTAL
from stagemeter.core.terminal import Section, print_sections
from stagemeter.core.units import milliseconds, rate, with_unit
from stagemeter.export.charts import PAGE_STYLE, Chart, Series, chart_svg
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document, abreast, unbroken

#: Subjects that a table shows side by side at most. More stand below one another.
_SIDE_BY_SIDE = 4
#: Values of a setting that a line on the console names at most.
_NAMED = 4


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print a comparison on stdout: a table for each quantity, and the settings that differ."""
    print_sections(comparison_sections(comparison))


def comparison_sections(comparison: Mapping[str, Any]) -> list[Section]:
    """Return the subjects, a table for each quantity, and the settings that differ."""
    tables = [
        Section(title_of(comparison, name), comparison_rows(comparison, name, quantity))
        for name, quantity in comparison["quantities"].items()
    ]
    notes = [f"note: {note}" for note in comparison["notes"]]
    return [Section(lines=legend(comparison)), *tables, Section(lines=[*_differences(comparison), *notes])]


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown, with links to the pages of its runs."""
    document = Document()
    document.header(1, "Comparison")
    document.items(legend(comparison, links=True))
    for name, quantity in comparison["quantities"].items():
        document.header(2, title_of(comparison, name))
        document.table(unbroken(comparison_rows(comparison, name, quantity)))
    _add_settings(document, comparison)
    return str(document)


def comparison_description(comparison: Mapping[str, Any]) -> str:
    """Return the description of a run: for each quantity a headline and the stages side by side, and words."""
    document = Document()
    for name, quantity in comparison["quantities"].items():
        document.paragraph(_headline(comparison, name, quantity))
        rows = unbroken(comparison_rows(comparison, name, quantity))
        # Many subjects stand below one another already.
        document.table(abreast(rows) if len(comparison["subjects"]) <= _SIDE_BY_SIDE else rows)
    document.items(legend(comparison, links=True))
    _add_settings(document, comparison)
    return str(document)


def _headline(comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any]) -> str:
    total = next((row for row in quantity["rows"] if row["stage"] == TOTAL), None)
    if total is None or len(comparison["subjects"]) > _SIDE_BY_SIDE:
        return f"{title_of(comparison, name)}."
    ratios = zip(comparison["subjects"], total["ratios"], strict=True)
    others = [
        f"{subject['name']} **{_ratio(ratio)}**"
        for number, (subject, ratio) in enumerate(ratios)
        if number != comparison["baseline"]
    ]
    return f"{title_of(comparison, name)}: {', '.join(others)}."


def _add_settings(document: Document, comparison: Mapping[str, Any]) -> None:
    """Add the settings that differ, and the notes."""
    for title, settings in (("Configuration", "configuration"), ("Environment", "environment")):
        rows = setting_rows(comparison, settings)
        document.header(2, title)
        if len(rows) > 1:
            document.table(unbroken(rows), ["left"] * len(rows[0]))
        else:
            document.paragraph("Nothing differs.")
    document.section("Notes", comparison["notes"])


def comparison_csv(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as CSV: a line for each quantity, stage and subject, with all digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    records = comparison_records(comparison)
    writer.writerow(records[0])
    for record in records:
        writer.writerow([_csv_cell(value) for value in record.values()])
    return stream.getvalue()


def _csv_cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return spreadsheet_cell(value) if isinstance(value, str) else repr(value)


def comparison_records(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each quantity, stage and subject."""
    return [
        {
            "quantity": name,
            "stage": row["stage"],
            "subject": subject["name"],
            "source": subject["source"],
            "value": value,
            "difference": difference,
            "ratio": ratio,
        }
        for name, quantity in comparison["quantities"].items()
        for row in quantity["rows"]
        for subject, value, difference, ratio in zip(
            comparison["subjects"], row["values"], row["differences"], row["ratios"], strict=True
        )
    ]


def title_of(comparison: Mapping[str, Any], name: str) -> str:
    """Return the title of a quantity's table."""
    baseline = comparison["subjects"][comparison["baseline"]]["name"]
    return f"{name}, against {baseline}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text, and the value that sorts it."""

    text: str
    value: float | str | None


def comparison_table(
    comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any]
) -> tuple[list[str], list[list[Cell]]]:
    """Return header and rows of one quantity. Rows are stages, or subjects where there are many."""
    subjects, baseline, rows = comparison["subjects"], comparison["baseline"], quantity["rows"]
    others = [number for number in range(len(subjects)) if number != baseline]
    if len(subjects) > _SIDE_BY_SIDE:
        return ["run", *(row["stage"] for row in rows)], [
            [_name(subjects[number]["name"]), *(_with_ratio(name, row, number) for row in rows)]
            for number in (baseline, *others)
        ]
    header = ["stage", subjects[baseline]["name"]]
    for number in others:
        header += [subjects[number]["name"], "difference", "ratio"]
    table = []
    for row in rows:
        cells = [_name(row["stage"]), _value(name, row, baseline)]
        for number in others:
            difference, ratio = row["differences"][number], row["ratios"][number]
            cells += [_value(name, row, number), Cell(signed(name, difference), difference), Cell(_ratio(ratio), ratio)]
        table.append(cells)
    return header, table


def comparison_rows(comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of one quantity as text, the header first."""
    header, table = comparison_table(comparison, name, quantity)
    return [header, *([cell.text for cell in row] for row in table)]


def setting_rows(comparison: Mapping[str, Any], settings: str) -> list[list[str]]:
    """Return the settings that differ in ``configuration`` or ``environment``, the header first."""
    header = ["", *(subject["name"] for subject in comparison["subjects"])]
    return [header, *([row["name"], *("–" if v is None else v for v in row["values"])] for row in comparison[settings])]


def shown(name: str, value: float | None) -> str:
    """Write a value of a quantity with three or four digits and its unit."""
    if value is None:
        return "–"
    if name.endswith("_ms"):
        return milliseconds(value) if value else "0 ms"
    if name == "mfu":
        return f"{rate(100 * value)} %"
    return with_unit(round(value))


def signed(name: str, difference: float | None) -> str:
    """Write a difference of a quantity with its sign."""
    if difference is None:
        return "–"
    if not difference:
        return "0"
    return ("+" if difference > 0 else "-") + shown(name, abs(difference))


def _name(text: str) -> Cell:
    return Cell(text, text)


def _value(name: str, row: Mapping[str, Any], number: int) -> Cell:
    value = row["values"][number]
    return Cell(shown(name, value), value)


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{rate(ratio)} x"


def _with_ratio(name: str, row: Mapping[str, Any], number: int) -> Cell:
    cell, ratio = _value(name, row, number), row["ratios"][number]
    return cell if ratio is None else Cell(f"{cell.text} ({_ratio(ratio)})", cell.value)


def legend(comparison: Mapping[str, Any], links: bool = False) -> list[str]:
    """Return a line for each subject, in Markdown with links to the pages of runs."""
    lines: list[str] = []
    for number, subject in enumerate(comparison["subjects"]):
        name = subject["name"]
        where = f"run {subject['source']}" if subject["run_id"] else subject["source"]
        is_baseline = ", the baseline" if number == comparison["baseline"] else ""
        rest = f": {subject['kind']}, {where}{is_baseline}"
        if links and subject["link"]:
            lines.append(Marked(markdown_link(name, subject["link"]) + markdown_text(rest)))
        else:
            lines.append(f"{name}{rest}")
    return lines


def _differences(comparison: Mapping[str, Any]) -> list[str]:
    lines = []
    for settings in ("configuration", "environment"):
        for row in comparison[settings]:
            lines.append(f"{settings}: {row['name']}: {_some(row['values'])}")
        if not comparison[settings]:
            lines.append(f"{settings}: nothing differs")
    return lines


def _some(values: Sequence[str | None]) -> str:
    given = ["–" if value is None else value for value in values]
    if len(given) <= _NAMED:
        return ", ".join(given)
    distinct = list(dict.fromkeys(given))
    more = f" and {len(distinct) - _NAMED} more" if len(distinct) > _NAMED else ""
    return ", ".join(distinct[:_NAMED]) + more


#: Colours of subjects, which differ from those of stages.
_SUBJECT_COLOURS = ("#7d8590", "#3aa0a0", "#b5577d", "#7a9a01", "#5b6abf", "#c2752b")


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Return a comparison as an HTML page that needs no network.

    It follows the reader's choice of light or dark.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("stagemeter.export"),
        autoescape=True,
        undefined=StrictUndefined,
        # Charts are markup already.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    quantities = [
        {
            "title": title_of(comparison, name),
            "bars": chart_svg(comparison_chart(comparison, name), f"bars-{name}"),
            "differences": _difference_bars(comparison, name, quantity),
            **_page_table(comparison, name, quantity),
        }
        for name, quantity in comparison["quantities"].items()
    ]
    return environment.get_template("comparison.html.jinja").render(
        names=[subject["name"] for subject in comparison["subjects"]],
        legend=legend(comparison),
        quantities=quantities,
        settings=[(title, setting_rows(comparison, title.lower())) for title in ("Configuration", "Environment")],
        notes=comparison["notes"],
        style=Markup(PAGE_STYLE),
    )


def _page_table(comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any]) -> dict[str, Any]:
    header, rows = comparison_table(comparison, name, quantity)
    cells = [[{"text": cell.text, "value": "" if cell.value is None else cell.value} for cell in row] for row in rows]
    return {"header": header, "rows": cells}


def _difference_bars(comparison: Mapping[str, Any], name: str, quantity: Mapping[str, Any]) -> str:
    """Draw the difference of each stage from the baseline."""
    rows = parts(quantity)
    stages = [row["stage"] for row in rows]
    series = [
        _series(subject["name"], stages, [row["differences"][number] for row in rows], partial(signed, name))
        for number, subject in enumerate(comparison["subjects"])
        if number != comparison["baseline"]
    ]
    title = f"{name}, difference from the baseline" + (f": {series[0].name}" if len(series) == 1 else "")
    chart = Chart(title, title, "", "lying bars", series, colours=_SUBJECT_COLOURS)
    return chart_svg(chart, f"differences-{name}")


def _series(
    name: str, labels: Sequence[str], values: Sequence[float | None], write: Callable[[float | None], str]
) -> Series:
    return Series(name, labels, [value or 0 for value in values], [write(value) for value in values])


def comparison_chart(comparison: Mapping[str, Any], quantity: str | None = None) -> Chart:
    """Return a quantity, by default the first, as a bar for each subject, made of its stages.

    MFU does not add up: its bars stand side by side.
    """
    name = quantity or next(iter(comparison["quantities"]))
    subjects = [subject["name"] for subject in comparison["subjects"]]
    rows = parts(comparison["quantities"][name])
    series = [_series(row["stage"], subjects, row["values"], partial(shown, name)) for row in rows]
    return Chart(title_of(comparison, name), name, "", "lying bars", series, stacked=name != "mfu")


def parts(quantity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows that a request consists of: without sums, and with all decode steps in place of one."""
    rows = {row["stage"]: row for row in quantity["rows"]}
    left_out = {*SUMS, "active", REQUEST, *([DECODE] if DECODE_TOTAL in rows else [])}
    return [rows[stage] for stage in quantity["stages"] if stage not in left_out]


#: The files of a comparison: name, and the function that returns the contents.
COMPARISON_FILES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "comparison.json": json_text,
    "comparison.md": comparison_markdown,
    "comparison.csv": comparison_csv,
    "comparison.html": comparison_page,
}


def comparison_files(comparison: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of a comparison's files by name."""
    return {name: make(comparison) for name, make in COMPARISON_FILES.items()}
