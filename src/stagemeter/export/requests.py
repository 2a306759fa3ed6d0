"""Costs of a log of requests as Markdown and on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import percentage, with_unit
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document, unbroken

#: Files of a log, in its folder.
REQUEST_FILES = ("requests.json", "requests.md")
#: Rows of a table of requests, of groups or of bad lines at most.
_ROWS = 10


def request_files(costs: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of the files of a log by name."""
    return dict(zip(REQUEST_FILES, (json_text(costs), _markdown(costs)), strict=True))


def print_requests(costs: Mapping[str, Any]) -> None:
    """Print stages, quantiles and the dearest requests on stdout."""
    print_table(stage_rows(costs), title=f"{costs['model']}, {costs['requests']:,} requests")
    print_lines(
        [
            _lengths(costs),
            quantile_line("FLOPs per request", costs["flops_per_request"]),
            *_dearest_lines(costs),
            *_remarks(costs),
        ]
    )


def stage_rows(costs: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table of stages, with a header."""
    rows = [["stage", "FLOPs", "by visible pairs", "executed", "share", "KV cache read", "written"]]
    for name, values in [*costs["stages"].items(), ("total", costs["total"])]:
        share = "" if name == "total" else percentage(values["flops"], costs["total"]["flops"])
        flops = [with_unit(values[one]) for one in ("flops", "flops_causal", "flops_executed")]
        moved = [with_unit(values[one], "B") for one in ("kv_bytes_read", "kv_bytes_written")]
        rows.append([name, *flops, share, *moved])
    return rows


def _lengths(costs: Mapping[str, Any]) -> str:
    before = f", {costs['pages_encoded_before']:,} encoded before" if costs["pages_encoded_before"] else ""
    pages = f"{costs['pages']:,} page{'s' * (costs['pages'] > 1)}, {costs['pages_cached']:,} of them cached{before}; "
    return (
        f"{pages * (costs['pages'] > 0)}{costs['prompt_tokens']:,} prompt tokens, "
        f"{costs['cached_tokens']:,} of them cached; {costs['output_tokens']:,} output tokens, {costs['dtype']}"
    )


def quantile_line(title: str, values: Mapping[str, float]) -> str:
    """Return a line of quantiles of FLOPs."""
    return f"{title}: " + ", ".join(f"{name} {with_unit(round(value))}" for name, value in values.items())


def _dearest_lines(costs: Mapping[str, Any]) -> list[str]:
    return [
        f"{costs['numbered']} {one['line']:,}: {with_unit(one['flops'])}, {one['prompt_tokens']:,} prompt "
        f"({one['cached_tokens']:,} cached) + {one['output_tokens']:,} output tokens"
        for one in costs["dearest"][:3]
    ]


def _remarks(costs: Mapping[str, Any]) -> list[str]:
    lines = []
    for how in ("failed", "skipped"):
        left_out, place = costs[how], costs["numbered"]
        lines += [f"{how} {place} {one['line']:,}: {one['reason']}" for one in left_out["first"][:_ROWS]]
        if more := left_out["lines"] - min(_ROWS, len(left_out["first"])):
            lines.append(f"{how} {more:,} further {place}s")
    return [*lines, *(f"note: {note}" for note in costs["notes"])]


def swept_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of a log's costs, a row a combination of the settings that were given."""
    settings = [name for name in rows[0] if "/" not in name and any(row.get(name) is not None for row in rows)]
    quantities = {"FLOPs": "log_flops", "by visible pairs": "log_flops_causal", "executed": "log_flops_executed"}
    moved = {"KV cache read": "log_kv_bytes_read", "written": "log_kv_bytes_written"}
    table = [[*(name.replace("_", " ") for name in settings), "requests", *quantities, *moved]]
    for row in rows:
        numbers = [with_unit(row[f"{name}/total"]) for name in quantities.values()]
        numbers += [with_unit(row[f"{name}/total"], "B") for name in moved.values()]
        chosen = ["" if row.get(name) is None else str(row[name]) for name in settings]
        table.append([*chosen, f"{row['log_count/requests']:,}", *numbers])
    return table


def swept_note(rows: Sequence[Mapping[str, Any]], log: str, notes: Sequence[str]) -> str:
    """Return the description of the run of a log's sweep."""
    document = Document()
    document.header(1, f"{log}: {len(rows):,} combinations of settings")
    document.table(unbroken(swept_rows(rows)[: _ROWS + 1]))
    document.section("Notes", notes[:_ROWS])
    return str(document)


def requests_note(costs: Mapping[str, Any]) -> str:
    """Return the description of a run: stages, lengths, and how many requests are left out."""
    document = Document()
    document.header(1, f"{costs['model']}: {costs['requests']:,} requests of {costs['log']['name']}")
    document.paragraph(_lengths(costs))
    document.table(unbroken(stage_rows(costs)))
    document.paragraph(quantile_line("FLOPs per request", costs["flops_per_request"]))
    left_out = [f"{costs[how]['lines']:,} {how}" for how in ("failed", "skipped") if costs[how]["lines"]]
    document.section("Left out", left_out)
    document.section("Notes", costs["notes"][:_ROWS])
    return str(document)


def _markdown(costs: Mapping[str, Any]) -> str:
    document = Document()
    document.header(1, f"{costs['model']}: {costs['requests']:,} requests")
    document.paragraph(_lengths(costs))
    document.table(unbroken(stage_rows(costs)))
    document.header(2, "FLOPs per request")
    document.table(
        unbroken([["", "FLOPs"], *([name, with_unit(round(n))] for name, n in costs["flops_per_request"].items())])
    )
    document.header(2, "The dearest requests")
    names = ("line", "prompt_tokens", "cached_tokens", "output_tokens", "image_tokens")
    rows = [[*(f"{one[name]:,}" for name in names), with_unit(one["flops"])] for one in costs["dearest"]]
    head = [costs["numbered"], *(name.replace("_", " ") for name in names[1:]), "FLOPs"]
    document.table(unbroken([head, *rows]))
    if costs["pages"]:
        document.header(2, "Pages by their views")
        rows = [
            [
                f"{one['global_views'] + one['local_views']:,} x {'x'.join(map(str, one['view_size']))}",
                f"{one['image_tokens']:,}",
                "yes" if one["page_cached"] else "no",
                f"{one['pages']:,}",
            ]
            for one in costs["groups"][:_ROWS]
        ]
        document.table(unbroken([["views", "image tokens", "cached", "pages"], *rows]))
    document.section("Notes", _remarks(costs))
    return str(document)
