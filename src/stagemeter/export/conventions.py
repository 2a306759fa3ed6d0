"""Other projects' counts beside ours, on a terminal and as Markdown."""

from __future__ import annotations

from fractions import Fraction

from stagemeter.conventions.compare import Comparison
from stagemeter.conventions.formulas import SERVED, TRAINING
from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import with_unit

_HEADER = ["convention", "counts", "FLOPs per token", "to ours", "to ours, causal"]


def convention_rows(comparison: Comparison) -> list[list[str]]:
    """Return the table: ours first, then a row a convention. FLOPs are those of a forward pass."""
    rows = [
        _HEADER,
        ["Stagemeter", TRAINING, with_unit(round(comparison.trained)), "", ""],
        ["Stagemeter, causal", TRAINING, with_unit(round(comparison.trained_causal)), "", ""],
        ["Stagemeter", SERVED, with_unit(round(comparison.served)), "", ""],
        ["Stagemeter, causal", SERVED, with_unit(round(comparison.served_causal)), "", ""],
    ]
    for row in comparison.rows:
        flops = "none" if row.flops_per_token is None else with_unit(round(row.flops_per_token))
        rows.append([row.convention, row.counts, flops, relation(row.dense), relation(row.causal)])
    return rows


def relation(ratio: Fraction | None) -> str:
    """Return a ratio as a signed difference in percent; ``equal`` for one to the integer."""
    if ratio is None:
        return ""
    percent = float(100 * (ratio - 1))
    return "equal" if ratio == 1 else f"{percent:+,.0f} %" if abs(percent) >= 100 else f"{percent:+.3g} %"


def convention_notes(comparison: Comparison) -> list[str]:
    """Return what each convention leaves out or counts otherwise."""
    return [f"{row.convention}: {'; '.join(row.notes)} [{row.source}]" for row in comparison.rows]


def request_lines(comparison: Comparison) -> list[str]:
    """Return the FLOPs of whole requests, new tokens included, of conventions that count them."""
    return [
        f"{row.convention}, whole requests: {with_unit(row.request)} FLOPs, to ours: {relation(row.request_to_ours)}"
        for row in comparison.rows
        if row.request is not None
    ]


def print_conventions(comparison: Comparison) -> None:
    """Print the table, and what each convention leaves out."""
    print_lines([""])
    print_table(
        convention_rows(comparison),
        title=f"Forward FLOPs per token of a prompt of {comparison.tokens:,}, by convention",
    )
    print_lines(
        [
            f"{TRAINING}: a third of what the project counts, with the output head on every position",
            f"{SERVED}: the output head where a new token comes from",
            *request_lines(comparison),
            *convention_notes(comparison),
        ]
    )
