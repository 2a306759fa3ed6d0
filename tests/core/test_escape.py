"""Names from elsewhere: no output obeys them, and every output shows them."""

import csv
import io
import json
import logging
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.text import Text

from stagemeter.cli.options import LineFormatter
from stagemeter.comparing.compare import compare
from stagemeter.comparing.subject import Subject
from stagemeter.core.escape import markdown_code, markdown_link, markdown_text, printable, spreadsheet_cell
from stagemeter.core.terminal import plain_text, print_lines, print_table
from stagemeter.export.charts import Chart, Series, bar_figure, chart_picture, charts_page, picture
from stagemeter.export.comparison import comparison_csv, comparison_markdown, comparison_page, print_comparison
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document

HOSTILE = [
    "\x1b]0;owned\x07\x1b[2Jname",
    "a\u202egpj.exe",
    "two\nlines\r\tand tab",
    "\x9b31m",
    "zero\u200bwidth\ufeff",
    "lone \udcff",
    "nul \x00",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "[a]: http://evil.example",
    "<http://evil.example>",
    "a|b|c",
    "`code` ``more``",
    "# heading",
    "> quoted",
    "- item",
    "&lt;b&gt;",
    "\\| \\` \\<b>",
    "=cmd|' /C calc'!A0",
    "$\\frac{a$ [bold]x[/bold] [/nothing]",
    "名前 µ× é",
]
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
letters = st.sampled_from("ab|`<>[]()!&;#*-\\:/ \n\x1b\u202e$=@+")
names = st.one_of(st.sampled_from(HOSTILE), st.text(alphabet=letters, max_size=24))


def is_harmless(text: str) -> bool:
    return not any(unicodedata.category(one) in OBEYED for one in text.replace("\n", ""))


@given(st.text())
@example("\x1b[31m")
@example("\u202e\u2066\udcff")
def test_printable_text_is_one_line_that_steers_nothing(text):
    shown = printable(text)
    assert is_harmless(shown)
    assert "\n" not in shown
    shown.encode()
    assert printable(shown) == shown


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S"))))
def test_what_can_be_read_stays_as_it_is(text):
    assert printable(text) == text


def shown_by(html: str) -> str:
    """Return the text of a page, with entities resolved."""
    text = re.sub(r"<[^>]*>", "", html)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, character)
    return text


def tags(html: str) -> set[str]:
    return set(re.findall(r"</?([a-z0-9]+)", html))


@given(names)
def test_name_in_a_markdown_cell_is_text(name):
    document = Document()
    document.table([["Stage", "FLOPs"], [name, "1"], ["total", "2"]])
    html = markdown.render(str(document))
    assert tags(html) <= {"table", "thead", "tbody", "tr", "th", "td", "em", "strong", "p"}
    assert html.count("<tr>") == 3
    assert html.count("<td") == 4


@given(names)
def test_name_in_markdown_makes_nothing_but_text(name):
    document = Document()
    document.header(1, f"Analysis of {name}")
    document.paragraph(name)
    document.items([name, f"note: {name}"])
    html = markdown.render(str(document))
    assert not tags(html) & {"a", "img", "script", "code", "pre", "table", "blockquote", "h2", "b"}
    assert html.count("<h1>") <= 1
    assert "javascript" not in html or "href" not in html


@pytest.mark.parametrize("name", HOSTILE)
def test_name_can_be_read_in_markdown(name):
    html = markdown.render(f"name {markdown_text(name)}")
    assert " ".join(shown_by(html).split()) == " ".join(f"name {printable(name)}".split())


@given(names)
def test_link_of_ours_stays_one_link(name):
    html = markdown.render(f"see {markdown_link(name, '#/experiments/1')}")
    assert re.findall(r'href="([^"]*)"', html) == ["#/experiments/1"]
    assert "<img" not in html
    assert "<script" not in html


@given(names)
def test_code_ends_where_it_should(name):
    html = markdown.render(f"x {markdown_code('n' + name)} y")
    assert tags(html) == {"p", "code"}
    assert html.endswith("</code> y</p>\n")


@given(st.text(min_size=1))
@example("=1+1")
@example("\t=1")
@example("@SUM(A1)")
@example("\uff1d1")
def test_cell_of_a_spreadsheet_begins_no_formula(text):
    cell = spreadsheet_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    assert is_harmless(cell)


# Whole documents


def comparison(name: str) -> dict:
    """Return a comparison of two subjects with a foreign name in every place."""
    subjects = [
        Subject(
            name=f"{name}{number}",
            source=name,
            kind="module",
            schema_version="1.0",
            values={f"flops/{name}": 100 * number, "flops/total": 100 * number},
            configuration={name: f"{name}{number}"},
            environment={name: f"{name}{number}"},
            run_id=f"{number}",
            link="#/experiments/1",
        )
        for number in (1, 2)
    ]
    return compare(subjects, (), 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_comparison_is_harmless_everywhere(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    found = comparison(name)
    print_comparison(found)
    printed = capsys.readouterr().out
    assert is_harmless(printed)
    text = comparison_markdown(found)
    assert is_harmless(text)
    html = markdown.render(text)
    assert not tags(html) & {"img", "script", "code", "b"}
    assert set(re.findall(r'href="([^"]*)"', html)) <= {"#/experiments/1"}
    rows = list(csv.reader(io.StringIO(comparison_csv(found))))
    assert {len(row) for row in rows} == {7}
    assert not [cell for row in rows[1:] for cell in row[:4] if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert is_harmless(json_text(found))
    assert json.loads(json_text(found)) == json.loads(json.dumps(found))


@pytest.mark.parametrize("name", HOSTILE)
def test_pages_are_harmless(name):
    page = comparison_page(comparison(name))
    points = Chart(name, "x", "y", "points", [Series(name, [1.0], [1.0], [name])], log=True)
    chart = Chart(name, name, name, "bars", [Series(name, [name], [1.0], [name])])
    for text in (page, charts_page({"chart": chart, "points": points}, name)):
        assert "<script>alert" not in text
        assert "<img" not in text
        assert is_harmless(text)
        text.encode()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_pictures_take_no_name_for_a_formula(name):
    points = Chart(name, "x", "y", "points", [Series(name, [1.0], [1.0], [name])], log=True)
    chart = Chart(name, "x", "y", "bars", [Series(name, [name], [1.0])])
    for drawn in (picture(bar_figure({name: 3}, 3, "FLOPs", name)), chart_picture(points), chart_picture(chart)):
        assert drawn.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", HOSTILE)
def test_terminal_is_not_steered(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    print_table([[name, "FLOPs"], [name, "1"]], title=name)
    print_lines([name])
    printed = capsys.readouterr().out
    assert is_harmless(printed)
    assert printable(name).strip() in printed
    assert is_harmless(plain_text([["stage", name], [name, "1"]], title=name))
    assert Text(printable(name)).plain


@pytest.mark.parametrize("name", HOSTILE)
def test_log_is_a_line_of_text(name):
    record = logging.LogRecord("stagemeter", logging.WARNING, "x.py", 1, "run %s", (name,), None)
    line = LineFormatter("%(levelname)s %(name)s: %(message)s").format(record)
    assert is_harmless(line)
    assert "\n" not in line
