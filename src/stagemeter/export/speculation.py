"""Speculative decoding as rows and lines, for a report's Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.units import digits_of, milliseconds, with_unit


def speculation_title(speculation: Mapping[str, Any]) -> str:
    """Say what drafts how many tokens, and what a step yields."""
    expected = "" if speculation["exact"] else " expected"
    return (
        f"Speculative decoding: {speculation['draft']} drafts {speculation['drafted']:,} a step, accepted with "
        f"probability {speculation['acceptance']:.3g}; {speculation['tokens_per_step']:.3g} tokens a step{expected}"
    )


def speculation_table(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the work for each token by part, over that of plain decoding; the header first."""
    speculation, bounds = report["speculation"], report["speculation"]["bounds"]
    tokens = speculation["tokens"] * report["metadata"]["workload"]["batch_size"]
    plain = speculation["plain_per_token"]
    parts = {
        name: {quantity: value / tokens for quantity, value in speculation[name].items()}
        for name in ("verification", "drafting")
    }
    rows = [
        ["for each token", "FLOPs", "by visible pairs", "bytes moved"],
        *([name, *_cells(values)] for name, values in parts.items()),
        ["both", *_cells(speculation["per_token"], plain)],
        ["plain decoding", *_cells(plain)],
    ]
    if bounds is None:
        return rows
    columns = {"ms": "at least", "ms_every_expert": "if every expert is read"}
    for key, title in columns.items():
        if key != "ms" and all(bounds[f"{name}_{key}"] == bounds[f"{name}_ms"] for name in ("speculative", "plain")):
            continue
        both, alone = bounds[f"speculative_{key}"], bounds[f"plain_{key}"]
        cells = [title, "", "", f"{milliseconds(both)} (x{digits_of(both / alone)})", milliseconds(alone)]
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    return rows


def _cells(work: Mapping[str, float], plain: Mapping[str, float] | None = None) -> list[str]:
    def moved(values: Mapping[str, float]) -> float:
        return values["bytes_read"] + values["bytes_written"]

    cells = []
    for unit, value_of in (("", lambda of: of["flops"]), ("", lambda of: of["flops_causal"]), ("B", moved)):
        factor = f" (x{digits_of(value_of(work) / value_of(plain))})" if plain is not None else ""
        cells.append(f"{with_unit(round(value_of(work)), unit)}{factor}")
    return cells


def speculation_lines(speculation: Mapping[str, Any], note: str = "") -> list[str]:
    """Return what drafts besides its steps, and the notes, each after the word `note`."""
    lines = []
    if speculation["prompt"]["flops"]:
        lines.append(
            f"{speculation['draft']} has {with_unit(speculation['draft_params'])} parameters of its own, and takes "
            f"{with_unit(speculation['prompt']['flops'], 'FLOPs')} over the prompt"
        )
    return [*lines, *(f"{note}{text}" for text in speculation["notes"])]
